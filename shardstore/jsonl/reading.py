"""A session's view as a raw file: bytes by offset, read as they are needed.

Rule: an offset is one of the view's bytes, and a byte that was read never changes; so a reader that has met the end
reads on when somebody has appended. Strategy: walk the records in blocks and remember, every quarter of a megabyte,
where a block began: any offset is found by walking from the last such mark before it. In memory is one block.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

from shardstore.forksafe import ForkSafeLock
from shardstore.session import Session

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["ViewFile", "warn_unclosed"]

MARK_BYTES = 256 << 10
READ_BYTES = 1 << 20


class _Mark(NamedTuple):
    """Where a block begins: its offset in the view, its first seq, whether what precedes lacks its final newline."""

    offset: int
    seq: int
    lacking: bool


class _View:
    """The view's bytes; `mark` stands behind the piece in hand."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._marks = [_Mark(0, 1, False)]
        self._blocks: Iterator[tuple[int, list[bytes]]] | None = None
        self._piece = b""
        self.mark = self._marks[0]

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on, at least one unless the end lies at or before it."""
        if offset < self.mark.offset - len(self._piece):  # a walk to the end leaves no piece: it is read again
            self._restart(bisect_right(self._marks, offset, key=lambda mark: mark.offset))
        while offset >= self.mark.offset:
            if not self._advance():
                return b""
        at = offset - (self.mark.offset - len(self._piece))
        return self._piece[at : at + size]

    def go_behind(self, last: int | None) -> _Mark:
        """Go behind the record `last` (or the end), where the next one would begin; nothing counts as delivered."""
        if last is not None and self.mark.seq > last + 1:
            self._restart(bisect_right(self._marks, last + 1, key=lambda mark: mark.seq))
        blocks = self._session.payload_blocks(self.mark.seq, last, delivered=False)
        while self._take(blocks):
            pass
        self._blocks, self._piece = None, b""
        return self.mark

    def _restart(self, marks: int) -> None:
        self.mark = self._marks[marks - 1]
        self._blocks, self._piece = None, b""

    def _advance(self) -> bool:
        """Take the next block in hand; False at the end, which a walk that began earlier may have met too early."""
        blocks, self._blocks = self._blocks, None  # after an error the walk begins anew
        if blocks is None or not self._take(blocks):
            blocks = self._session.payload_blocks(self.mark.seq)
            if not self._take(blocks):
                return False
        self._blocks = blocks
        return True

    def _take(self, blocks: Iterator[tuple[int, list[bytes]]]) -> bool:
        for last, payloads in blocks:
            piece, lacking = _joined(payloads, self.mark.lacking)
            self._piece, self.mark = piece, _Mark(self.mark.offset + len(piece), last + 1, lacking)
            if self.mark.offset - self._marks[-1].offset >= MARK_BYTES:
                self._marks.append(self.mark)
            return True
        return False


def _joined(payloads: list[bytes], lacking: bool) -> tuple[bytes, bool]:
    """Return the view's bytes of some records, and whether the last of them lacks its newline."""
    lines = [payload if payload[-1] == 10 else payload + b"\n" for payload in payloads if payload]
    if not lines:
        return b"", lacking
    whole = (b"\n" if lacking else b"") + b"".join(lines)
    lacks = [payload for payload in payloads if payload][-1][-1] != 10
    return (whole[:-1] if lacks else whole), lacks


class ViewFile(io.RawIOBase):
    """What `FileIO` is to a plain file; `unsent` returns what its own handle will append, shown behind the end."""

    def __init__(
        self, session: Session, name: str | bytes, mode: str, unsent: Callable[[], bytes] = lambda: b""
    ) -> None:
        super().__init__()
        self.name = name
        self.mode = mode
        self._view = _View(session)
        self._unsent = unsent
        self._position = 0
        self._guard = ForkSafeLock()

    def __repr__(self) -> str:
        state = "[closed]" if self.closed else f"name={self.name!r} mode={self.mode!r}"
        return f"<shardstore.jsonl.ViewFile {state}>"

    def readable(self) -> bool:
        """Say that it can be read."""
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

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read some bytes into `buffer`; 0 at the end, which is there only until somebody appends."""
        self._check_open()
        with memoryview(buffer).cast("B") as target:
            data = self._read(len(target))
            target[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return everything up to the end."""
        self._check_open()
        pieces = iter(lambda: self._read(READ_BYTES), b"")
        return b"".join(pieces)

    def _read(self, size: int) -> bytes:
        with self._guard.lock:
            data = self._view.read(self._position, size) if size else b""
            if size and not data and (tail := self._tail()):
                at = max(self._position - self._view.mark.offset, 0)
                data = tail[at : at + size]
            self._position += len(data)
            return data

    def _tail(self) -> bytes:
        unsent = self._unsent()
        return b"\n" + unsent if unsent and self._view.mark.lacking else unsent

    def tell(self) -> int:
        """Return the offset in the view's bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset of the view's bytes; one behind the end is met when others have appended that much."""
        self._check_open()
        offset = index(offset)
        if whence not in (0, 1, 2):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        with self._guard.lock:
            origin = self.end() if whence == 2 else self._position if whence == 1 else 0
            if origin + offset < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self._position = origin + offset
            return self._position

    def end(self, last: int | None = None) -> int:
        """Return the offset behind the record `last`; without it, or with bytes still to be sent, that of the end."""
        mark = self._view.go_behind(None if self._unsent() else last)
        return mark.offset + len(self._tail())

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _dealloc_warn(self, source: object) -> None:
        warn_unclosed(source)

    def __del__(self) -> None:
        """Close; whatever wraps this file has warned and closed it by now."""
        if not self.closed:
            warn_unclosed(self)
            self.close()

    def __getstate__(self) -> Any:
        """Refuse to be pickled or copied, as files do."""
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


def warn_unclosed(source: object) -> None:
    """Warn of a file that nobody closed, as the interpreter does."""
    warnings.warn(f"unclosed file {source!r}", ResourceWarning, stacklevel=3, source=source)
