"""Following: files that an agent is still writing, mirrored while they grow.

Rule: only whole lines are mirrored; what has no newline yet waits for it. Each line's key names its place in the file,
so whatever is repeated after a crash is committed once, and the catalog's entry is a checkpoint, not the truth.
Strategy: a file is looked at when its status is another than before it was last looked at, or too young to tell. One
that grows is held open with what has been read of it; the beginning and the end of what was mirrored are compared each
time (all of it where it is small, and once it rests). A file that no longer begins with them, or that has another
inode, is looked at by the importer, which tells growing from moving from rewriting. All places are searched again when
a name appears or disappears, and from time to time, but never so often that searching is most of the work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import watchfiles

import shardstore

from .catalog import Catalog, Entry, path_of
from .finding import Problem, find
from .importing import Importer, Outcome
from .lines import SourceFile
from .mirroring import Rewritten, append_lines, caught_up, extends
from .sources import FORMATS, Found
from .sources.openclaw import STORE

__all__ = ["Mirror", "Round"]

CHECKPOINT_S = 30.0  # how old the catalog's knowledge of a growing file may be
COMPARED_WHOLE_BYTES = 1 << 20  # of a longer file only both ends are compared when it grows
RESTED_S = 5.0  # after which all of such a file is compared once
RESTED_BYTES_MAX = 256 << 20  # unless it is longer than this
LIVE_MAX = 64  # files held open
LIVELY_NS = 300 * 10**9  # a file written in the last five minutes is held open from the start
YOUNG_NS = 2 * 10**9  # a file may change after this long without getting another time, on some file systems
FINDING_SHARE = 50  # of the time at most this part goes into searching all places
FINDING_SHARE_TOLD = 4  # where a change was told of a name that is not known
ABOVE_MAX = 32  # folders between a root and a file that are watched

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: what became of files, how many bytes of all of them are not mirrored yet, what hindered.

    A reason that was told is not told again while it lasts.
    """

    outcomes: list[Outcome]
    behind_bytes: int
    problems: list[Problem]


class _Live:
    """A file that is held open, read up to where its entry says."""

    def __init__(self, source: SourceFile, entry: Entry) -> None:
        self.source = source
        self.entry = entry
        self.told = entry
        self.told_at_s = time.monotonic()
        self.looked_at_s = self.told_at_s
        self.in_doubt = False
        self._mark = source.mark()

    def goes_on(self) -> bool:
        """Say whether the path still names this file, and it still begins with what was mirrored."""
        self.looked_at_s = time.monotonic()
        status = os.stat(path_of(self.entry.path))
        if (status.st_dev, status.st_ino) != (self.entry.dev, self.entry.ino) or status.st_size < self.entry.size:
            return False
        grew = status.st_size > self.entry.size
        return self.source.holds(self._mark) if grew and self.entry.size > COMPARED_WHOLE_BYTES else self.is_whole()

    def is_whole(self) -> bool:
        """Read all that was mirrored again, and compare it."""
        with SourceFile(path_of(self.entry.path)) as fresh:
            return extends(fresh, self.entry)

    def rests(self) -> bool:
        """Say whether the file has grown with only its ends compared, and rests since."""
        quiet = self.in_doubt and time.monotonic() - self.looked_at_s >= RESTED_S
        return quiet and self.entry.size <= RESTED_BYTES_MAX

    def advance_to(self, entry: Entry) -> None:
        """Take over what was mirrored now."""
        self.in_doubt = entry.size > COMPARED_WHOLE_BYTES
        self.entry = entry
        self._mark = self.source.mark()


def _is_index(path: str) -> bool:
    """Say whether a file is written anew with every message: it would be a new session each time."""
    return os.path.basename(path) == STORE


class Mirror:
    """Mirrors what `paths` (or the known places) hold into a store, as it grows."""

    def __init__(
        self,
        store: shardstore.Store,
        catalog: Catalog,
        paths: Sequence[str],
        *,
        home: str,
        environ: Mapping[str, str],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._where = (paths, home, environ)
        self._importer = Importer(store, catalog, unfinished=False)
        self._files: dict[str, Found] = {}
        self._live: dict[str, _Live] = {}
        self._seen: dict[str, Stamp] = {}  # the status of files before they were last looked at
        self._problems: set[Problem] = set()
        self._failing: dict[str, str] = {}
        self._folders: list[str] = []
        self._found_at_s = self._finding_s = 0.0
        self._is_settled = False

    def close(self) -> None:
        """Tell the catalog how far every file was mirrored, and let go of them."""
        try:
            self._checkpoint(0.0)
        finally:
            for live in self._live.values():
                live.source.close()
            self._live.clear()

    def round(self, changed: set[str] | None = None, *, stop: threading.Event | None = None) -> Round:
        """Mirror what is new in all files that can be found; with `changed` in those that are known, `changed` or not.

        Once `stop` is set, what is left is left to a later round. Raises what concerns the store as a whole.
        """
        problems = self._find() if changed is None else []
        self._settle()
        due, missing = self._due(changed or set())
        if missing:  # it may have another name by now
            problems += self._find()
            due = [path for path in {*due, *self._due(set())[0]} if path in self._files]
        outcomes = [outcome for path in sorted(due) if (outcome := self._grown(path)) is not None]
        looked_at = self._live.keys() | {outcome.path for outcome in outcomes}
        rest = [self._files[path] for path in due if path not in looked_at]
        self._checkpoint(0.0 if rest else CHECKPOINT_S)
        for outcome in self._importer.run(rest) if rest else ():
            self._take(outcome, outcomes)
            if stop is not None and stop.is_set():
                self._seen.clear()
                break
        return Round([one for one in outcomes if self._is_news(one)], self.behind_bytes(), problems)

    def _settle(self) -> None:
        """Tell the catalog, once, what a killed follower appended for files that are gone by now."""
        if self._is_settled:
            return
        self._catalog.refresh()
        settled: list[Entry] = []
        for entry in self._catalog.current().values():
            if not os.path.lexists(path_of(entry.path)):
                with suppress(shardstore.Corrupt):  # check and verify tell of that
                    whole = caught_up(self._store, entry)
                    settled += [whole] if whole is not entry else []
        self._catalog.add(settled)
        self._is_settled = True

    def _take(self, outcome: Outcome, outcomes: list[Outcome]) -> None:
        """Take over what the importer says of a file."""
        if outcome.status != "unchanged":
            outcomes.append(outcome)
        entry = outcome.entry
        if entry is None:
            return
        lively = time.time_ns() - entry.mtime_ns < LIVELY_NS and len(self._live) < LIVE_MAX
        if outcome.status in ("grown", "moved") or lively:
            self._hold(outcome.path, entry)

    def _is_news(self, outcome: Outcome) -> bool:
        if outcome.error is None:
            self._failing.pop(outcome.path, None)
            return True
        self._seen.pop(outcome.path, None)  # it is tried again
        if isinstance(outcome.error, FileNotFoundError):
            return False
        reason = str(outcome.error)
        told = self._failing.get(outcome.path) == reason
        self._failing[outcome.path] = reason
        return not told

    def _due(self, changed: set[str]) -> tuple[list[str], bool]:
        """Return the files to look at, and whether any file is gone or has another inode."""
        due = []
        missing = False
        now_ns = time.time_ns()
        for path in sorted(self._files):
            try:
                status = os.stat(path)
            except OSError:
                missing = missing or path in self._seen
                self._seen.pop(path, None)
                continue
            stamp = (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
            seen = self._seen.get(path)
            missing = missing or (seen is not None and seen[2:] != stamp[2:])
            young = abs(now_ns - status.st_mtime_ns) < YOUNG_NS
            if seen != stamp or path in changed or young or self._is_in_doubt(path):
                due.append(path)
                self._seen[path] = stamp
        return due, missing

    def _is_in_doubt(self, path: str) -> bool:
        """Compare all of a file that rests; say whether it is another by now."""
        live = self._live.get(path)
        if live is None or not live.rests():
            return False
        live.in_doubt = False
        try:
            if live.is_whole():
                return False
        except OSError:
            pass  # whoever looks next tells
        self._importer.doubt(path)
        self._let_go(path)
        return True

    def behind_bytes(self) -> int:
        """Return how many bytes of the files lie beyond what is mirrored; all of a file that is another by now."""
        done = {path_of(entry.path): entry for entry in self._catalog.current().values()}
        done |= {path: live.entry for path, live in self._live.items()}
        behind = 0
        for path in self._files:
            try:
                status = os.stat(path)
            except OSError:
                continue
            entry = done.get(path)
            same = entry is not None and (status.st_dev, status.st_ino) == (entry.dev, entry.ino)
            behind += status.st_size
            if entry is not None and same and status.st_size >= entry.size:
                behind -= entry.size
        return behind

    # -------------------------------------------------------------- when to look

    def rounds(self, *, stop: threading.Event, poll_ms: int = 1000) -> Iterator[Round]:
        """Yield a round whenever something changed, and every `poll_ms` at the latest, until `stop` is set."""
        yield self.round(stop=stop)
        unknown = False
        while not stop.is_set():
            folders = self._folders
            for changed in _changes(folders, stop, poll_ms):
                if stop.is_set():
                    break
                unknown = unknown or not all(path in self._files or _is_index(path) for path in changed)
                spent_s = self._finding_s
                pause_s = spent_s * FINDING_SHARE_TOLD if unknown else max(spent_s * FINDING_SHARE, poll_ms / 2000)
                everywhere = time.monotonic() - self._found_at_s >= pause_s
                unknown = unknown and not everywhere
                yield self.round(None if everywhere else changed, stop=stop)
                if self._folders != folders:
                    break

    def _find(self) -> list[Problem]:
        """Search all places; return what hinders that has not been told."""
        paths, home, environ = self._where
        begun_s = time.monotonic()
        found, problems = find(paths, home=home, environ=environ)
        self._files = {file.path: file for file in found if not _is_index(file.path)}
        self._seen = {path: stamp for path, stamp in self._seen.items() if path in self._files}
        self._failing = {path: reason for path, reason in self._failing.items() if path in self._files}
        for path in self._live.keys() - self._files.keys():
            self._let_go(path)
        self._folders = self._watched()
        self._found_at_s = time.monotonic()
        self._finding_s = self._found_at_s - begun_s
        news = [problem for problem in problems if problem not in self._problems]
        self._problems = set(problems)
        return news

    def _watched(self) -> list[str]:
        """Return the folders in which files are, those of the roots, and what lies between."""
        paths, home, environ = self._where
        roots = [*paths] or [root for form in FORMATS for root in form.homes(home, dict(environ))]
        tops = {os.path.realpath(root if os.path.isdir(root) else os.path.dirname(root) or ".") for root in roots}
        folders = {top for top in tops if os.path.isdir(top)}
        for path in self._files:
            for _ in range(ABOVE_MAX):
                path = os.path.dirname(path)
                if path in folders:
                    break
                folders.add(path)
        return sorted(folders)

    # -------------------------------------------------------------- files held open

    def _hold(self, path: str, entry: Entry) -> None:
        """Keep a file open that has just grown, for it will grow again."""
        if path in self._live:
            self._let_go(path)
        if len(self._live) >= LIVE_MAX:
            self._let_go(min(self._live, key=lambda known: self._live[known].looked_at_s))
        try:
            source = SourceFile(path)
        except OSError:
            return  # it is gone again; the next round tells
        try:
            if (source.status.st_dev, source.status.st_ino) == (entry.dev, entry.ino) and extends(source, entry):
                self._live[path] = _Live(source, entry)
        finally:
            if path not in self._live:
                source.close()

    def _let_go(self, path: str) -> None:
        live = self._live.pop(path)
        live.source.close()
        if live.told is not live.entry:
            self._catalog.add([live.entry])

    def _grown(self, path: str) -> Outcome | None:
        """Mirror what a file that is held open has gained; one that does not go on is left to the importer."""
        live = self._live.get(path)
        if live is None:
            return None
        try:
            if not live.goes_on():
                self._importer.doubt(path)
                self._let_go(path)
                return None
            before = live.entry
            entry = append_lines(self._store, before, live.source, unfinished=False)
        except shardstore.ShardstoreError as error:  # before OSError, which some of them are too
            self._let_go(path)
            return Outcome(path, "failed", error=error)
        except (Rewritten, OSError):
            self._importer.doubt(path)
            self._let_go(path)
            return None
        if entry == before:
            return None
        live.advance_to(entry)
        if entry.size == before.size:
            return None  # only its time is another
        return Outcome(path, "grown", entry.size - before.size, entry.lines - before.lines, entry)

    def _checkpoint(self, age_s: float) -> None:
        """Tell the catalog of files that have grown since they were told of `age_s` ago or longer."""
        now_s = time.monotonic()
        due = [live for live in self._live.values() if live.told is not live.entry and now_s - live.told_at_s >= age_s]
        self._catalog.add([live.entry for live in due])
        for live in due:
            live.told, live.told_at_s = live.entry, now_s


def _changes(folders: Sequence[str], stop: threading.Event, poll_ms: int) -> Iterator[set[str]]:
    """Yield the paths that changed in `folders`, none after `poll_ms` without a change, until `stop` is set."""
    try:
        if folders:
            for changes in watchfiles.watch(
                *folders,
                watch_filter=None,
                stop_event=stop,
                yield_on_timeout=True,
                rust_timeout=poll_ms,
                recursive=False,
                debounce=50,
                step=10,
            ):
                yield {path for _, path in changes}
    except (OSError, RuntimeError):  # a folder is gone again, or the system watches no more of them: look ourselves
        pass
    while not stop.wait(poll_ms / 1000):
        yield set()
