"""One session in use by a mount: its image, shared by all open files of it, and the two ways to change it.

Rule: what a program wrote is committed before it is told so, and nothing that others appended is lost by it. New
content for the whole file becomes the least that shows it: nothing, a record with what is new at its end, or a rewrite.
Strategy: an image is looked after under the session's lock; the store is written to without it. A record of one's own
that follows on what the image has is taken from memory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

from shardstore.mount.image import Image, ShapeMaker, whole
from shardstore.mount.looks import Looks
from shardstore.record import Receipt, Record, split_lines
from shardstore.session import Session

__all__ = ["Opened"]

KNOWN_S = 1.0
KNOWN_BYTES_MAX = 8 << 20
PENDING_MAX = 64  # own records that are ahead of the image, kept until those between have come


class Opened:
    """A session in use; safe to share between threads. Its methods raise what those of `Session` do."""

    def __init__(self, session: Session, looks: Looks, source: str, shape: ShapeMaker | None) -> None:
        self.session = session
        self.lock = threading.RLock()
        self.users = 0  # files that are open
        self.looks = looks
        self._source = source
        self._shape = shape
        self._pending: dict[int, Record] = {}
        self._image = Image(session, shape)
        self._looked_s = 0.0

    @property
    def memory_bytes(self) -> int:
        """How much memory the image takes, about."""
        return self._image.memory_bytes

    # -------------------------------------------------------------- the image

    def image(self, head: int | None = None) -> Image:
        """Return the image of the newest generation with everything up to `head` (by default: as it is now).

        To be called, and the image to be used, under `lock`.
        """
        if head != 0:  # 0 asks for no look
            self._looked_s = time.monotonic()
        try:
            self._image = self._image.advanced(self.session.head() if head is None else head)
        except OSError:  # perhaps half of a record is in it
            self._image = Image(self.session, self._shape)
            raise
        return self._image

    def known(self) -> Image | None:
        """Return the image as it was a moment ago, None if it is not known; a large one is to be looked at each time.

        For those to whom it matters only whether the content is small. Under `lock`.
        """
        is_known = time.monotonic() - self._looked_s < KNOWN_S and self._image.size < KNOWN_BYTES_MAX
        return self._image if is_known else None

    def catch_up(self, image: Image) -> None:
        """Bring an image that a file was opened on up to date, in its own generation; under `lock`."""
        newest = self.image()
        if newest is not image:
            image.extend(newest.seq)

    def _took(self, payload: bytes, receipt: Receipt) -> None:
        record = Record(receipt.seq, "turn", self._source, receipt.at_ms, receipt.base, None, receipt.nonce, payload)
        with self.lock:
            self._pending[record.seq] = record
            try:
                while (following := self._pending.pop(self._image.seq + 1, None)) is not None:
                    self._image.take(following)
            except OSError:  # no room for an image is no reason to deny what is committed
                self._image = Image(self.session, self._shape)
            if self._pending and (len(self._pending) > PENDING_MAX or min(self._pending) <= self._image.seq):
                self._pending.clear()

    # -------------------------------------------------------------- changes

    def append(self, payload: bytes, process: int) -> None:
        """Commit `payload` as one record."""
        known = self.looks.last(process, self.session.id)
        receipt = self.session.append(payload, source=self._source, base=known or 0)
        self._took(payload, receipt)
        self.looks.wrote(process, self.session.id, receipt.seq)

    def put(self, content: bytes, seen: int, process: int) -> None:
        """Make `content` what is shown in the place of everything up to `seen`, which is what its writer knew."""
        with self.lock:
            image = self.image()
            old, upto = image.read(0, image.size), image.seq
            seen = min(seen, upto)
            if whole(content) == old:
                self._saw(process, upto)
                return
            if content.startswith(old):
                self._saw(process, upto)
                rest: bytes | None = content[len(old) :]
                held: list[int] = []
            else:
                rest, held = self._change(content, image, old, seen)
                self._saw(process, seen)
        if rest is None:
            self._rewrite(content, seen, held, upto, process)
        elif rest:
            self.append(rest, process)

    def _change(self, content: bytes, image: Image, old: bytes, seen: int) -> tuple[bytes | None, list[int]]:
        """Return what is to be appended, or None and the seqs above `seen` whose lines the content holds."""
        then, upto = image, image.seq
        if image.end_of(seen) is None:  # seen before somebody else's rewrite: what was shown then decides
            then = Image(self.session, self._shape).advanced(seen)
            then.extend(upto)
        end = then.end_of(seen)
        assert end is not None
        if then is image and len(content) >= end and old.startswith(content):
            return b"", []  # cut in the midst of what others appended: that is theirs
        known = then.read(0, end)
        held = _held(content, known, ((seq, then.shown(seq)) for seq in range(seen + 1, upto + 1)))
        if not held and whole(content).startswith(known):
            return content[len(known) :], []
        return None, held

    def _rewrite(self, content: bytes, seen: int, held: list[int], upto: int, process: int) -> None:
        receipt = self.session.rewrite(content, seen=seen, holds=_ranges(held))
        if receipt.seq == upto + 1 and len(held) == upto - seen:  # nothing is shown that its writer does not know
            self._saw(process, receipt.seq)

    def _saw(self, process: int, seq: int) -> None:
        self.looks.saw(process, self.session.id, seq)


def _held(content: bytes, known: bytes, later: Iterable[tuple[int, bytes]]) -> list[int]:
    """Return which of the later records stand in `content`, with all their lines, beside what was known.

    Each line is counted once: an equal line that was known already is no evidence that the later one was kept.
    """
    free = Counter(split_lines(whole(content)))
    free.subtract(split_lines(known))
    held = []
    for seq, shown in later:
        lines = Counter(split_lines(shown))
        if lines and all(free[line] >= count for line, count in lines.items()):
            free.subtract(lines)
            held.append(seq)
    return held


def _ranges(seqs: list[int]) -> list[tuple[int, int]]:
    """Return sorted seqs as ranges (first, last)."""
    ranges: list[tuple[int, int]] = []
    for seq in seqs:
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return ranges
