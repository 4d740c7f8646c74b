"""Completed lines become records: the file that appends, alone or together with reading.

Rule: a byte that `write` took is committed exactly once, in its place among this handle's bytes, or is still held when
the file is closed in vain. Only complete lines go out, all that one call completed as one record; what another handle
appends lies before or behind them, never between. Strategy: a record on its way is remembered until it is known to be
committed; after an answer that leaves it in doubt (OutcomeUnknown, or Ctrl-C in the middle) it is looked for first.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Any

from shardstore.errors import Deleted, InvalidRequest, OutcomeUnknown, ShardstoreError
from shardstore.forksafe import ForkSafeLock
from shardstore.jsonl.reading import ViewFile, warn_unclosed
from shardstore.record import Kind, Record
from shardstore.session import Session

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["AppendReader", "Appender", "Recorder"]


class _Outgoing:
    """A record on its way. It is `in_doubt` while it may have been committed without our knowing."""

    __slots__ = ("at_ms", "in_doubt", "nonce", "payload")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.at_ms = time.time_ns() // 1_000_000
        self.nonce: str | None = None
        self.in_doubt = False


class Recorder:
    """Holds bytes until they are lines, and appends those to a session."""

    def __init__(self, session: Session, kind: Kind, source: str) -> None:
        self.session = session
        self._kind: Kind = kind
        self._source = source
        self._outgoing: _Outgoing | None = None
        self._held = bytearray()  # what follows it
        self._complete = 0  # bytes of it that are complete lines
        self.last = 0  # this handle's last record, or one below it

    def unsent(self) -> bytes:
        """Return what was taken and is not known to be committed."""
        return (self._outgoing.payload if self._outgoing else b"") + bytes(self._held)

    def take(self, data: bytes) -> None:
        """Hold `data` and commit what it completes. InvalidRequest takes none of it; any other error leaves it held."""
        older, before, complete = self._outgoing, len(self._held), self._complete
        self._held += data
        if end := data.rfind(b"\n") + 1:
            self._complete = before + end
        try:
            self.send()
        except InvalidRequest:
            if self._outgoing is not older:
                self._held, self._outgoing = bytearray(self.unsent()), None
            del self._held[before:]
            self._complete = complete
            raise

    def send(self, *, everything: bool = False) -> None:
        """Commit the lines that are complete, or all that is held."""
        if self._outgoing:
            self._commit(self._outgoing)
        size = len(self._held) if everything else self._complete
        if size:
            outgoing, rest = _Outgoing(bytes(self._held[:size])), self._held[size:]
            self._outgoing, self._held, self._complete = outgoing, rest, 0  # no signal can fall between these
            self._commit(outgoing)

    def drop(self) -> None:
        """Forget what can never be committed."""
        self._outgoing, self._held, self._complete = None, bytearray(), 0

    def _commit(self, outgoing: _Outgoing) -> None:
        if outgoing.in_doubt and self._found(outgoing):
            self._outgoing = None
            return
        outgoing.nonce, outgoing.in_doubt = None, True
        try:
            receipt = self.session.append(
                outgoing.payload,
                kind=self._kind,
                source=self._source,
                base=self.session.delivered,
                at_ms=outgoing.at_ms,
            )
        except OutcomeUnknown as error:
            outgoing.nonce = error.nonce
            raise
        except ShardstoreError:
            outgoing.in_doubt = False
            raise
        self.last, self._outgoing = receipt.seq, None

    def _found(self, outgoing: _Outgoing) -> bool:
        """Say whether the record is in the log after all, and then see to it that it is durable, or raise."""
        for record in self.session.records(self.last + 1):
            if record.nonce == outgoing.nonce if outgoing.nonce else self._resembles(record, outgoing):
                self.session.settle()
                self.last = record.seq
                return True
        return False

    def _resembles(self, record: Record, outgoing: _Outgoing) -> bool:
        """Say whether this is our record, interrupted before its nonce was told: same bytes, lane and millisecond."""
        return (record.payload, record.kind, record.source, record.at_ms) == (
            outgoing.payload,
            self._kind,
            self._source,
            outgoing.at_ms,
        )


class Appender(io.BufferedIOBase):
    """What `BufferedWriter` is to a plain file opened with O_APPEND.

    While `opening`, a tell only says whether there is anything, which is what a TextIOWrapper asks it for at first.
    """

    def __init__(self, recorder: Recorder, name: str | bytes, mode: str, *, anywhere: bool) -> None:
        super().__init__()
        self.name = name
        self.mode = mode
        self.opening = False
        self._anywhere = anywhere  # a write goes to the end wherever the position is
        self._recorder = recorder
        self._raw = ViewFile(recorder.session, name, mode, recorder.unsent)
        self._guard = ForkSafeLock()
        self._writing_pid = 0
        self._at_end = True  # the position is behind what this handle wrote last

    def __repr__(self) -> str:
        return f"<shardstore.jsonl.{type(self).__name__} name={self.name!r} mode={self.mode!r}>"

    def writable(self) -> bool:
        """Say that it can be written."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Say that any offset can be sought."""
        self._check_open()
        return True

    def isatty(self) -> bool:
        """Say that it is no terminal."""
        self._check_open()
        return False

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of `data`, commit what it completes, return its length in bytes."""
        taken = io.BytesIO()
        size = taken.write(data)
        self._check_open("write to closed file")
        if not size:
            return 0
        with self._guard.lock:
            if not self._anywhere:
                self._require_end()
            self._alone(lambda: self._recorder.take(taken.getvalue()))
            self._moved()
        return size

    def flush(self) -> None:
        """Commit complete lines that an earlier call could not; what lacks its newline goes on waiting for it."""
        self._check_open("flush of closed file")
        with self._guard.lock:
            self._alone(self._recorder.send)

    def close(self) -> None:
        """Commit the rest and close. Where that fails and may succeed later, the file stays open: close it again."""
        if self.closed:
            return
        with self._guard.lock:
            try:
                self._alone(lambda: self._recorder.send(everything=True))
            except (Deleted, InvalidRequest):
                self._recorder.drop()
                self._shut()
                raise
            self._shut()

    def _shut(self) -> None:
        super().close()
        self._raw.close()

    def tell(self) -> int:
        """Return the position; after a write that is the end as this handle knows it."""
        self._check_open()
        with self._guard.lock:
            if self.opening:
                return min(self._recorder.last, 1)
            return self._settled().tell()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset of the view's bytes."""
        if whence not in (0, 1, 2):
            raise ValueError(f"whence value {whence} unsupported")
        self._check_open("seek of closed file")
        offset = index(offset)
        with self._guard.lock:
            return self._settled(whence == 1).seek(offset, whence)

    def truncate(self, _size: int | None = None, /) -> int:
        """Refuse: records never change."""
        self._check_open("truncate of closed file")
        raise io.UnsupportedOperation("truncate: records never change")

    def _file(self) -> io.RawIOBase | io.BufferedReader:
        """Return the file that has the position."""
        return self._raw

    def _moved(self) -> None:
        """Note that something was written."""
        self._at_end = True

    def _settled(self, needed: bool = True) -> io.RawIOBase | io.BufferedReader:
        """Return the file that has the position, at it where that is `needed`."""
        file = self._file()
        if self._at_end and needed:
            file.seek(self._raw.end(self._recorder.last))
        self._at_end = False
        return file

    def _require_end(self) -> None:
        if self._at_end:
            return
        here = self._file().tell()
        if here != self._raw.end():
            raise io.UnsupportedOperation(
                f"records never change: seek(0, 2) before writing, or open with 'a' (at {here})"
            )

    def _alone(self, call: Callable[[], None]) -> None:
        """Make a call that a signal handler may not interrupt with another one, as files do."""
        if self._writing_pid == os.getpid():
            raise RuntimeError(f"reentrant call inside {self!r}")
        if self._writing_pid:  # a child, forked while another thread was writing: the parent commits that
            self._recorder.drop()
        self._writing_pid = os.getpid()
        try:
            call()
        finally:
            self._writing_pid = 0

    def _check_open(self, message: str = "I/O operation on closed file") -> None:
        if self.closed:
            raise ValueError(message)

    def _dealloc_warn(self, source: object) -> None:
        warn_unclosed(source)

    def __del__(self) -> None:
        """Commit the rest, and warn that nobody closed the file."""
        if not self.closed:
            warn_unclosed(self)
            self.close()

    def __getstate__(self) -> Any:
        """Refuse to be pickled or copied, as files do."""
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


class AppendReader(Appender):
    """What `BufferedRandom` is to a plain file opened with O_APPEND."""

    def __init__(self, recorder: Recorder, name: str | bytes, mode: str, *, anywhere: bool) -> None:
        super().__init__(recorder, name, mode, anywhere=anywhere)
        self._reader: io.BufferedReader = io.BufferedReader(self._raw)

    def _file(self) -> io.BufferedReader:
        return self._reader

    def _moved(self) -> None:
        super()._moved()
        self._reader.detach()  # it may hold what was still to be appended, which now lies elsewhere
        self._reader = io.BufferedReader(self._raw)

    def _to_read(self) -> io.BufferedReader:
        if not self.closed:  # else the reader says so
            self._settled()
        return self._reader

    def readable(self) -> bool:
        """Say that it can be read."""
        self._check_open()
        return True

    def peek(self, size: int = 0, /) -> bytes:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().peek(size)

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().read1(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().readinto(buffer)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().readinto1(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        """See io.BufferedReader."""
        with self._guard.lock:
            return self._to_read().readline(size)
