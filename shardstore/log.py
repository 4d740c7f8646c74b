"""One session as a backend shows it: the look at its manifest, its shards by name, its segments by range.

Rule: every decision uses a manifest that `look` returned to that very call; nothing is decided on what another thread
has seen meanwhile. What `look` remembers only spares it decoding the same bytes again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from shardstore.backends.base import Backend, Seen
from shardstore.errors import Corrupt, Deleted, NotFound, describe
from shardstore.layout import SEQ_MAX, SessionKeys, parse_segment_name, parse_shard_name, shard_name
from shardstore.manifest import Manifest, SegmentRef, decode_manifest
from shardstore.record import Header, decode_shard
from shardstore.segment import (
    INDEX_ENTRIES,
    KEY_PAIRS,
    IndexEntry,
    decode_index_page,
    decode_key_page,
    index_page_range,
    key_hash,
    key_page_range,
    span,
)

__all__ = ["DELETED", "HOLES_MAX", "LOOKS_MAX", "SessionLog", "Vanished", "segment_of"]

DELETED = "session was deleted; its id is never used again"
PAGES_AT_ONCE = 32  # index pages in one read, 128 KiB
PAGES_KEPT = 16  # index pages remembered per handle, half a megabyte
HOLES_MAX = 65_536  # a power loss leaves no more holes than there were writers; a wider gap is somebody's junk
LOOKS_MAX = 10_000  # looks in one call before a session that changes all the time counts as unavailable


class Vanished(Exception):  # noqa: N818
    """A segment is gone: it was merged away, and a new look at the manifest names its successor."""


def segment_of(manifest: Manifest, seq: int) -> SegmentRef:
    """Return the segment that holds `seq` <= watermark."""
    return manifest.segments[bisect_left(manifest.segments, seq, key=lambda segment: segment.last)]


class SessionLog:
    """Read access to one session; safe to share between threads and across fork."""

    def __init__(self, backend: Backend, session_id: str) -> None:
        self.backend = backend
        self.id = session_id
        self.keys = SessionKeys(session_id)
        self._last: tuple[Seen, Manifest] | None = None
        self._pages: dict[tuple[str, int], list[IndexEntry]] = {}

    # -------------------------------------------------------------- manifest

    def glance(self) -> tuple[Seen, Manifest]:
        """Look at the manifest whatever its state. Raises NotFound, Corrupt, UnsupportedFormat, Unavailable."""
        last = self._last
        seen = self.backend.look(self.keys.manifest, last[0] if last else None)
        if seen is None:
            raise NotFound(describe("no such session", session=self.id))
        if last is not None and seen is last[0]:
            return last
        last = self._last = (seen, decode_manifest(seen.data, what=self.keys.manifest))
        return last

    def look(self) -> Manifest:
        """Look at the manifest; raises Deleted once a deletion has begun, and whatever `glance` raises.

        Raises Corrupt where a session must have lost its manifest.
        """
        last = self._last
        if last is None or self.backend.look(self.keys.manifest, last[0]) is not last[0]:
            try:
                last = self.glance()
            except NotFound:
                self.require_unborn()
                raise
        if last[1].state != "open":
            raise Deleted(describe(DELETED, session=self.id))
        return last[1]

    def look_after_vanishing(self, segment: SegmentRef) -> Manifest:
        """Look again because `segment` is gone. Raises Corrupt if the manifest still wants it."""
        manifest = self.look()
        if segment in manifest.segments and not self.has_segment(segment):
            manifest = self.look()
            if segment in manifest.segments:
                where = self.keys.segment(segment)
                raise Corrupt(describe("a segment is missing", session=self.id, where=where), seq=segment.first)
        return manifest

    def is_headless(self) -> bool:
        """Say whether a folder without a manifest holds what only a session leaves, so that it must have had one.

        That is: shards, compacted segments, or a hint. Segments of base 0 alone are an import that never ended.
        """
        if not any(True for _ in self.backend.list(self.keys.folder)):
            return False
        if self.backend.hint(self.keys.folder) > 0 or self.listed(0):
            return True
        parsed = [parse_segment_name(name) for name in self.backend.list(self.keys.segments)]
        return any(names is not None and names[2] > 0 for names in parsed)

    def require_unborn(self) -> None:
        """Raise Corrupt if there is no manifest where there must have been one; a new one would bury the old log."""
        if self.is_born() or not self.is_headless() or self.is_born():
            return
        where = self.keys.manifest
        raise Corrupt(describe("the manifest is missing; run verify, then repair", session=self.id, where=where))

    def is_born(self) -> bool:
        """Say whether there is a manifest. Raises Corrupt, UnsupportedFormat, Unavailable."""
        try:
            self.glance()
        except NotFound:
            return False
        return True

    # -------------------------------------------------------------- shards

    def shard(self, seq: int) -> bytes | None:
        """Return the bytes of the shard at `seq`; no evidence until a look afterwards says so."""
        return self.backend.read(self.keys.shard(seq))

    def has_shard(self, seq: int) -> bool:
        """Say whether there is a shard at `seq`."""
        return seq <= SEQ_MAX and self.backend.read(self.keys.shard(seq), length=0) is not None

    def hinted(self, seen: int) -> int:
        """Return the hint if it is above `seen` and there is a shard, else `seen`."""
        hint = self.backend.hint(self.keys.folder)
        return hint if hint > seen and self.has_shard(hint) else seen

    def gallop(self, seen: int) -> int:
        """Return n >= `seen` where n was seen and n + 1 was missing, by O(log n) probes."""
        step = 1
        while self.has_shard(seen + step):
            seen += step
            step *= 2
        while step > 1:
            step //= 2
            if self.has_shard(seen + step):
                seen += step
        return seen

    def missing(self, after: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the seqs above `after` that a listing shows, sorted, and the runs (first, last) missing among them."""
        listed = self.listed(after)
        pairs = zip([after, *listed], listed, strict=False)
        return listed, [(low + 1, high - 1) for low, high in pairs if high > low + 1]

    def listed(self, after: int) -> list[int]:
        """Return the seqs above `after` that a listing shows, sorted; a listing is of no one moment."""
        names = self.backend.list(self.keys.shards, shard_name(after))
        return sorted(seq for name in names if (seq := parse_shard_name(name)) is not None and seq > after)

    # -------------------------------------------------------------- segments

    def has_segment(self, segment: SegmentRef) -> bool:
        """Say whether the file of `segment` is there."""
        return self.backend.read(self.keys.segment(segment), length=0) is not None

    def segment_bytes(self, segment: SegmentRef, start: int, length: int) -> bytes:
        """Return a range of a segment file. Raises Vanished if it was merged away, Corrupt if it is cut short."""
        key = self.keys.segment(segment)
        data = self.backend.read(key, start=start, length=length)
        if data is None:
            raise Vanished(segment)
        if len(data) != length:
            raise Corrupt(describe("a segment is cut short", session=self.id, where=key), seq=segment.first)
        return data

    def entries(self, segment: SegmentRef, first: int, last: int) -> Iterator[list[IndexEntry]]:
        """Yield the index entries of the seqs `first`..`last` of `segment`, in order, some pages at a time."""
        number, end = (first - segment.first) // INDEX_ENTRIES, (last - segment.first) // INDEX_ENTRIES
        while number <= end:
            upto = min(number + PAGES_AT_ONCE - 1, end)
            entries = self._index_pages(segment, number, upto)
            page_first = segment.first + number * INDEX_ENTRIES
            yield entries[max(first - page_first, 0) : last - page_first + 1]
            number = upto + 1

    def _index_pages(self, segment: SegmentRef, number: int, upto: int) -> list[IndexEntry]:
        if upto - number <= 1:
            first = self._index_page(segment, number)
            return first if upto == number else first + self._index_page(segment, upto)
        start = index_page_range(segment, number)[0]
        stop = sum(index_page_range(segment, upto))
        data = self.segment_bytes(segment, start, stop - start)
        entries: list[IndexEntry] = []
        for page in range(number, upto + 1):
            offset, length = index_page_range(segment, page)
            piece = data[offset - start : offset - start + length]
            entries += decode_index_page(segment, page, piece, what=self.keys.segment(segment))
        return entries

    def _index_page(self, segment: SegmentRef, number: int) -> list[IndexEntry]:
        """Return the entries of one page, kept for whoever reads about the same place again."""
        kept = self._pages.get((segment.nonce, number))
        if kept is None:
            piece = self.segment_bytes(segment, *index_page_range(segment, number))
            kept = decode_index_page(segment, number, piece, what=self.keys.segment(segment))
            if len(self._pages) >= PAGES_KEPT:
                self._pages.clear()
            self._pages[segment.nonce, number] = kept
        return kept

    def segment_header(self, manifest: Manifest, seq: int) -> Header:
        """Return the header of record `seq` <= watermark. Raises Vanished, Corrupt."""
        segment = segment_of(manifest, seq)
        data = self.segment_bytes(segment, *span(next(self.entries(segment, seq, seq))[0]))
        return decode_shard(data, what=f"{self.keys.segment(segment)} seq={seq}")[0]

    def find_key(self, manifest: Manifest, key: str) -> int | None:
        """Return the seq <= watermark whose record carries `key`. Raises Vanished, Corrupt."""
        wanted = key_hash(key)
        for segment in manifest.segments:
            for seq in self._seqs_of_hash(segment, wanted) if segment.keys else ():
                if self.segment_header(manifest, seq).key == key:
                    return seq
        return None

    def key_pairs(self, segment: SegmentRef, number: int) -> list[tuple[int, int]]:
        """Return the (hash, seq) pairs of key page `number`. Raises Vanished, Corrupt."""
        page = self.segment_bytes(segment, *key_page_range(segment, number))
        return decode_key_page(segment, number, page, what=self.keys.segment(segment))

    def _seqs_of_hash(self, segment: SegmentRef, wanted: int) -> list[int]:
        low, high = 0, -(-segment.keys // KEY_PAIRS) - 1
        while low < high:  # the first page whose last hash is not below the wanted one
            middle = (low + high) // 2
            if self.key_pairs(segment, middle)[-1][0] < wanted:
                low = middle + 1
            else:
                high = middle
        found: list[int] = []
        for number in range(low, -(-segment.keys // KEY_PAIRS)):
            pairs = self.key_pairs(segment, number)
            found += [seq for hash_, seq in pairs if hash_ == wanted]
            if pairs[-1][0] > wanted:
                break
        return found
