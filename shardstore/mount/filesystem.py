"""What a mount shows: sessions as `.jsonl` files, everything else as it lies in the plain folder beneath.

Rule: which of the two a path is, is decided anew at every call, by what the store's directory of names says; an open
file stays what it was. A session has two faces. In the folder itself its attributes never change, however much is
appended, so that a program that compares them has nothing to trip over; `.real/`, which no listing shows, is the same
folder with true sizes and times.
Plain files beneath with a session's name (transcripts that were imported) are never shown: once their session was put
away, a program would go on with what was theirs.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shardstore.mount.asked import Asked
from shardstore.mount.attributes import of_folder, of_session
from shardstore.mount.handles import Facts, SessionFile, Sessions
from shardstore.mount.names import could_be_session, is_session_target
from shardstore.mount.plain import Attributes, PlainFolder, Times, below
from shardstore.mount.refusals import refuse

__all__ = ["REAL", "Filesystem"]

REAL = ".real"
FIRST_HANDLE = 1 << 32  # above any descriptor, which are the handles of plain files
BIRTHS_MAX = 4_096  # plain files whose creation is remembered
UNKNOWN_INODE = 0xFFFFFFFF  # in listings, as libfuse has it
_T = TypeVar("_T")


@dataclass(slots=True)
class _Open:
    """An open session: the file, its name then, and its facts when they were last asked for (None: not yet)."""

    file: SessionFile
    name: str
    facts: Facts | None


@dataclass(frozen=True, slots=True)
class _Birth:
    """Who created a plain file, and the head of the session whose name it may be given (None: not known)."""

    creator: int
    head: int | None


def _is_hidden(name: str, mode: int) -> bool:
    return stat.S_ISREG(mode) and could_be_session(name)


def _meant(name: str) -> str | None:
    """Return the session's name that a temporary file is probably meant for: `x.jsonl` for `.x.jsonl.tmp`."""
    folder, last = os.path.split(name)
    stem, dot, rest = last.removeprefix(".").partition(".jsonl")
    return os.path.join(folder, stem + dot) if dot and (rest or last.startswith(".")) else None


class Filesystem(PlainFolder):
    """The callbacks of a mount over `sessions` and the plain folder; `caller` tells who asks.

    With `real` the folder itself has true attributes as well. `ready` is called once when programs are answered.
    """

    home = ""  # where it is mounted: what the paths of open files begin with

    def __init__(
        self,
        folder: int,
        sessions: Sessions,
        *,
        caller: Callable[[], int],
        real: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(folder)
        self._sessions = sessions
        self._caller = caller
        self._always_real = real
        self._ready = ready
        self._open: dict[int, _Open] = {}
        self._handles = itertools.count(FIRST_HANDLE)
        self._asked = Asked()
        self._births: OrderedDict[int, _Birth] = OrderedDict()
        self._births_lock = threading.Lock()

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Begin to answer."""
        super().init_with_config(connection, config)
        self._ready()

    def destroy(self, _path: str) -> None:
        """Commit what open files hold of lines that have not ended; the mount is gone."""
        self._sessions.close()

    def _where(self, path: str) -> tuple[str, bool]:
        """Return (name in the folder, whether true attributes are wanted)."""
        name = path[1:]
        if name == REAL or name.startswith(f"{REAL}/"):
            return name[len(REAL) + 1 :], True
        return name, self._always_real

    def _session(self, name: str) -> bool:
        return is_session_target(name) and self._sessions.resolve(name) is not None

    # -------------------------------------------------------------- attributes

    def getattr(self, path: str | None, fi: Any = None) -> Attributes:
        """Return the attributes of a session, a folder or a plain file."""
        name, real = self._where(path) if path is not None else ("", False)
        opened = self._open.get(fi.fh) if fi is not None else None
        facts = self._facts(name, exact=real)
        if opened is not None:
            opened.facts = facts = facts or opened.facts
        if facts is not None:
            own = opened is not None and (real or opened.file.rewrites)
            size = opened.file.size_bytes if opened and own else facts.size_bytes
            return of_session(facts, size, real=real)
        if path is None:
            return super().getattr(path, fi)
        try:
            plain = super().getattr(f"/{name}")
        except FileNotFoundError:
            if name.endswith(".jsonl") or not self._sessions.has_folder(name):  # no folder of sessions is called so
                raise
            return of_folder(name)
        if _is_hidden(name, plain["st_mode"]):
            raise refuse(errno.ENOENT, name)
        return plain

    def _facts(self, name: str, *, exact: bool) -> Facts | None:
        """Return the facts of the session that is shown under a name, and remember them for who opens it next."""
        if not is_session_target(name):
            return None
        return self._asked.ask(name, lambda: self._sessions.facts(name, exact=exact))

    def _passed_on(self, path: str | None, fi: Any) -> str | None:
        """Return the plain path that an attribute is to be set of; "" for a session, whose attributes stay."""
        if path is None:
            return "" if fi.fh in self._open else None
        name, _ = self._where(path)
        return "" if self._session(name) else f"/{name}"

    def chmod(self, path: str | None, mode: int, fi: Any = None) -> int:
        """Change the permissions of a plain file; those of a session stay 0600."""
        plain = self._passed_on(path, fi)
        return 0 if plain == "" else super().chmod(plain, mode, fi)

    def chown(self, path: str | None, uid: int, gid: int, fi: Any = None) -> int:
        """Change the owner of a plain file; a session's stays."""
        plain = self._passed_on(path, fi)
        return 0 if plain == "" else super().chown(plain, uid, gid, fi)

    def utimens(self, path: str | None, times: Times | None = None, fi: Any = None) -> int:
        """Set the times of a plain file; those of a session are facts."""
        plain = self._passed_on(path, fi)
        return 0 if plain == "" else super().utimens(plain, times, fi)

    def create(self, path: str, mode: int, fi: Any) -> int:
        """Create and open a file: a session if its name is a session's."""
        name, real = self._where(path)
        if self._session(name) or could_be_session(name):
            return self._opened(name, self._sessions.create(name, fi.flags, self._caller()), fi, real)
        self._housed(name, lambda: super(Filesystem, self).create(f"/{name}", mode, fi))
        self._remember(name, fi.fh)
        return 0

    def open(self, path: str, fi: Any) -> int:
        """Open a session, or a plain file. What the kernel has looked up just before is not looked up again."""
        name, real = self._where(path)
        facts = self._asked.fresh(name)
        if facts is not None:
            return self._opened(name, self._sessions.open_known(facts, fi.flags, self._caller()), fi, real)
        if is_session_target(name):
            with suppress(FileNotFoundError):
                return self._opened(name, self._sessions.open(name, fi.flags, self._caller()), fi, real)
        super().open(f"/{name}", fi)
        if fi.flags & os.O_TRUNC:
            self._remember(name, fi.fh)  # it may replace a session as a new file may
        return 0

    def _opened(self, name: str, file: SessionFile, fi: Any, real: bool) -> int:
        """Keep an open session; the kernel is to ask for every read, whatever the size says."""
        fi.fh = next(self._handles)
        fi.direct_io = 1
        file.shows_size = real
        self._open[fi.fh] = _Open(file, name, self._asked.last(name))
        return 0

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end."""
        opened = self._open.get(fi.fh)
        return super().read(path, size, offset, fi) if opened is None else opened.file.read(size, offset)

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """Write; every line of a session that this ends is committed when it returns."""
        opened = self._open.get(fi.fh)
        return super().write(path, data, offset, fi) if opened is None else opened.file.write(data, offset)

    def flush(self, path: str | None, fi: Any) -> int:
        """Commit what the program that closes has written."""
        opened = self._open.get(fi.fh)
        if opened is not None:
            self._sessions.close_one(opened.file, self.home + (path or f"/{opened.name}"), self._caller())
        return 0

    def release(self, path: str | None, fi: Any) -> int:
        """Let go of the file."""
        opened = self._open.pop(fi.fh, None)
        if opened is None:
            return super().release(path, fi)
        opened.file.release()
        return 0

    def fsync(self, path: str | None, data_only: int, fi: Any) -> int:
        """Make what was written survive a power loss."""
        opened = self._open.get(fi.fh)
        if opened is None:
            return super().fsync(path, data_only, fi)
        opened.file.fsync()
        return 0

    def truncate(self, path: str | None, length: int, fi: Any = None) -> int:
        """Cut the file; of a session a new generation begins, and the log keeps the old one."""
        opened = self._open.get(fi.fh) if fi is not None else None
        if opened is not None:
            opened.file.truncate(length)
            return 0
        name, _ = self._where(path) if path is not None else ("", False)
        if fi is None and self._session(name):
            self._sessions.truncate(name, length, self._caller())
            return 0
        return super().truncate(f"/{name}", length, fi)

    def unlink(self, path: str) -> int:
        """Remove a name; a session is archived."""
        name, _ = self._where(path)
        if not self._session(name):
            return super().unlink(f"/{name}")
        self._keep_folder(name)
        try:
            self._sessions.unlink(name)
            if self._sessions.purges:  # what was brought in and lies beneath, too
                with suppress(FileNotFoundError):
                    super().unlink(f"/{name}")
        finally:
            self._asked.forget(name)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """Rename a session or a plain file; a plain file over a session's name becomes its content."""
        source, target = self._where(old)[0], self._where(new)[0]
        if flags:
            raise refuse(errno.EINVAL, new)
        try:
            self._rename(source, target)
        finally:
            self._asked.forget(source, target)
        return 0

    def _rename(self, source: str, target: str) -> None:
        if self._session(source):
            self._keep_folder(source)
            self._sessions.rename(source, target)
            if not could_be_session(target):  # what is hidden stays
                with suppress(FileNotFoundError):
                    super().unlink(f"/{target}")
        elif self._sessions.has_folder(source):
            raise refuse(errno.EXDEV, source)
        elif (could_be_session(target) or self._session(target)) and self._is_file(source):
            self._replace(source, target)
        else:
            self._housed(target, lambda: super(Filesystem, self).rename(f"/{source}", f"/{target}"))

    def _is_file(self, name: str) -> bool:
        mode = os.stat(below(f"/{name}"), dir_fd=self.folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):  # it would be hidden, or keep a session from its name
            raise refuse(errno.EPERM, name)
        return stat.S_ISREG(mode)

    def _replace(self, source: str, target: str) -> None:
        """Commit a plain file as a session's new content, then remove it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(source, flags, dir_fd=self.folder), "rb") as content:
            with self._births_lock:
                birth = self._births.pop(os.fstat(content.fileno()).st_ino, None)
            self._sessions.replace(target, content, self._seen(target, birth), self._caller())
        os.unlink(source, dir_fd=self.folder)

    def _seen(self, target: str, birth: _Birth | None) -> int | None:
        """Return what the creator of a plain file had seen of the session, for where its renamer never looked."""
        id_ = self._sessions.resolve(target)
        seqs = () if birth is None or id_ is None else (birth.head, self._sessions.looks.last(birth.creator, id_))
        return min((seq for seq in seqs if seq is not None), default=None)

    def _remember(self, name: str, descriptor: int) -> None:
        """Keep what its creator had seen when a plain file began that may replace a session."""
        meant = _meant(name)
        head = None if meant is None else self._sessions.head(meant)
        creator = self._sessions.looks.process(self._caller())
        if name.endswith(".jsonl~") and (id_ := self._sessions.resolve(name[:-1])) is not None:
            self._sessions.looks.backs_up(creator, id_)
        with self._births_lock:
            self._births[os.fstat(descriptor).st_ino] = _Birth(creator, head)
            if len(self._births) > BIRTHS_MAX:
                self._births.popitem(last=False)

    def _no_session(self, *names: str) -> None:
        for name in names:
            if could_be_session(name) or self._session(name):
                raise refuse(errno.EPERM, name)

    def link(self, target: str, source: str) -> int:
        """Give a plain file a second name; a session has none but its own."""
        names = self._where(target)[0], self._where(source)[0]
        self._no_session(*names)
        return self._housed(names[0], lambda: super(Filesystem, self).link(f"/{names[0]}", f"/{names[1]}"))

    def symlink(self, target: str, source: str) -> int:
        """Make a symlink under a name that is no session's."""
        name, _ = self._where(target)
        self._no_session(name)
        return self._housed(name, lambda: super(Filesystem, self).symlink(f"/{name}", source))

    def readlink(self, path: str) -> str:
        """Return where a symlink leads."""
        return super().readlink(f"/{self._where(path)[0]}")

    # -------------------------------------------------------------- folders

    def _housed(self, name: str, call: Callable[[], _T]) -> _T:
        """Make a call that needs the plain folder of `name`; make that first if only sessions imply it."""
        try:
            return call()
        except FileNotFoundError:
            folder = os.path.dirname(name)
            if not folder or not self._sessions.has_folder(folder):
                raise
        self._housed(folder, lambda: super(Filesystem, self).mkdir(f"/{folder}", 0o700))
        return call()

    def _keep_folder(self, name: str) -> None:
        """Make the plain folder of a session that goes: a folder stays when its last file is removed."""
        folder = os.path.dirname(name)
        if folder:
            with suppress(OSError):  # it is there, or can't be made, which keeps nobody from removing a file
                self._housed(folder, lambda: super(Filesystem, self).mkdir(f"/{folder}", 0o700))

    def mkdir(self, path: str, mode: int) -> int:
        """Make a folder."""
        name, _ = self._where(path)
        if self._session(name) or self._sessions.has_folder(name):
            raise refuse(errno.EEXIST, path)
        if could_be_session(name):  # what would lie in it has no place, and renamed, would be hidden
            raise refuse(errno.EPERM, path)
        return self._housed(name, lambda: super(Filesystem, self).mkdir(f"/{name}", mode))

    def rmdir(self, path: str) -> int:
        """Remove an empty folder."""
        name, _ = self._where(path)
        if self._sessions.has_folder(name):
            raise refuse(errno.ENOTEMPTY, path)
        return super().rmdir(f"/{name}")

    def readdir(self, path: str, handle: int) -> Iterator[tuple[str, Attributes, int]]:
        """Yield what lies in a folder: sessions, then folders that they imply, then plain files."""
        name, _ = self._where(path)
        files, folders = self._sessions.listing(name)
        told = {*files, *folders}
        for kind, names in ((stat.S_IFREG, files), (stat.S_IFDIR, folders)):
            yield from ((one, {"st_mode": kind, "st_ino": UNKNOWN_INODE}, 0) for one in names)
        try:
            for item in super().readdir(f"/{name}", handle):
                if item[0] not in told and not _is_hidden(os.path.join(name, item[0]), item[1]["st_mode"]):
                    yield item
        except FileNotFoundError:
            if not told:
                raise
            yield from ((dots, {"st_mode": stat.S_IFDIR, "st_ino": 1}, 0) for dots in (".", ".."))

    def fsyncdir(self, path: str, data_only: int, handle: int) -> int:
        """Make the names in a folder survive a power loss, the sessions' too."""
        name, _ = self._where(path)
        self._sessions.sync(name)
        try:
            return super().fsyncdir(f"/{name}", data_only, handle)
        except FileNotFoundError:
            if name.endswith(".jsonl") or not self._sessions.has_folder(name):  # no folder of sessions is called so
                raise
            return 0
