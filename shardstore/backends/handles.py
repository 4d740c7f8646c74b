"""What the local backend holds open: folders, objects it has seen, files that have no name yet.

Rule: each closes its descriptor when its last user lets go of it, so that evicting one from a cache never pulls it
from under a call that is running in another thread.
"""

from __future__ import annotations

import os
from itertools import count

from shardstore.backends import syscalls
from shardstore.backends.base import Seen
from shardstore.backends.groupsync import GroupSync
from shardstore.layout import TEMP_PREFIX

__all__ = ["Folder", "Held", "Removed", "Temp"]


class _TempNames:
    """Names that no other process has: its id, 64 random bits (ids repeat across containers), a number."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin again with other random bits: in a forked child, or where a name is taken all the same."""
        self._prefix = f"{TEMP_PREFIX}{os.getpid()}-{os.urandom(8).hex()}-"
        self._numbers = count()

    def new(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"


_names = _TempNames()
os.register_at_fork(after_in_child=_names.renew)


class Held:
    """A descriptor that keeps an object's inode from being reused, and the object's bytes."""

    __slots__ = ("dev", "fd", "ino", "seen")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.dev, self.ino = status.st_dev, status.st_ino
        self.seen = Seen(syscalls.read_range(fd, 0, None))

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        close(self.fd)


class Folder:
    """A held folder: its descriptor, the flush its threads share, what was last seen in it, the hint's descriptor.

    `removed` are files that were unlinked here and whose unlinking is not durable yet: as long as they are held, their
    inodes are no other file's. Without a journal a power loss brings such a name back, and the inode behind it may be
    another session's folder by then (ext4, 2026-11-21: fsck removed that folder).
    """

    __slots__ = ("fd", "group", "held", "hint_fd", "removed", "settled", "used")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.group = GroupSync(lambda: syscalls.flush_folder(fd))
        self.held: dict[str, Held] = {}
        self.hint_fd = -1
        self.removed: list[Removed] = []
        self.settled = False
        self.used = False

    def sync(self) -> None:
        """Make every name durable that was made or removed here; let go of what was removed before."""
        removed, self.removed = self.removed, []
        self.group.sync()
        removed.clear()  # not those that were removed after the flush had begun

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        close(self.fd)
        if self.hint_fd >= 0:
            close(self.hint_fd)


class Removed:
    """A file that was unlinked, held by a descriptor so that its inode is not used again yet."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]
        close(self.fd)


class Temp:
    """A complete file that has no final name yet; `name` is empty where the file has no name at all."""

    __slots__ = ("fd", "folder", "name")

    def __init__(self, folder: Folder, *, unnamed: bool) -> None:
        self.folder = folder
        if unnamed:
            self.name = ""
            self.fd = syscalls.open_unnamed(folder.fd)
            return
        self.name = _names.new()
        try:
            self.fd = syscalls.open_named(self.name, folder.fd)
        except FileExistsError:  # a child that Python does not know to be one
            _names.renew()
            self.name = _names.new()
            self.fd = syscalls.open_named(self.name, folder.fd)

    def link(self, name: str) -> bool:
        """Give the file its final name; False if that is taken."""
        try:
            if self.name:
                syscalls.link_named(self.name, name, self.folder.fd)
            else:
                syscalls.link_unnamed(self.fd, name, self.folder.fd)
        except FileExistsError:
            return False
        except OSError:
            if os.fstat(self.fd).st_nlink <= (1 if self.name else 0):
                raise
            return True  # it took effect all the same, and what is visible is never withdrawn
        return True

    def close(self) -> None:
        """Let go of the descriptor and of the temporary name; a name that can't be removed now is swept later."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        if self.name:
            try:
                os.unlink(self.name, dir_fd=self.folder.fd)
            except OSError:
                return
