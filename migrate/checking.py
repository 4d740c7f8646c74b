"""Check: does the store still hold a file as it was imported, and is the source still what was imported?

Rule: both sides are read once, side by side, a record at a time; the source read-only, its access time left alone where
the system lets us. The SHA-256 that the import proved is the arbiter: the side that no longer has it is the one that
changed, and where both have changed, the store's loss is told, because it is the one to act on.
Strategy: while both sides are equal one hash serves both; at the first difference it is copied and each side goes on
with its own. In memory are one record and one chunk of the source.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import msgspec

import shardstore

from .catalog import Entry, path_of, records_of

__all__ = ["SHOWN_BYTES_MAX", "Difference", "Status", "check"]

SHOWN_BYTES_MAX = 80
CONTEXT_BYTES = 16  # bytes of the line that are shown before the first that differs
CHUNK_BYTES = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NO_ATIME = getattr(os, "O_NOATIME", 0)

Status = Literal["grew", "gone", "rewritten", "lacks", "differs", "unreadable"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How store and source differ, and where first.

    `grew`: the source begins with what was imported and goes on for `grew_bytes`. `gone`: no plain file is there; the
    store has all. `rewritten`: the store has all, the source holds other bytes, or is cut short. `lacks`: records are
    missing or unreadable in the store, and `error` is what reading met, if it did. `differs`: the store holds other
    bytes than were imported. `unreadable` is for callers that go on where `check` raises.

    `line` (from 1), `offset` (in bytes) and `seq` tell the first difference, where there is one to point at; `store`
    and `source` are up to 80 bytes of each side from shortly before it, escaped as Python would.
    """

    path: str
    session: str
    status: Status
    line: int | None = None
    offset: int | None = None
    seq: int | None = None
    store: str = ""
    source: str = ""
    grew_bytes: int = 0
    error: Exception | None = None


def check(store: shardstore.Store, entry: Entry) -> Difference | None:
    """Compare what the store holds of a file with the file itself, line by line; None if both are as imported.

    Raises OSError where the source can't be read, Unavailable where the store can't.
    """
    source = _Source(_path_of(entry), entry.size)
    try:
        return _compare(store, entry, source)
    finally:
        source.close()


def _path_of(entry: Entry) -> str:
    try:
        return path_of(entry.path)
    except ValueError as error:
        raise shardstore.Corrupt(f"the catalog holds a path that is none path={entry.path!r}") from error


def _compare(store: shardstore.Store, entry: Entry, source: _Source) -> Difference | None:
    pair = _Pair()
    error: shardstore.ShardstoreError | None = None
    try:
        for seq, payload in _records(store, entry):
            _feed(pair, source, payload, seq)
    except (shardstore.NotFound, shardstore.Corrupt) as caught:
        error = caught
        pair.failed_seq = getattr(caught, "seq", None)
    while chunk := source.read(CHUNK_BYTES):  # what the store lacks
        pair.feed(b"", chunk, None)
    status = _status(entry, pair, source, error)
    if status is None:
        return None
    grew_bytes = source.beyond() if status == "grew" else 0
    if not source.is_there:  # nothing to point at
        return Difference(entry.path, entry.session, status, seq=pair.failed_seq, error=error)
    (line, offset), (ours, theirs) = pair.where(), pair.shown()
    at_seq = pair.failed_seq or pair.seq
    return Difference(entry.path, entry.session, status, line, offset, at_seq, ours, theirs, grew_bytes, error)


def _records(store: shardstore.Store, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """Do what `records_of` does, but yield all before a damaged record, of which the reader takes several at once."""
    last = 0
    try:
        for last, payload in records_of(store, entry):
            yield last, payload
    except shardstore.Corrupt as error:
        seq = getattr(error, "seq", None)
        if seq is not None and seq > last:
            ranges = [(begin, min(end, seq - 1)) for begin, end in entry.ranges if begin < seq]
            before = records_of(store, msgspec.structs.replace(entry, ranges=ranges))
            yield from ((at, payload) for at, payload in before if at > last)
        raise


def _status(entry: Entry, pair: _Pair, source: _Source, error: Exception | None) -> Status | None:
    """Say which side is not what was imported, the store first; None if both are."""
    if error is not None or pair.store_bytes < entry.size:
        return "lacks"
    if pair.store_sha256() != entry.sha256:
        return "differs"
    if not source.is_there:
        return "gone"
    if pair.source_sha256() != entry.sha256:
        return "rewritten"
    return "grew" if source.beyond() else None


def _feed(pair: _Pair, source: _Source, payload: bytes, seq: int) -> None:
    """Compare one record with as many bytes of the source, a chunk at a time."""
    if len(payload) <= CHUNK_BYTES:
        pair.feed(payload, source.read(len(payload)), seq)
        return
    for begin in range(0, len(payload), CHUNK_BYTES):
        ours = payload[begin : begin + CHUNK_BYTES]
        pair.feed(ours, source.read(len(ours)), seq)


class _Pair:
    """Both sides, fed piece by piece: their hashes, and the first place where they differ."""

    def __init__(self) -> None:
        self._both = hashlib.sha256()
        self._source = self._both
        self.store_bytes = 0
        self.offset: int | None = None
        self.seq: int | None = None
        self.failed_seq: int | None = None
        self._line = 1
        self._before = b""  # the end of the line so far, while both are equal
        self._ours = b""
        self._theirs = b""

    def feed(self, ours: bytes, theirs: bytes, seq: int | None) -> None:
        """Take the next bytes of both sides; one of them may have fewer, or none any more."""
        if self.offset is None and ours == theirs:
            self._both.update(ours)
            self._pass(ours)
        else:
            if self.offset is None:
                self._differ(ours, theirs, seq)
            else:
                self._ours += ours[: max(SHOWN_BYTES_MAX - len(self._ours), 0)]
                self._theirs += theirs[: max(SHOWN_BYTES_MAX - len(self._theirs), 0)]
            self._both.update(ours)
            self._source.update(theirs)
        self.store_bytes += len(ours)

    def _pass(self, equal: bytes) -> None:
        self._line += equal.count(b"\n")
        self._before = (self._before + equal[-CONTEXT_BYTES:])[-CONTEXT_BYTES:].rpartition(b"\n")[2]

    def _differ(self, ours: bytes, theirs: bytes, seq: int | None) -> None:
        at = _first_difference(ours, theirs)
        self.offset = self.store_bytes + at
        self.seq = seq
        self._pass(ours[:at])
        self._source = self._both.copy()
        self._ours = (self._before + ours[at : at + SHOWN_BYTES_MAX])[:SHOWN_BYTES_MAX]
        self._theirs = (self._before + theirs[at : at + SHOWN_BYTES_MAX])[:SHOWN_BYTES_MAX]

    def store_sha256(self) -> str:
        return self._both.hexdigest()

    def source_sha256(self) -> str:
        return self._source.hexdigest()

    def where(self) -> tuple[int | None, int | None]:
        """Return line and offset of the first difference."""
        return (None, None) if self.offset is None else (self._line, self.offset)

    def shown(self) -> tuple[str, str]:
        """Return what each side holds there, up to the end of its line, printable."""
        return _printable(self._ours), _printable(self._theirs)


def _first_difference(ours: bytes, theirs: bytes) -> int:
    """Return the first index at which two pieces differ, by halving."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _printable(data: bytes) -> str:
    line = data[: data.find(b"\n") + 1 or None]
    return repr(line)[2:-1]


class _Source:
    """The source, read once from its beginning, no further than `size` bytes. `is_there` is False if it is gone."""

    def __init__(self, path: str, size: int) -> None:
        self._left = size
        self._size = size
        fd = _open(path)
        self._file = None if fd < 0 else os.fdopen(fd, "rb", buffering=CHUNK_BYTES)
        self.is_there = self._file is not None

    def read(self, length: int) -> bytes:
        """Return the next `length` bytes; fewer at the end."""
        if self._file is None:
            return b""
        data = self._file.read(min(length, self._left))
        self._left -= len(data)
        return data

    def beyond(self) -> int:
        """Return how many bytes lie beyond `size` now."""
        return 0 if self._file is None else max(os.fstat(self._file.fileno()).st_size - self._size, 0)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


def _open(path: str) -> int:
    """Open a source to read it; -1 if no file is there any more."""
    fd = -1
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            fd = os.open(path, _FLAGS | _NO_ATIME)
        except PermissionError:  # somebody else's file: reading it may change its access time
            if not _NO_ATIME:
                raise
            fd = os.open(path, _FLAGS)
    if fd >= 0 and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return -1
    return fd
