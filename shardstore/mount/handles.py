"""What a mount does to sessions by name: opening, making, renaming, replacing, putting away.

Rule: names are decided by the directory alone (see `names`), in one record a change; flags on a session (archived,
deleted) follow it and decide nothing that is shown. Sessions in use are remembered, within bounds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from shardstore.errors import Deleted, NotFound
from shardstore.mount.files import SessionFile
from shardstore.mount.holders import descriptors, processes
from shardstore.mount.image import ShapeMaker
from shardstore.mount.looks import Looks
from shardstore.mount.names import Names, could_be_session
from shardstore.mount.opened import Opened
from shardstore.mount.refusals import refuse, translated
from shardstore.record import NewRecord
from shardstore.session import Session, SessionInfo
from shardstore.store import RECORD_BYTES_MAX, Store

__all__ = ["Facts", "SessionFile", "Sessions", "inode_of"]

OPENED_MAX = 4096  # sessions that are remembered although no file of them is open
ROOM_EVERY = 16  # sessions that come into use before it is looked for room again
IMAGES_BYTES_MAX = 128 << 20  # memory that the images of those may take


@dataclass(frozen=True, slots=True)
class Facts:
    """What stat says of a session: `size_bytes` is exact, times are in ms since 1970, `ino` has 63 bits and stays."""

    id: str
    size_bytes: int
    mtime_ms: int
    created_ms: int
    ino: int


class Sessions:
    """A store as session files by name; safe to share between threads.

    `prefix`: only sessions whose ids begin with it and "/", shown without. `shape` makes what decides, for one session,
    which bytes are shown. With `purge`, what is unlinked or replaced by a rename is deleted, otherwise archived. Every
    call raises OSError, and no other error of the engine or of the files.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "",
        shape: ShapeMaker | None = None,
        purge: bool = False,
        source: str = "mount",
    ) -> None:
        self.names = Names(store, prefix)
        self._store = store
        self.looks = Looks()
        self._shape = shape
        self._purge = purge
        self._source = source
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._files: set[SessionFile] = set()

    @property
    def purges(self) -> bool:
        """Whether what is removed is deleted for good."""
        return self._purge

    # -------------------------------------------------------------- asking

    @translated
    def resolve(self, name: str) -> str | None:
        """Return the id of the session that is shown as `name`, None if there is none."""
        info = self.names.find(name)
        return None if info is None else info.id

    @translated
    def holds(self, name: str, content: BinaryIO) -> bool:
        """Say whether a session that is shown as `name` or was begins with `content`, archived ones included."""
        for session in self.names.may_hold(name):
            content.seek(0)
            with suppress(NotFound, Deleted):
                if _begins_with(session, content):
                    return True
        return False

    @translated
    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of files and folders that sessions imply directly in `folder` ("" for the mount), sorted."""
        return self.names.listing(folder)

    @translated
    def has_folder(self, folder: str) -> bool:
        """Say whether a session lies in or below `folder`."""
        return self.names.has_folder(folder)

    @translated
    def head(self, name: str) -> int | None:
        """Return the last seq of the session shown as `name`, None if there is none."""
        info = self.names.find(name)
        return None if info is None else info.head

    @translated
    def facts(self, name: str, *, exact: bool = True) -> Facts | None:
        """Return what stat says of the session shown as `name`, None if there is none.

        Unless `exact`, size and time of small content may be those of up to a second ago, which takes a third as long.
        """
        info = self.names.find(name, head=None if exact else 0)
        if info is None:
            return None
        opened = self._open(info.id)
        with opened.lock:
            image = opened.image(info.head) if exact else opened.known() or opened.image()
            return Facts(info.id, image.size, image.at_ms or info.created_at_ms, info.created_at_ms, inode_of(info.id))

    def _found(self, name: str) -> SessionInfo:
        info = self.names.find(name)
        if info is None:
            raise refuse(errno.ENOENT, name)
        return info

    def _open(self, session_id: str, *, users: int = 0) -> Opened:
        with self._lock:
            opened = self._opened.get(session_id)
            if opened is None:
                if len(self._opened) % ROOM_EVERY == 0:
                    self._make_room()
                session = self.names.session(session_id)
                opened = self._opened[session_id] = Opened(session, self.looks, self._source, self._shape)
            self._opened.move_to_end(session_id)
            opened.users += users
            return opened

    def _make_room(self) -> None:
        idle = [(session_id, opened) for session_id, opened in self._opened.items() if not opened.users]
        count, size = len(idle), sum(opened.memory_bytes for _, opened in idle)
        for session_id, opened in idle:
            if count < OPENED_MAX and size <= IMAGES_BYTES_MAX:
                return
            count, size = count - 1, size - opened.memory_bytes
            del self._opened[session_id]

    # -------------------------------------------------------------- files

    @translated
    def open(self, name: str, flags: int, pid: int) -> SessionFile:
        """Open the session shown as `name`. Raises ENOENT if there is none."""
        info = self._found(name)
        return self._file(info.id, flags, pid, head=info.head)

    @translated
    def open_known(self, facts: Facts, flags: int, pid: int) -> SessionFile:
        """Open the session whose facts were asked for a moment ago, without asking again for its name.

        Who only appends does not care how much it shows.
        """
        only_appends = flags & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC) == os.O_WRONLY | os.O_APPEND
        return self._file(facts.id, flags, pid, head=0 if only_appends else None)

    @translated
    def create(self, name: str, flags: int, pid: int) -> SessionFile:
        """Open the session shown as `name`; make it if there is none. Raises EEXIST for O_EXCL if there is one."""
        if not could_be_session(name):
            raise refuse(errno.EINVAL, name)
        session_id, made = self.names.create(name)
        if not made and flags & os.O_EXCL:
            raise refuse(errno.EEXIST, name)
        return self._file(session_id, flags, pid, made=made)

    def _file(
        self, session_id: str, flags: int, pid: int, *, made: bool = False, head: int | None = None
    ) -> SessionFile:
        process = self.looks.process(pid)
        if made:
            self.looks.saw(process, session_id, 0)
        opened = self._open(session_id, users=1)
        try:
            file = SessionFile(opened, flags, process, self._forget, head)
        except BaseException:
            with self._lock:
                opened.users -= 1
            raise
        with self._lock:
            self._files.add(file)
        return file

    def close_one(self, file: SessionFile, path: str, thread: int) -> None:
        """Commit what waits in a file of which a descriptor was closed, unless a line is cut and others hold it."""
        if not file.is_cut or not self._is_held(file, path, thread):
            file.flush()

    def _is_held(self, file: SessionFile, path: str, thread: int) -> bool:
        """Say whether somebody has more descriptors on the path than it opened other files there."""
        with self._lock:
            others = [other.opener for other in self._files if other is not file and other.id == file.id]
        holders = processes(thread, file.opener)
        return any(descriptors(process, path) > others.count(process) for process in holders)

    def _forget(self, file: SessionFile, opened: Opened) -> None:
        with self._lock:
            self._files.discard(file)
            opened.users -= 1

    # -------------------------------------------------------------- by name

    @translated
    def truncate(self, name: str, length: int, pid: int) -> None:
        """Cut what the session shows to `length` bytes, at once; more than it shows changes nothing."""
        file = self.open(name, os.O_WRONLY, pid)
        try:
            file.truncate(length)
        finally:
            file.release()

    @translated
    def unlink(self, name: str) -> None:
        """Archive (or purge) the session shown as `name`, which is shown no more. Raises ENOENT if there is none."""
        self._put_away(self.names.unlink(name))

    @translated
    def rename(self, old: str, new: str) -> None:
        """Show the session of `old` as `new`; one that was shown as `new` is put away as by `unlink`.

        Under a name `*.jsonl.<anything>` it counts as archived. Raises ENOENT, and EXDEV where `new` can't be a
        session's: `mv` copies then, and unlinks.
        """
        moved, replaced = self.names.rename(old, new)
        if replaced is not None:
            self._put_away(replaced)
        if old == new:
            return
        session = self.names.session(moved)
        if could_be_session(new):
            session.unarchive()
        else:
            session.archive()

    def _put_away(self, session_id: str) -> None:
        session = self.names.session(session_id)
        if self._purge:
            session.delete()
        else:
            session.archive()

    @translated
    def replace(self, name: str, content: BinaryIO, seen_at: int | None, pid: int) -> None:
        """Make `content` what the session shown as `name` shows, as by a rename over it; make it if there is none.

        `seen_at` is the head when the content began to be written, where that is known: what was appended since then,
        or since the last look of the process, is shown after the content.
        """
        data = content.read(RECORD_BYTES_MAX + 1)
        if len(data) > RECORD_BYTES_MAX:
            raise refuse(errno.EFBIG, name)
        records = [NewRecord(payload=data, source=self._source)] if data else []
        process = self.looks.process(pid)
        session_id, made = self.names.create(name, lambda id_: self._store.import_session(id_, records))
        if made:
            self.looks.saw(process, session_id, len(records))
            return
        opened, look = self._open(session_id), self.looks.last(process, session_id)
        known = [seq for seq in (seen_at, look) if seq is not None]
        opened.put(data, min(known) if known else opened.session.head(), process)

    @translated
    def sync(self, name: str) -> None:
        """Make all that the session shown as `name` holds survive a power loss. Raises ENOENT if there is none."""
        self.names.session(self._found(name).id).sync()

    def close(self) -> None:
        """Commit what open files have not committed yet, and let go of them; raises the first error, at the end."""
        errors = []
        for file in list(self._files):
            try:
                file.release()
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _begins_with(session: Session, content: BinaryIO) -> bool:
    for piece in session.iter_jsonl():
        part = content.read(len(piece))
        if len(part) < len(piece):
            return piece.startswith(part)
        if part != piece:
            return False
    return not content.read(1)


def inode_of(thing: str) -> int:
    """Return the inode number of a session (by its id), or of a folder (by its name and a slash).

    It stays, under every name of a session: 63 bits of a hash, never below 2.
    """
    return int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), "little") >> 1 | 2
