"""One open session file: what its reads and writes do.

Rule: a write that returned is committed, but for a last line that waits for its newline until the file is closed or
synced. Appending takes no copy and no look at what others do. A file that is overwritten gets a copy of its own, which
is committed as a whole when it is closed or synced; until then the others see what was there.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from shardstore.mount.image import Image
from shardstore.mount.opened import Opened
from shardstore.mount.refusals import refuse, translated
from shardstore.store import RECORD_BYTES_MAX

__all__ = ["SessionFile"]

IDLE_S = 10.0  # of reading at the end without a pause: whoever copies by the size shown would never end
PAUSE_S = 0.001
COPY_BYTES_MAX = 8 << 20  # of a copy in memory; a larger one lies in an unnamed file


class SessionFile:
    """An open session file; safe to share between threads. Made by `Sessions`; raises nothing but OSError.

    `released` is called when the last user has let go of it; `head` is the session's, if it was just asked for.
    """

    @translated
    def __init__(
        self,
        opened: Opened,
        flags: int,
        process: int,
        released: Callable[[SessionFile, Opened], None],
        head: int | None = None,
    ) -> None:
        self.id = opened.session.id
        self.flags = flags
        self._on_release = released
        self._opened = opened
        self._process = process
        self._lock = threading.RLock()
        self._partial = b""
        self._copy: BinaryIO | None = None
        self._seen = 0  # what the copy stands in the place of
        self._released = False
        self.shows_size = False  # the size that stat says of it is the right one
        self._idle_since_s = self._idle_s = 0.0  # since when reads find nothing, and when the last one did
        with opened.lock:
            self._image = opened.image(head)
        self._end = self._image.size  # what is known to lie below it; a write from there on appends
        if flags & os.O_TRUNC and self._writable:
            self._begin_copy(0)

    @property
    def _writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    @translated
    def size_bytes(self) -> int:
        """The size of what this file shows."""
        with self._lock:
            return self._image_now().size if self._copy is None else self._copy.seek(0, os.SEEK_END)

    @property
    def rewrites(self) -> bool:
        """Whether this file has content of its own that is not committed yet."""
        return self._copy is not None

    @property
    def opener(self) -> int:
        """The id of the process that opened it."""
        return self._process & 0xFFFFFFFF

    @property
    def is_cut(self) -> bool:
        """Whether what is not committed yet ends in the midst of a line."""
        with self._lock:
            copy = self._copy
            if copy is None:
                return bool(self._partial)
            copy.seek(max(0, copy.seek(0, os.SEEK_END) - 1))
            return copy.read(1) not in (b"", b"\n")

    def _image_now(self) -> Image:
        with self._opened.lock:
            self._opened.catch_up(self._image)
            return self._image

    @translated
    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer only at the end.

        Raises EBADF if opened for writing alone, EIO to who reads at the end again and again without a pause.
        """
        if self.flags & os.O_ACCMODE == os.O_WRONLY:
            raise refuse(errno.EBADF)
        with self._lock:
            if self._copy is not None:
                self._copy.seek(offset)
                return self._copy.read(size)
            with self._opened.lock:
                data = self._image.read(offset, size)
                if len(data) < size:
                    self._opened.catch_up(self._image)
                    data = self._image.read(offset, size)
                seq = self._image.seq_at(offset + len(data))
            self._end = max(self._end, offset + len(data))
            self._count_idle(found=bool(data))
        if data or offset == self._image.size:
            self._opened.looks.saw(self._process, self.id, seq)
        return data

    def _count_idle(self, *, found: bool) -> None:
        now_s = time.monotonic()
        if found or now_s - self._idle_s > PAUSE_S:
            self._idle_since_s = now_s
        self._idle_s = now_s
        if now_s - self._idle_since_s > IDLE_S and not self.shows_size:
            raise refuse(errno.EIO)

    @translated
    def write(self, data: bytes, offset: int) -> int:
        """Write all of `data`; whole lines at the end are committed when this returns.

        A write at the end, or beyond it, appends, wherever that is by now. Raises EBADF, EFBIG, or why it could not be
        committed.
        """
        if not self._writable or self._released:
            raise refuse(errno.EBADF)
        with self._lock:
            appends = bool(self.flags & os.O_APPEND)
            if self._copy is None and (appends or offset >= min(self._end, self._image.size)):
                self._append(data)
                self._end = offset + len(data)
                return len(data)
            if self._copy is None:
                self._begin_copy(None)
            assert self._copy is not None
            end = self._copy.seek(0, os.SEEK_END)
            at = end if appends else min(offset, end)
            if at + len(data) > RECORD_BYTES_MAX:
                raise refuse(errno.EFBIG)
            self._copy.seek(at)
            self._copy.write(data)
        return len(data)

    def _append(self, data: bytes) -> None:
        cut = data.rfind(b"\n") + 1
        if len(self._partial) + len(data) > RECORD_BYTES_MAX:
            raise refuse(errno.EFBIG)
        if cut:
            self._opened.append(self._partial + data[:cut], self._process)
            self._partial = b""
        self._partial += data[cut:]

    @translated
    def truncate(self, length: int) -> None:
        """Cut what this file shows to `length` bytes; more than that changes nothing."""
        if not self._writable:
            raise refuse(errno.EINVAL)
        with self._lock:
            if self._copy is not None:
                if length < self._copy.seek(0, os.SEEK_END):
                    self._copy.truncate(length)
            elif length < self._image_now().size + len(self._partial):
                self._begin_copy(length)

    def _begin_copy(self, length: int | None) -> None:
        """From here on this file shows what it shows now, cut to `length`, until it is committed as a whole."""
        with self._opened.lock:
            self._opened.catch_up(self._image)
            look = self._opened.looks.replaces(self._process, self.id)
            self._seen = self._image.seq if look is None else look
            content = self._image.read(0, self._image.size) + self._partial
        copy = tempfile.SpooledTemporaryFile(COPY_BYTES_MAX)  # noqa: SIM115 - closed when it is committed
        copy.write(content[:length])
        self._copy, self._partial = copy, b""  # type: ignore[assignment]

    @translated
    def flush(self) -> None:
        """Commit what was not committed yet: a last line without a newline, or the new content of the whole file."""
        with self._lock:
            if self._copy is not None:
                self._copy.seek(0)
                content = self._copy.read()
                self._opened.put(content, self._seen, self._process)
                self._copy.close()
                self._copy = None
                with self._opened.lock:
                    self._image = self._opened.image()
                self._end = len(content)
            elif self._partial:
                self._opened.append(self._partial, self._process)
                self._partial = b""

    @translated
    def fsync(self) -> None:
        """Commit as `flush` does; what the session holds survives a power loss when this returns."""
        self.flush()
        self._opened.session.sync()

    def release(self) -> None:
        """Flush, and let go of everything; nothing happens the second time."""
        with self._lock:
            if self._released:
                return
            self._released = True
        try:
            self.flush()
        finally:
            if self._copy is not None:
                self._copy.close()
            self._on_release(self, self._opened)
