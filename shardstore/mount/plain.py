"""The plain folder beneath a mount: every file that is no session, with the semantics of the filesystem it lies on.

Rule: all calls go relative to a descriptor that was opened before anything was mounted over the folder, and none of
them follows a symlink: the kernel resolves those before it asks. One system call an operation, wherever one is enough.
Strategy: the methods are the callbacks of libfuse as mfusepy names them, so the class can be mounted as it is; the
filesystem of sessions is built on top of it, and `benchmarks/mount.py` compares the two.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from shardstore.mount.refusals import refuse

__all__ = ["Attributes", "PlainFolder", "Times", "below"]

Attributes = dict[str, Any]
Times = tuple[int, int]

ATTRIBUTES_VALID_S = 1.0
_CREATED = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_DROPPED = os.O_CREAT | os.O_EXCL | os.O_NOCTTY  # the kernel has seen to these; what is opened is there already
_NOW_NS, _OMIT_NS = (1 << 30) - 1, (1 << 30) - 2  # UTIME_NOW and UTIME_OMIT, beside 0 seconds
_STATVFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


def below(path: str) -> str:
    """Return the path that libfuse names, relative to the folder beneath."""
    return path[1:] or "."


def _moment(given_ns: int, now_ns: int, kept_ns: int) -> int:
    return now_ns if given_ns == _NOW_NS else kept_ns if given_ns == _OMIT_NS else given_ns


def _type_of(entry: os.DirEntry[str]) -> int:
    """Return a name's type, which the listing tells without another call."""
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG


class PlainFolder:
    """A passthrough to the folder that the descriptor `folder` holds. Every method raises OSError as its call does.

    The number of a handle is the number of its descriptor.
    """

    use_ns = True

    def __init__(self, folder: int) -> None:
        self.folder = folder

    def init_with_config(self, _connection: Any, config: Any) -> None:
        """Choose how libfuse works for us, once it is mounted.

        Names are looked up anew each time, which brings the attributes along, so every `stat` of a path is fresh; for
        a second they also answer an `fstat`. A rename over an open file is one step (`hard_remove`): libfuse's other
        way, to rename what is open out of the way first, leaves a moment without any file under the name. The price:
        libfuse knows files by their paths, so an `fstat` of an open file that was removed or replaced meanwhile may
        answer ESTALE. Reading and writing it go on.
        """
        config.entry_timeout = config.negative_timeout = 0.0
        config.attr_timeout = ATTRIBUTES_VALID_S
        config.hard_remove = config.use_ino = 1

    # -------------------------------------------------------------- attributes

    def getattr(self, path: str | None, fi: Any = None) -> Attributes:
        """Return the attributes of a path, or of an open file that has none any more; times in ns."""
        found = os.fstat(fi.fh) if path is None else os.stat(below(path), dir_fd=self.folder, follow_symlinks=False)
        return {
            "st_mode": found.st_mode,
            "st_ino": found.st_ino,
            "st_nlink": found.st_nlink,
            "st_uid": found.st_uid,
            "st_gid": found.st_gid,
            "st_rdev": found.st_rdev,
            "st_size": found.st_size,
            "st_blocks": found.st_blocks,
            "st_atime": found.st_atime_ns,
            "st_mtime": found.st_mtime_ns,
            "st_ctime": found.st_ctime_ns,
        }

    def chmod(self, path: str | None, mode: int, fi: Any = None) -> int:
        """Change the permissions."""
        if path is None:
            os.fchmod(fi.fh, mode)
        else:
            os.chmod(below(path), mode, dir_fd=self.folder)
        return 0

    def chown(self, path: str | None, uid: int, gid: int, fi: Any = None) -> int:
        """Change the owner; -1 leaves one as it is."""
        if path is None:
            os.fchown(fi.fh, uid, gid)
        else:
            os.chown(below(path), uid, gid, dir_fd=self.folder, follow_symlinks=False)
        return 0

    def utimens(self, path: str | None, times: Times | None = None, fi: Any = None) -> int:
        """Set access and modification time, in ns; to now without any."""
        times = times or (_NOW_NS, _NOW_NS)
        if not {_NOW_NS, _OMIT_NS}.isdisjoint(times):
            there, now_ns = self.getattr(path, fi), time.time_ns()
            access_ns, change_ns = times
            times = (
                _moment(access_ns, now_ns, there["st_atime"]),
                _moment(change_ns, now_ns, there["st_mtime"]),
            )
        if path is None:
            os.utime(fi.fh, ns=times)
        else:
            os.utime(below(path), ns=times, dir_fd=self.folder, follow_symlinks=False)
        return 0

    def statfs(self, _path: str) -> Attributes:
        """Return the facts of the filesystem that holds the folder."""
        found = os.fstatvfs(self.folder)
        return {name: getattr(found, name) for name in _STATVFS}

    # -------------------------------------------------------------- files

    def create(self, path: str, mode: int, fi: Any) -> int:
        """Create and open a file; O_EXCL and O_TRUNC among the flags hold."""
        fi.fh = os.open(below(path), fi.flags | _CREATED, mode, dir_fd=self.folder)
        return 0

    def open(self, path: str, fi: Any) -> int:
        """Open a file."""
        flags = fi.flags & ~_DROPPED | os.O_NOFOLLOW | os.O_CLOEXEC
        fi.fh = os.open(below(path), flags, dir_fd=self.folder)
        return 0

    def read(self, _path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end."""
        return os.pread(fi.fh, size, offset)

    def write(self, _path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """Write at `offset`, or at the end of a file that was opened to append; return how many bytes."""
        return os.pwrite(fi.fh, data, offset)

    def flush(self, _path: str | None, _fi: Any) -> int:
        """Do nothing: what was written is written. Called at each close of a descriptor."""
        return 0

    def release(self, _path: str | None, fi: Any) -> int:
        """Close the file, after the last descriptor that shares the handle."""
        os.close(fi.fh)
        return 0

    def fsync(self, _path: str | None, data_only: int, fi: Any) -> int:
        """Make what was written survive a power loss."""
        (os.fdatasync if data_only else os.fsync)(fi.fh)
        return 0

    def truncate(self, path: str | None, length: int, fi: Any = None) -> int:
        """Cut the file at `length` bytes, or extend it by zeros."""
        if fi is not None:
            os.ftruncate(fi.fh, length)
            return 0
        opened = os.open(below(path or "/"), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.ftruncate(opened, length)
        finally:
            os.close(opened)
        return 0

    # -------------------------------------------------------------- names

    def unlink(self, path: str) -> int:
        """Remove a name of a file; who holds it open keeps it."""
        os.unlink(below(path), dir_fd=self.folder)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """Rename, over whatever is there, in one step; `flags` are refused, and callers know what to do then."""
        if flags:
            raise refuse(errno.EINVAL, new)
        os.rename(below(old), below(new), src_dir_fd=self.folder, dst_dir_fd=self.folder)
        return 0

    def link(self, target: str, source: str) -> int:
        """Give the file `source` the second name `target`."""
        os.link(below(source), below(target), src_dir_fd=self.folder, dst_dir_fd=self.folder, follow_symlinks=False)
        return 0

    def symlink(self, target: str, source: str) -> int:
        """Make the symlink `target` that leads to `source`."""
        os.symlink(source, below(target), dir_fd=self.folder)
        return 0

    def readlink(self, path: str) -> str:
        """Return where a symlink leads."""
        return os.readlink(below(path), dir_fd=self.folder)

    # -------------------------------------------------------------- folders

    def mkdir(self, path: str, mode: int) -> int:
        """Make a folder."""
        os.mkdir(below(path), mode, dir_fd=self.folder)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty folder."""
        os.rmdir(below(path), dir_fd=self.folder)
        return 0

    def readdir(self, path: str, _handle: int) -> Iterator[tuple[str, Attributes, int]]:
        """Yield (name, mode and inode, 0) of everything in a folder."""
        with os.scandir(self._opened_folder(path)) as entries:
            yield from ((name, {"st_mode": stat.S_IFDIR, "st_ino": 1}, 0) for name in (".", ".."))
            for entry in entries:
                yield entry.name, {"st_mode": _type_of(entry), "st_ino": entry.inode()}, 0

    def fsyncdir(self, path: str, _data_only: int, _handle: int) -> int:
        """Make the names in a folder survive a power loss."""
        opened = self._opened_folder(path)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
        return 0

    def _opened_folder(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(below(path), flags, dir_fd=self.folder)
