"""The names of a mount: which session a file name shows.

Rule: session `<id>` is shown as `<id>.jsonl`, each "/" of the id being a folder, unless the directory says otherwise:
the session `shardstore-mount`, whose records hold one JSON line for each change. The latest line of a name counts, and
a change is one record, appended only if no other change came between: so it happened wholly or not at all, and all
mounts and processes of a store see the same names.
Strategy: what that session says is remembered. Whoever asks looks at the time of its folder of shards, which every new
record changes; only where that is another, or too young to tell, the session itself is looked at.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache

from shardstore.errors import Conflict, Corrupt, Deleted, InvalidRequest, NotFound, Unavailable, UnsupportedFormat
from shardstore.layout import SESSIONS, SHARDS, view_path
from shardstore.mount.refusals import refuse
from shardstore.record import Record, decode_line
from shardstore.session import Session, SessionInfo
from shardstore.store import Store

__all__ = ["DIRECTORY", "Names", "could_be_session", "is_session_target"]

DIRECTORY = "shardstore-mount"
SUFFIX = ".jsonl"
CHANGES_MAX = 1000  # attempts at one change while others keep changing names
IDS_MAX = 100_000  # ids `<id>~2` … that are tried for a name
HANDLES_MAX = 4096  # session handles remembered
TICK_NS = 20_000_000  # within which two changes of a folder may leave the same time on it

Line = dict[str, str | None]


@lru_cache(maxsize=4096)
def could_be_session(name: str) -> bool:
    """Say whether creating `name` makes a session: `*.jsonl`, but not `*.trajectory.jsonl` nor a hidden name."""
    last = name.rpartition("/")[2]
    return (
        last.endswith(SUFFIX)
        and not last.startswith(".")
        and not last.endswith(".trajectory.jsonl")
        and ".real" not in name.split("/")
        and _default_name(name.removesuffix(SUFFIX)) == name
    )


def is_session_target(name: str) -> bool:
    """Say whether a session may be renamed to `name`: what could be one, or `*.jsonl.<anything>`."""
    folder, slash, last = name.rpartition("/")
    stem = last[: last.find(SUFFIX + ".") + len(SUFFIX)]
    return could_be_session(name) or (
        SUFFIX + "." in last and not last.endswith(".") and could_be_session(folder + slash + stem)
    )


def _default_name(session_id: str) -> str | None:
    try:
        return view_path(session_id)
    except (InvalidRequest, UnicodeEncodeError):
        return None


def _folder_ends(full: str) -> list[int]:
    """Return where the names of the folders above a file end, behind their "/"; 0 for the one without a name."""
    return [0, *(place + 1 for place, sign in enumerate(full) if sign == "/")]


class Names:
    """The names of a store's sessions below the ids that begin with `prefix`; safe to share between threads.

    A name is relative to the mount. Each call raises what the engine does (Unavailable, Corrupt, …), and where a file
    would refuse, OSError.
    """

    def __init__(self, store: Store, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._directory = store.session(DIRECTORY)
        self._lock = threading.RLock()
        self._names: dict[str, str | None] = {}  # what the lines say, by full name
        self._shown: dict[str, str] = {}  # the full name under which a line shows a session, by id
        self._seen = 0
        self._shards = os.path.join(store.path, SESSIONS, DIRECTORY, SHARDS)
        self._unchanged_ns: int | None = None  # what its time was when the directory was last looked at, if that tells
        self._handles: dict[str, Session] = {}
        self._known: tuple[tuple[int, int] | None, dict[str, list[str]]] = (None, {})
        with suppress(Unavailable):  # of a store that can't be written, names can be read all the same
            self._begin()

    def _begin(self) -> None:
        """See that the directory is there: to find that it is missing would cost each look several times as much."""
        self._directory.create()
        if not self._directory.info().archived:
            self._directory.archive()

    # -------------------------------------------------------------- asking

    def session(self, session_id: str) -> Session:
        """Return a handle to a session, the same one for as long as it is remembered."""
        session = self._handles.get(session_id)
        if session is None:
            if len(self._handles) >= HANDLES_MAX:
                self._handles.clear()
            session = self._handles[session_id] = self._store.session(session_id, create=False)
        return session

    def find(self, name: str, *, head: int | None = None) -> SessionInfo | None:
        """Return the facts of the session that `name` shows, None if it shows none; a given `head` is not looked for.

        Without looking for the head this takes half the time.
        """
        self._refresh()
        return self._find(self._prefix + name, head)

    def may_hold(self, name: str) -> list[Session]:
        """Return the sessions that a file called `name` may have been brought into: its own, and the one shown."""
        self._refresh()
        full = self._prefix + name
        ids = {full.removesuffix(SUFFIX), self._names.get(full)} - {DIRECTORY}
        found = []
        for session_id in ids - {None}:
            with suppress(InvalidRequest):  # too long for an id
                found.append(self.session(str(session_id)))
        return found

    def _find(self, full: str, head: int | None = None) -> SessionInfo | None:
        if full in self._names:
            session_id = self._names[full]
            return None if session_id is None else self._open_info(session_id, head)
        if not could_be_session(full):
            return None
        session_id = full.removesuffix(SUFFIX)
        if session_id == DIRECTORY or session_id in self._shown:
            return None
        info = self._open_info(session_id, head)
        return None if info is None or info.archived else info

    def _open_info(self, session_id: str, head: int | None = None) -> SessionInfo | None:
        info = self._info(session_id, head)
        return info if info is not None and info.state == "open" else None

    def _info(self, session_id: str, head: int | None = None) -> SessionInfo | None:
        try:
            return self.session(session_id).info(head=head)
        except NotFound:
            return None
        except UnsupportedFormat:
            raise
        except InvalidRequest as error:
            raise refuse(errno.ENAMETOOLONG, session_id) from error

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the files that sessions are shown as directly in `folder` ("" for the mount), and the folders, sorted.

        A session that can't be read is listed all the same: opening it tells why.
        """
        begin = self._begin_of(folder)
        files: set[str] = set()
        folders: set[str] = set()
        for full in self._below().get(begin, ()):
            first, slash, _ = full[len(begin) :].partition("/")
            if first not in folders and self._is_there(full):
                (folders if slash else files).add(first)
        return sorted(files), sorted(folders)

    def has_folder(self, folder: str) -> bool:
        """Say whether a session is shown in or below `folder`."""
        begin = self._begin_of(folder)
        return any(self._is_there(full) for full in self._below().get(begin, ()))

    def _begin_of(self, folder: str) -> str:
        """Return how full names in `folder` begin."""
        return self._prefix + (folder.strip("/") + "/" if folder.strip("/") else "")

    def _below(self) -> dict[str, list[str]]:
        """Return, by folder (with a "/" at its end, or ""), the full names in or below it that may show a session.

        Made anew when a session's folder was made since, or might have been in the same tick of the clock.
        """
        self._refresh()
        state = (os.stat(os.path.join(self._store.path, SESSIONS)).st_mtime_ns, self._seen)
        settled = time.time_ns() - state[0] > TICK_NS
        known, below = self._known
        if state != known:
            below = {}
            for full in self._candidates():
                for end in _folder_ends(full):
                    below.setdefault(full[:end], []).append(full)
            self._known = (state if settled else None, below)
        return below

    def _candidates(self) -> Iterator[str]:
        yield from [full for full, session_id in list(self._names.items()) if session_id is not None]
        for session_id in self._store.ids():
            full = _default_name(session_id)
            if full is not None and session_id not in self._shown and full not in self._names:
                yield full

    def _is_there(self, full: str) -> bool:
        try:
            return self._find(full) is not None
        except (Corrupt, UnsupportedFormat):
            return True

    # -------------------------------------------------------------- the directory

    def _refresh(self) -> None:
        """Take in what the directory says since the last time; every new record changes its folder's time."""
        changed_ns = self._changed_ns()
        if changed_ns is not None and changed_ns == self._unchanged_ns:
            return
        settled = changed_ns is not None and time.time_ns() - changed_ns > TICK_NS
        self._read_lines()
        self._unchanged_ns = changed_ns if settled else None

    def _changed_ns(self) -> int | None:
        for folder in (self._shards, os.path.dirname(self._shards)):  # the first record makes the one in the other
            with suppress(OSError):
                return os.stat(folder).st_mtime_ns
        return None

    def _read_lines(self) -> None:
        try:
            head = self._directory.head()
        except NotFound:
            return
        if head > self._seen:
            with self._lock:
                for record in self._directory.records(self._seen + 1, head) if head > self._seen else ():
                    self._apply(record)
                    self._seen = record.seq

    def _apply(self, record: Record) -> None:
        for line in record.lines() if record.kind != "control" else ():
            entry = decode_line(line, record.seq, "raw")
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                continue  # a later version's
            name, session_id = entry["name"], entry.get("session")
            before = self._names.get(name)
            if before is not None and self._shown.get(before) == name:
                del self._shown[before]
            self._names[name] = session_id
            if session_id is not None:
                self._shown[session_id] = name

    def _change(self, decide: Callable[[], list[Line]]) -> None:
        """Append the lines that `decide` returns, for names as they are just before; none: nothing to do."""
        for _ in range(CHANGES_MAX):
            self._refresh()
            seen = self._seen
            lines = decide()
            if not lines:
                return
            with suppress(Conflict):
                self._directory.append(lines, source=DIRECTORY, if_no_turn_since=seen)
                self._refresh()
                return
        raise refuse(errno.EAGAIN)

    # -------------------------------------------------------------- changing

    def create(self, name: str, bear: Callable[[str], object] | None = None) -> tuple[str, bool]:
        """Give birth to a session that is shown as `name`; return its id, and whether this call made it.

        Where there is one already, its id is returned. A name whose own id is spent takes the next free `<id>~2` ….
        `bear` makes the session, by default an empty one; it raises Conflict or Deleted if the id is somebody's.
        """
        full = self._prefix + name
        for _ in range(CHANGES_MAX):
            info = self.find(name)
            if info is not None:
                return info.id, False
            session_id = self._names.get(full) or self._own_id(full)
            if session_id is None:
                self._change(lambda: self._claim(full))
                continue
            with suppress(Conflict, Deleted):
                (bear or self._store.create)(session_id)
                return session_id, True
            if self._names.get(full) == session_id and self._open_info(session_id) is None:
                self._change(lambda: self._claim(full))  # it was deleted under this name
        raise refuse(errno.EAGAIN, name)

    def _own_id(self, full: str) -> str | None:
        """Return the id that shows as `full` without a line, if no session has it."""
        if not could_be_session(full):
            raise refuse(errno.EINVAL, full)
        session_id = full.removesuffix(SUFFIX)
        return session_id if full not in self._names and self._is_free(session_id) else None

    def _is_free(self, session_id: str) -> bool:
        return session_id != DIRECTORY and session_id not in self._shown and self._info(session_id) is None

    def _claim(self, full: str) -> list[Line]:
        """Return the line that gives `full` to a free id; none if it shows one by now, or one about to be born."""
        named = self._names.get(full)
        info = self._find(full) if named is None else self._info(named)  # one look: between two it might be born
        if info.state == "open" if info is not None else named is not None:
            return []
        stem = full.removesuffix(SUFFIX)
        ids = (stem if number == 1 else f"{stem}~{number}" for number in range(1, IDS_MAX))
        free = next((session_id for session_id in ids if self._is_free(session_id)), None)
        if free is None:
            raise refuse(errno.ENOSPC, full)
        return [{"name": full, "session": free}]

    def unlink(self, name: str) -> str:
        """Show no session as `name` any more; return the id of the one that was. Raises OSError if there is none."""
        gone = ""

        def decide() -> list[Line]:
            nonlocal gone
            info = self._find(self._prefix + name)
            if info is None:
                raise refuse(errno.ENOENT, name)
            gone = info.id
            return self._hidden(self._prefix + name, gone)

        self._change(decide)
        return gone

    def rename(self, old: str, new: str) -> tuple[str, str | None]:
        """Show the session of `old` as `new`; return its id, and that of the session that `new` showed, if any.

        Raises OSError: ENOENT where `old` shows none, EXDEV where no session can be shown as `new`.
        """
        before, after = self._prefix + old, self._prefix + new
        moved, replaced = "", None

        def decide() -> list[Line]:
            nonlocal moved, replaced
            info, there = self._find(before), self._find(after)
            if info is None:
                raise refuse(errno.ENOENT, old)
            if not is_session_target(after):
                raise refuse(errno.EXDEV, new)
            moved, replaced = info.id, there.id if there is not None and before != after else None
            hidden = self._hidden(after, replaced)[1:] if replaced is not None else []
            move: list[Line] = [{"name": before, "session": None}, {"name": after, "session": moved}]
            return [] if before == after else hidden + move

        self._change(decide)
        return moved, replaced

    def _hidden(self, full: str, session_id: str) -> list[Line]:
        """Return the lines after which a session is shown neither as `full` nor under the name of its id."""
        own = _default_name(session_id)
        names = [full] + [own] * (own is not None and own != full and self._names.get(own) is None)
        return [{"name": name, "session": None} for name in names if name is not None]
