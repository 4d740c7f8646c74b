"""The image of a session: the bytes that a mount shows, and which record each offset belongs to.

Rule: an image only grows. It shows the records in seq order, each with a LF at its end, the store's own ones not; from
a rewrite on there is another image, of a new generation: the rewrite's content, then what its writer had not seen.
An image of an older generation goes on with what is appended, so that offsets into it stay right.
Strategy: the bytes are kept in memory while they are few and in an unnamed file beyond that, where the kernel keeps
what is used; nothing is read twice, and a shape (which depends on what came before) never runs again.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import BinaryIO

from shardstore.record import Record
from shardstore.rewrite import Rewrite, decode_rewrite, is_rewrite
from shardstore.session import Session
from shardstore.shapes import Shape

__all__ = ["Image", "ShapeMaker", "whole"]

MEMORY_BYTES_MAX = 4 << 20  # of one image; a larger one lies in an unnamed file

ShapeMaker = Callable[[], Shape]


def whole(payload: bytes) -> bytes:
    """Return a payload as it is shown: with a LF at its end, if it is not empty."""
    return payload if payload.endswith(b"\n") or not payload else payload + b"\n"


class _Bytes:
    """Bytes that are only appended to; in memory up to a bound, then in a file that has no name."""

    def __init__(self) -> None:
        self.size = 0
        self._memory = bytearray()
        self._file: BinaryIO | None = None

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def memory_bytes(self) -> int:
        return len(self._memory) if self._file is None else MEMORY_BYTES_MAX

    def append(self, data: bytes) -> None:
        if self._file is None and self.size + len(data) > MEMORY_BYTES_MAX:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the image
            _write(file.fileno(), self._memory, 0)
            self._file, self._memory = file, bytearray()
        if self._file is None:
            self._memory += data
        else:
            _write(self._file.fileno(), data, self.size)
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self._file is None:
            return bytes(memoryview(self._memory)[offset : offset + size])
        return os.pread(self._file.fileno(), size, offset)


def _write(fd: int, data: bytes | bytearray, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


class Image:
    """What one session shows, up to record `seq`, in one generation (the seq of the rewrite it stands on, or 0).

    Not to be used by two threads at once; whoever shares it has the lock. Every method that reads the store raises what
    `Session.records` does.
    """

    def __init__(self, session: Session, shape: ShapeMaker | None = None) -> None:
        self.generation = 0
        self.seq = 0
        self.at_ms = 0  # of the last record
        self._session = session
        self._make_shape = shape
        self._shape = shape() if shape else None
        self._base = 0  # the records above it have a place of their own, in `_ends`
        self._content_bytes = 0
        self._ends = array("Q")
        self._bytes = _Bytes()

    @property
    def size(self) -> int:
        """The number of bytes shown."""
        return self._bytes.size

    @property
    def memory_bytes(self) -> int:
        """How much memory the image takes, about; one that lies in a file counts as if it were as large as may be."""
        return self._bytes.memory_bytes + 8 * len(self._ends)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on, fewer only at the end of what is known."""
        return self._bytes.read(offset, size)

    def seq_at(self, offset: int) -> int:
        """Return the last seq whose bytes, and those of all before it, end at or before `offset`.

        Within a rewrite's content, it is the last one that its writer had seen.
        """
        if offset < self._content_bytes:
            return self._base
        return self._base + bisect_right(self._ends, offset)

    def end_of(self, seq: int) -> int | None:
        """Return the offset at which everything up to `seq` ends; None if the image did not exist at `seq`."""
        if seq < self.generation or seq < self._base:
            return None
        place = min(seq, self.seq) - self._base
        return self._ends[place - 1] if place else self._content_bytes

    def shown(self, seq: int) -> bytes:
        """Return what is shown of a record that has a place of its own."""
        place = seq - self._base
        begin = self._ends[place - 2] if place > 1 else self._content_bytes
        return self.read(begin, self._ends[place - 1] - begin)

    def advanced(self, upto: int) -> Image:
        """Take the records up to `upto`; return the image of the newest generation, which may be another one."""
        if upto <= self.seq:
            return self
        image = self
        for record in self._session.records(self.seq + 1, upto):
            if is_rewrite(record):
                image = image._rewritten(record)
            image.take(record)
        return image

    def extend(self, upto: int) -> None:
        """Take the records up to `upto` and stay in this generation."""
        if upto > self.seq:
            for record in self._session.records(self.seq + 1, upto):
                self.take(record)

    def take(self, record: Record) -> None:
        """Take the record at `seq` + 1."""
        assert record.seq == self.seq + 1
        self._add(self._shown(record), record)

    def _add(self, shown: bytes, record: Record) -> None:
        if shown:
            self._bytes.append(shown)
        self._ends.append(self._bytes.size)
        self.seq = record.seq
        self.at_ms = max(self.at_ms, record.at_ms)

    def _shown(self, record: Record) -> bytes:
        if self._shape is not None:
            return self._shape.shown(record)
        return b"" if record.kind == "control" else whole(record.payload)

    def _rewritten(self, record: Record) -> Image:
        """Return the image that a rewrite begins, up to the record before it."""
        rewrite = decode_rewrite(record)
        image = Image(self._session, self._make_shape)
        image._begin(rewrite, record)
        if rewrite.seen < self.seq:
            for later in self._session.records(rewrite.seen + 1, self.seq):
                image._add(b"" if rewrite.replaces(later.seq) else image._shown(later), later)
        return image

    def _begin(self, rewrite: Rewrite, record: Record) -> None:
        nonce, at_ms = record.nonce, record.at_ms
        known = Record(rewrite.seen, "turn", record.source, at_ms, None, None, nonce, rewrite.content)
        self._bytes.append(self._shown(known))  # for a shape, too, it comes before the records that follow it
        self._content_bytes = self._bytes.size
        self.generation, self.seq, self._base = record.seq, rewrite.seen, rewrite.seen
