"""The views of a store's sessions as plain files in a folder, brought up to date once or kept so.

Rule: a notification, a time that has passed, a status that is another are reasons to look, and looking is always the
same: compare what is known of the file with the file, and the session with what is known of it. So a lost
notification, or a hand that touches a file, costs time and never a byte.
Strategy: what notifications name comes first; what takes long (all files when it begins, one that must be made again)
goes on in between, a piece at a time. Few files are held open, and none is read again while its status stays.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from shardstore.errors import Conflict, Deleted, NotFound, ShardstoreError, describe
from shardstore.follow import Watch
from shardstore.layout import SESSIONS, SHARDS, SessionKeys, unquote_id
from shardstore.shapes import Readable, Shape
from shardstore.store import Store
from shardstore.viewfiles import Descriptors, DiskFile, Status
from shardstore.viewfolder import claim, is_own

__all__ = ["DiskView", "Outcome", "Turn"]

PATROL_S = 1.0  # how often everything is looked at
PATROL_STEP = 100  # sessions between two looks at what is new
PATROL_SHARE = 20  # unless looking would take more than this part of the time
STAMPS_EVERY = 8  # where the system notifies, sessions are looked at for missed notices only every so many times
FRESH_S = 1.0  # how long a folder that has just appeared is looked at all the time
FRESH_MS = 20
YOUNG_NS = 2 * 10**9  # a folder may change after this long without getting another time, on some file systems
SLICE_S = 0.02  # what takes long goes on for this long before the next look at what is new
STEPS_MAX = 4  # pieces of a session that has news before it counts as one that takes long
JOBS_MAX = 16  # sessions in the middle of something that takes long; each has a file or two open
RETRY_S = 60.0  # the longest pause before what failed is tried again


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a session's file: `lines` and `written_bytes` were added, or `error` says why nothing was."""

    session: str
    status: Status | Literal["failed"]
    lines: int = 0
    written_bytes: int = 0
    error: ShardstoreError | OSError | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a follower has just done, and how many sessions it still has to look at. A reason is told once."""

    outcomes: list[Outcome]
    behind: int


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    retry_s: float  # when to try again
    pause_s: float  # before that


_Work = Generator[None, None, Outcome | None]


class DiskView:
    """Keeps `folder` as the view of a store, alone: raises Conflict if another one does.

    Shows all sessions that are there and not archived (archived ones too with `archived`), or those of `sessions`.
    Raises InvalidRequest for a folder that holds something else, OSError. `notified` says whether the system tells a
    follower of changes.
    """

    def __init__(
        self,
        store: Store,
        folder: str | os.PathLike[str],
        *,
        sessions: Collection[str] = (),
        archived: bool = False,
        new_shape: Callable[[], Shape] = Readable,
    ) -> None:
        self._store = store
        self._named = frozenset(sessions)
        self._archived = archived
        self._new_shape = new_shape
        self.folder = os.path.realpath(os.fspath(folder))
        self._marker = claim(self.folder, os.path.realpath(store.path))
        self._descriptors = Descriptors()
        self._files: dict[str, DiskFile] = {}
        self._over: set[str] = set()  # deleted: nothing will become of them any more
        self._stamps: dict[str, tuple[int, ...]] = {}  # the times of a session's folders when they were last looked at
        self._listed: list[str] = []
        self._listed_ns = -1  # the time of their folder when they were listed, if it was not young then
        self._hot: dict[str, None] = {}
        self._slow: dict[str, None] = {}
        self._jobs: dict[str, _Work] = {}
        self._fresh: dict[str, float] = {}
        self._failing: dict[str, _Failure] = {}
        self.notified = False

    def close(self) -> None:
        """Leave the folder to the next one; what was under way is taken up by it."""
        for job in self._jobs.values():
            job.close()
        self._descriptors.close()
        os.close(self._marker)

    def __enter__(self) -> DiskView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def files(self) -> int:
        """How many files are up to date, as far as is known."""
        return sum(file.is_known for file in self._files.values())

    # -------------------------------------------------------------- once

    def refresh(self, *, stop: threading.Event | None = None) -> Iterator[Outcome]:
        """Bring every file up to date; yield what became of each, until `stop` is set."""
        for id_ in self._ids():
            job = _Job(self._work(id_))
            for _ in job:
                if stop is not None and stop.is_set():
                    job.work.close()
                    return
            if job.value is not None:
                yield job.value
            elif id_ in self._named:
                yield Outcome(id_, "failed", error=NotFound(describe("no such session", session=id_)))

    def _ids(self) -> list[str]:
        if self._named:
            return sorted(self._named)
        now_ns, time_ns = time.time_ns(), _time_of(os.path.join(self._store.path, SESSIONS))
        if time_ns != self._listed_ns:
            self._listed = self._store.ids()
            self._listed_ns = -1 if abs(now_ns - time_ns) < YOUNG_NS else time_ns
        return self._listed

    # -------------------------------------------------------------- following

    def follow(self, *, stop: threading.Event, poll_ms: int = 1000, notify: bool = True) -> Iterator[Turn]:
        """Keep the files up to date until `stop` is set; yield whenever something was done, and once at the beginning.

        Looks at everything every `poll_ms` where the system does not notify. Raises Conflict when the marker is
        another's or gone, and what listing the sessions raises.
        """
        watch = Watch((self._store.path,), use_notifications=notify, recursive=True)
        self.notified = watch.notified
        patrol = _Patrol(self._patrol, PATROL_S if watch.notified else poll_ms / 1000)
        try:
            self._slow.update(dict.fromkeys(self._ids()))
            yield Turn([], self._behind())
            while not stop.is_set():
                behind = self._behind()
                outcomes = self._turn()
                if outcomes or behind != self._behind():
                    yield Turn(outcomes, self._behind())
                wait_ms = 1 if self._slow or self._hot else FRESH_MS if self._fresh else patrol.left_ms()
                self._notice(watch.wait(wait_ms, stop))
                patrol.go_on()
        finally:
            watch.close()

    def _behind(self) -> int:
        return len(self._slow.keys() | self._hot.keys())

    def _notice(self, paths: set[str]) -> None:
        """Take down the sessions to look at: those that were named, and those whose folders have just appeared."""
        now_s = time.monotonic()
        sessions = os.path.join(self._store.path, SESSIONS, "")
        names: set[str] = set()
        for path in paths:
            if not path.startswith(sessions):
                continue
            name, _, below = path[len(sessions) :].partition("/")
            names.add(name)
            if below in ("", SHARDS) and (id_ := unquote_id(name)) is not None:
                self._fresh[id_] = now_s + FRESH_S
        for name in names:
            if (id_ := unquote_id(name)) is not None and self._wants(id_):
                self._hot[id_] = None
        self._fresh = {id_: end_s for id_, end_s in self._fresh.items() if end_s > now_s and self._wants(id_)}
        self._hot.update(dict.fromkeys(self._fresh))

    def _wants(self, id_: str) -> bool:
        return id_ not in self._over and (not self._named or id_ in self._named)

    def _turn(self) -> list[Outcome]:
        """Look at all that has news, then go on for a moment with what takes long."""
        outcomes: list[Outcome] = []
        for id_ in list(self._hot):
            del self._hot[id_]
            if id_ in self._slow and id_ not in self._jobs and len(self._jobs) >= JOBS_MAX:
                continue  # it takes long, and others do before it
            if id_ not in self._failing or time.monotonic() >= self._failing[id_].retry_s:
                self._go_on(id_, STEPS_MAX, outcomes, jobs_max=JOBS_MAX)
        end_s = time.monotonic() + SLICE_S
        while self._slow and time.monotonic() < end_s:
            self._go_on(next(iter(self._slow)), 1, outcomes, jobs_max=JOBS_MAX + 1)  # it may always go on
        return [outcome for outcome in outcomes if self._is_news(outcome)]

    def _go_on(self, id_: str, steps: int, outcomes: list[Outcome], *, jobs_max: int) -> None:
        """Take some steps of what is to be done for a session; what is not finished by then takes long."""
        work = self._jobs.pop(id_, None)
        was_paused = work is not None
        if work is None:
            work = self._work(id_)
        try:
            for _ in range(steps):
                next(work)
        except StopIteration as end:
            self._slow.pop(id_, None)
            if was_paused:
                self._hot[id_] = None  # there may have been news meanwhile
            if end.value is not None:
                outcomes.append(end.value)
            return
        self._slow.setdefault(id_)
        if was_paused or len(self._jobs) < jobs_max:
            self._jobs[id_] = work
        else:
            work.close()  # it begins anew, from what it has written, when its turn comes

    def _is_news(self, outcome: Outcome) -> bool:
        id_ = outcome.session
        if outcome.error is None:
            self._failing.pop(id_, None)
            return outcome.status != "unchanged"
        known = self._failing.get(id_, _Failure("", 0.0, 0.5))
        pause_s = min(known.pause_s * 2, RETRY_S)
        self._failing[id_] = _Failure(str(outcome.error), time.monotonic() + pause_s, pause_s)
        return self._failing[id_].reason != known.reason

    def _patrol(self, number: int) -> Iterator[None]:
        """Look for sessions that are new, files that somebody has touched, and changes of sessions that went unnoticed;
        where the system notifies, for those not each time. Pauses now and then.
        """
        if not is_own(self._marker, self.folder):
            raise Conflict(describe("the view's marker was removed or replaced; start again", folder=self.folder))
        stamps_too = not self.notified or number % STAMPS_EVERY == 0
        for place, id_ in enumerate(self._ids(), 1):
            if id_ not in self._over and id_ not in self._jobs and self._is_due(id_, stamps_too=stamps_too):
                self._hot[id_] = None
            if place % PATROL_STEP == 0:
                yield

    def _is_due(self, id_: str, *, stamps_too: bool) -> bool:
        failing = self._failing.get(id_)
        if failing is not None:
            return time.monotonic() >= failing.retry_s
        file = self._files.get(id_)
        if file is not None and file.is_known and not file.is_as_left():
            return True
        return id_ not in self._stamps or (stamps_too and self._stamps[id_] != self._stamp(id_))

    def _stamp(self, id_: str) -> tuple[int, ...]:
        """Return the times of what changes when a session does; another one each time as long as they are young."""
        folder = os.path.join(self._store.path, SessionKeys(id_).folder)
        now_ns = time.time_ns()
        times = [_time_of(folder), _time_of(os.path.join(folder, SHARDS))]
        return (*times, now_ns) if abs(now_ns - max(times)) < YOUNG_NS else tuple(times)

    # -------------------------------------------------------------- one session

    def _work(self, id_: str) -> _Work:
        """Bring one session's file up to date, pausing after each piece; None if there is no such session."""
        file = self._files.get(id_)
        try:
            stamp = self._stamp(id_)
            if file is None:
                file = self._files[id_] = DiskFile(self.folder, id_, self._descriptors, self._new_shape)
            status = yield from self._update(id_, file)
            self._stamps[id_] = stamp
        except NotFound:
            return None
        except (ShardstoreError, OSError) as error:
            return Outcome(id_, "failed", error=error)
        if status == "removed":
            return Outcome(id_, status)
        return Outcome(id_, status, file.lines, file.written)

    def _update(self, id_: str, file: DiskFile) -> Generator[None, None, Status]:
        session = self._store.session(id_, create=False)
        info = session.info()
        if info.state == "open" and (not info.archived or self._archived or id_ in self._named):
            try:
                session.settle()
                return (yield from file.update(session, info.head, info.birth))
            except Deleted:  # meanwhile
                pass
        elif info.state == "open":
            return file.remove()
        status = file.remove()
        self._over.add(id_)
        del self._files[id_]
        return status


class _Patrol:
    """Runs a generator to its end a step at a time, again and again after a pause."""

    def __init__(self, begin: Callable[[int], Iterator[None]], pause_s: float) -> None:
        self._begin = begin
        self._pause_s = pause_s
        self._next_s = time.monotonic() + pause_s
        self._under_way: Iterator[None] | None = None
        self._number = 0
        self._spent_s = 0.0

    def left_ms(self) -> int:
        """Return how long to wait until the next step."""
        return 1 if self._under_way is not None else max(1, int((self._next_s - time.monotonic()) * 1000))

    def go_on(self) -> None:
        """Take a step, if it is time to."""
        begun_s = time.monotonic()
        if self._under_way is None:
            if begun_s < self._next_s:
                return
            self._number += 1
            self._under_way, self._spent_s = self._begin(self._number), 0.0
        ended = next(self._under_way, _Patrol) is _Patrol
        now_s = time.monotonic()
        self._spent_s += now_s - begun_s
        if ended:
            self._under_way = None
            self._next_s = now_s + max(self._pause_s, self._spent_s * PATROL_SHARE)


class _Job:
    """Runs a generator to its end and keeps what it returned."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.value: Outcome | None = None

    def __iter__(self) -> Iterator[None]:
        self.value = yield from self.work


def _time_of(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
