"""A source file, read once from its beginning: its lines, and what is learnt of it on the way.

Rule: opened read-only, and never touched in any other way (not even its access time, where the system lets us). Lines
end at LF bytes and nowhere else. A line is in memory once, whatever its length; besides it one chunk.
Strategy: the reader hashes and counts whole chunks, so that nothing is paid a line but the cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO

__all__ = ["CHUNK_BYTES", "Mark", "SourceFile", "holds_lines", "is_begun_by"]

CHUNK_BYTES = 1 << 20
MARK_BYTES = 4096
FRESH_NS = 1_000_000_000  # a file that was written to so lately may be written to still
WRITE_S = 0.02  # longer than one write takes
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NO_ATIME = getattr(os, "O_NOATIME", 0)


Mark = tuple[int, bytes, bytes]  # how far a file was read, and the first and the last bytes of that


def holds_lines(name: str) -> bool:
    """Say whether a file of that name should hold an entry on each line; of others, nothing counts as odd."""
    return (".jsonl" in name and not name.endswith((".zst", ".gz"))) or name.endswith(".ndjson")


class SourceFile:
    """An open transcript. `size`, `lines` and `sha256()` tell of what has been yielded so far.

    `aside`: a thread computes the hash, which pays for large files.
    """

    def __init__(self, path: str, *, aside: bool = False) -> None:
        self.path = path
        self._fd = _open(path)
        self.status = os.fstat(self._fd)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        self._hash = hashlib.sha256()
        self._hashing = _Aside() if aside else None
        self.size = 0
        self.lines = 0
        self._first = self._last = b""
        self._waited = False

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def at_ms(self) -> int:
        """When the file was last written, in ms since 1970; 0 if that was before."""
        return max(self.status.st_mtime_ns, 0) // 1_000_000

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._hashing is not None:
            self._hashing.close()

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes yielded so far, in hex digits."""
        if self._hashing is not None:
            self._hashing.wait()
        return self._hash.hexdigest()

    def batches(self, *, unfinished: bool = True) -> Iterator[list[bytes]]:
        """Yield all lines up to the end of the file as it is when that is reached, some at a time.

        A last line without a newline is yielded only if `unfinished`. It may be called again once the file has grown,
        and goes on where it stopped. Raises OSError.
        """
        self.status = os.fstat(self._fd)
        while chunk := os.pread(self._fd, CHUNK_BYTES, self.size):
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                line = self._long_line()
                if not line:  # cut meanwhile
                    return
                if not line.endswith(b"\n") and unfinished and self._is_being_written():
                    continue
                if line.endswith(b"\n") or unfinished:
                    self._taken(line, 1)
                    yield [line]
                    continue
                return
            lines = BytesIO(chunk).readlines()  # split at LF alone, in half the time of `split`
            if cut < len(chunk):
                lines.pop()
            self._taken(memoryview(chunk)[:cut], len(lines))
            del chunk
            yield lines
            del lines

    def _taken(self, data: bytes | memoryview, lines: int) -> None:
        if self._hashing is None:
            self._hash.update(data)
        else:
            self._hashing.do(self._hash.update, data)
        self.size += len(data)
        self.lines += lines
        if len(self._first) < MARK_BYTES:
            self._first += data[: MARK_BYTES - len(self._first)]
        last = bytes(data[-MARK_BYTES:])
        self._last = last if len(last) == MARK_BYTES else (self._last + last)[-MARK_BYTES:]

    def _long_line(self) -> bytes:
        """Return the line that begins here: its length is found first, so that it is in memory once."""
        end = self.size
        while chunk := os.pread(self._fd, CHUNK_BYTES, end):
            found = chunk.find(b"\n") + 1
            end += found or len(chunk)
            if found:
                break
        line = os.pread(self._fd, end - self.size, self.size)
        while len(line) < end - self.size:  # more than one call gives, or the file was cut meanwhile
            more = os.pread(self._fd, end - self.size - len(line), self.size + len(line))
            if not more:
                break
            line += more
        return line

    def lines_at(self, begin: int, size: int) -> list[bytes]:
        """Return the lines in a range that begins with one, as they are now; nothing else changes."""
        data = os.pread(self._fd, size, begin)
        while len(data) < size and (more := os.pread(self._fd, size - len(data), begin + len(data))):
            data += more
        if data.find(b"\n") in (-1, len(data) - 1):
            return [data] if data else []
        return BytesIO(data).readlines()

    def skip(self, size: int) -> bool:
        """Read over the first `size` bytes, which are hashed and counted as yielded; False if there are fewer."""
        while self.size < size:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, size - self.size), self.size)
            if not chunk:
                return False
            self._taken(chunk, chunk.count(b"\n"))
        return True

    def goes_on_with(self, data: bytes) -> bool:
        """Say whether `data` is what comes next; if so, read over it, without a hash."""
        for at in range(0, len(data), CHUNK_BYTES):
            piece = data[at : at + CHUNK_BYTES]  # no copy of all of a smaller one
            if os.pread(self._fd, len(piece), self.size) != piece:
                return False
            self.size += len(piece)
        return True

    def ends_line(self) -> bool:
        """Say whether the last byte that was yielded or skipped is a newline."""
        return self.size > 0 and os.pread(self._fd, 1, self.size - 1) == b"\n"

    def mark(self) -> Mark:
        """Return what was yielded or skipped so far, by its two ends."""
        return self.size, self._first, self._last

    def holds(self, mark: Mark) -> bool:
        """Say whether the file still has what was marked, as far as its two ends tell."""
        size, first, last = mark
        there = os.pread(self._fd, len(first), 0) == first and os.pread(self._fd, len(last), size - len(last)) == last
        return there and os.fstat(self._fd).st_size >= self.size

    def has_changed(self) -> bool:
        """Say whether what was yielded is no longer what the file begins with; it is read again if that may be so."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) == (self.status.st_size, self.status.st_mtime_ns):
            return False
        digest, size = hashlib.sha256(), 0
        while chunk := os.pread(self._fd, min(CHUNK_BYTES, self.size - size), size):
            digest.update(chunk)
            size += len(chunk)
        return digest.hexdigest() != self.sha256()

    def _is_being_written(self) -> bool:
        """Say, once, that a line without its newline may be half of a write; wait for the other half."""
        if self._waited or time.time_ns() - os.fstat(self._fd).st_mtime_ns > FRESH_NS:
            return False
        self._waited = True
        time.sleep(WRITE_S)
        return True


def is_begun_by(path: str, pieces: Iterator[bytes], size: int) -> bool:
    """Say whether the file now begins with `pieces`, and these are `size` bytes."""
    with SourceFile(path) as source:
        for piece in pieces:
            if not source.goes_on_with(piece):
                return False
        return source.size == size


class _Aside:
    """A thread that does one thing at a time, in order: hashing leaves the interpreter to others."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def do(self, call: Callable[[bytes | memoryview], None], data: bytes | memoryview) -> None:
        """Have `call(data)` done, once what came before it is."""
        self.wait()
        self._last = self._pool.submit(call, data)

    def wait(self) -> None:
        """Return once nothing is left to do."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Let go of the thread."""
        self._pool.shutdown()


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS | _NO_ATIME)
    except PermissionError:  # somebody else's file: reading it may change its access time
        if not _NO_ATIME:
            raise
        return os.open(path, _FLAGS)
