"""The system calls of the local backend, one small function each, so that faults and crashes can be injected here.

Everything is relative to a held directory descriptor and never follows a symlink. Linux has unnamed temporary files
and `fdatasync`; macOS has neither, and only F_FULLFSYNC reaches the platter there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache

__all__ = [
    "ForeignObjectError",
    "descriptors_max",
    "flush_data",
    "flush_filesystem",
    "flush_folder",
    "flushes_filesystems",
    "hold",
    "link_named",
    "link_unnamed",
    "make_folder",
    "open_folder",
    "open_named",
    "open_regular",
    "open_unnamed",
    "read_file",
    "read_range",
    "spread_children",
    "supports_unnamed",
    "write_all",
    "write_back",
    "write_parts",
    "write_stream",
]

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_HOLD_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else 0
SMALL_BYTES = 8192  # more than nine of ten records need
BEGUN_BYTES = 8 << 20  # which the disk begins with while more is made
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # flags of sync_file_range(2)
_NO_UNNAMED = (  # not there, or nothing can be made there now: whoever writes is told by the attempt
    *(errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT),
)
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000


class ForeignObjectError(OSError):
    """Something lies where the store has a folder or a regular file of its own."""


def open_folder(name: str, parent: int | None) -> int:
    """Open a folder relative to `parent`; a symlink or a file in its place raises ForeignObjectError."""
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ForeignObjectError(error.errno, "not a folder", name) from error
        raise


def make_folder(name: str, parent: int) -> None:
    """Create a private folder; one that is there already is fine."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return


def _open_to_read(name: str, folder: int) -> int:
    try:
        return os.open(name, _READ_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ForeignObjectError(error.errno, "not a regular file", name) from error
        raise


def open_regular(name: str, folder: int) -> int:
    """Open a regular file for reading; anything else in its place raises ForeignObjectError."""
    fd = _open_to_read(name, folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ForeignObjectError(errno.EINVAL, "not a regular file", name)
    return fd


def hold(name: str, folder: int) -> list[int]:
    """Return a descriptor that keeps a file's inode from being used again; none where the system has no such thing."""
    return [os.open(name, _HOLD_FLAGS, dir_fd=folder)] if _HOLD_FLAGS else []


def read_file(name: str, folder: int) -> bytes:
    """Read a whole regular file; anything else in its place raises ForeignObjectError.

    Most are small: two reads, of which the second finds the end, cost less than two calls of fstat and one read.
    """
    fd = _open_to_read(name, folder)
    try:
        try:
            data = os.pread(fd, SMALL_BYTES, 0)
        except OSError as error:
            if error.errno in (errno.ESPIPE, errno.EISDIR):
                raise ForeignObjectError(error.errno, "not a regular file", name) from error
            raise
        if len(data) == SMALL_BYTES:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ForeignObjectError(errno.EINVAL, "not a regular file", name)
            return data + read_range(fd, SMALL_BYTES, None)
        while more := os.pread(fd, SMALL_BYTES, len(data)):  # a short read is not the end, an empty one is
            data += more
        return data
    finally:
        os.close(fd)


def read_range(fd: int, start: int, length: int | None) -> bytes:
    """Read `length` bytes from `start`, or up to the end as it is now; fewer only at the end of the file."""
    left = max(os.fstat(fd).st_size - start, 0)
    want = left if length is None else min(length, left)
    chunk = os.pread(fd, want, start)
    if len(chunk) == want:
        return chunk
    chunks = [chunk]
    while chunk and (have := sum(map(len, chunks))) < want:
        chunk = os.pread(fd, want - have, start + have)
        chunks.append(chunk)
    return b"".join(chunks)


def supports_unnamed(folder: int) -> bool:
    """Say whether files without a name can be made in `folder` and given one later."""
    if not _UNNAMED or not os.path.isdir("/proc/self/fd"):
        return False
    try:
        os.close(open_unnamed(folder))
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return False
        raise
    return True


def open_unnamed(folder: int) -> int:
    """Create a file without a name in `folder`."""
    return os.open(".", _UNNAMED | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)


def open_named(name: str, folder: int) -> int:
    """Create a new file; one of that name raises FileExistsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)


def link_unnamed(fd: int, name: str, folder: int) -> None:
    """Give an unnamed file a name: linkat(AT_SYMLINK_FOLLOW), which CPython only does with a dir_fd."""
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)


def link_named(temp: str, name: str, folder: int) -> None:
    """Give a named file a second name."""
    os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def write_all(fd: int, part: bytes) -> None:
    """Write every byte of `part`; short writes go on where they stopped."""
    written = os.write(fd, part)
    while written < len(part):
        taken = os.write(fd, memoryview(part)[written:])
        if not taken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        written += taken


def write_stream(fd: int, parts: Iterable[bytes]) -> None:
    """Write all of `parts`, and let the disk begin with the first of many while the others are made."""
    written = 0
    for part in parts:
        write_all(fd, part)
        written += len(part)
        if written >= BEGUN_BYTES:
            _begin_flush(fd)
            written = 0


@cache
def _sync_file_range() -> Callable[[int, int], int] | None:
    """Return sync_file_range(2) of a whole file with flags, which returns the errno or 0; None if there is none."""
    if sys.platform != "linux":
        return None
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda fd, flags: ctypes.get_errno() if call(fd, 0, 0, flags) else 0


def _begin_flush(fd: int) -> None:
    """Ask the disk to begin with what was written to a file; nothing is promised by it."""
    call = _sync_file_range()
    if call is not None:
        call(fd, _WRITE)


def write_back(fd: int) -> None:
    """Return once the disk has what was written to a file, perhaps in its cache; not the file's size and place."""
    call = _sync_file_range()
    number = errno.ENOSYS if call is None else call(fd, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
    if number:
        raise OSError(number, os.strerror(number))


def write_parts(fd: int, parts: Sequence[bytes]) -> None:
    """Write a few buffers with one call where the kernel takes them whole."""
    total = sum(map(len, parts))
    written = os.writev(fd, parts)
    if written < total:
        write_all(fd, b"".join(parts)[written:])


if sys.platform == "darwin":

    def flush_data(fd: int) -> None:
        """Return once the file's data survives a power loss."""
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

    def flush_folder(fd: int) -> None:
        """Return once the folder's names survive a power loss."""
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    flush_data = os.fdatasync
    flush_folder = os.fsync


@cache
def _syncfs() -> Callable[[int], int] | None:
    """Return syncfs(2) where it reports what could not be written: files since Linux 5.8, the journal since 5.17."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or release is None or tuple(map(int, release.groups())) < (5, 17):
        return None
    import ctypes  # which takes longer to load than most processes that append live

    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        return None
    return lambda fd: ctypes.get_errno() if call(fd) else 0


def flushes_filesystems() -> bool:
    """Say whether `flush_filesystem` is to be had and tells of errors."""
    return _syncfs() is not None


def flush_filesystem(fd: int) -> None:
    """Return once everything that was written to the filesystem of `fd`, by anybody, survives a power loss."""
    call = _syncfs()
    number = errno.ENOSYS if call is None else call(fd)
    if number:
        raise OSError(number, os.strerror(number))


def descriptors_max() -> int:
    """Return how many descriptors this process may have open now."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def spread_children(folder: int) -> bool:
    """Ask ext4 to spread the folders made in `folder` over the disk (chattr +T); say whether it could be asked.

    ext4 without a journal makes file creation 5 to 30 times slower for minutes in a block group where many files were
    just deleted, which is what compaction does; sessions spread over block groups do not suffer from each other (39
    instead of 215 us an append over 12 cycles of append and compact, 2026-11-21). With a journal nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        flags = struct.unpack("<I", fcntl.ioctl(folder, _FS_IOC_GETFLAGS, b"\0" * 8)[:4])[0]
        fcntl.ioctl(folder, _FS_IOC_SETFLAGS, struct.pack("<Q", flags | _FS_TOPDIR_FL))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EACCES):
            return False
        raise
    return True
