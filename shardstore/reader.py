"""Reading: a prefix-true walk over segments and shards while writers and compactors go on.

Rule: a shard at n is evidence only if the manifest, looked at afterwards, has W < n. So shards are read first, then
the manifest; what it covers by then is read again from segments. The end is the end only if W is below the slot that
was missing, and a hole is damage only if a later shard was seen, then the slot missed by name, then W below it.
Strategy: work in blocks, so that a whole load costs no header and no object per record.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal, Protocol

from shardstore.errors import Corrupt, InvalidRequest, Unavailable, describe
from shardstore.log import LOOKS_MAX, SessionLog, Vanished, segment_of
from shardstore.manifest import Manifest, SegmentRef
from shardstore.record import KINDS, LOST, Record, decode_payloads, decode_shard, open_header, open_shard, record_of
from shardstore.segment import TURN_FLAG, IndexEntry, span

__all__ = ["Block", "Filter", "Reader", "Selection"]

BLOCK_BYTES = 256 << 10  # a block holds at least one record, and no more bytes than this where it holds several
SHARDS_AT_ONCE = 256  # shards read between two looks
REVERSE_WINDOW = 128  # records held at once when reading backwards, fewer where they are large
REVERSE_BYTES = 2 << 20

Filter = str | Collection[str] | None


class Selection:
    """Which records are wanted: by kind, by source, without some sources."""

    __slots__ = ("kinds", "sources", "without")

    def __init__(self, kind: Filter = None, source: Filter = None, exclude_source: Filter = None) -> None:
        self.kinds = _as_set(kind)
        if self.kinds is not None and not self.kinds <= set(KINDS):
            raise InvalidRequest(describe("no such kind", kind=sorted(self.kinds - set(KINDS)), known=KINDS))
        self.sources = _as_set(source)
        self.without = _as_set(exclude_source) or frozenset()

    @property
    def by_kind_alone(self) -> bool:
        """True if headers are not needed to decide."""
        return self.sources is None and not self.without

    def wants(self, record: Record) -> bool:
        """Say whether `record` is selected."""
        return (
            (self.kinds is None or record.kind in self.kinds)
            and (self.sources is None or record.source in self.sources)
            and record.source not in self.without
        )


def _as_set(value: Filter) -> frozenset[str] | None:
    if value is None:
        return None
    return frozenset((value,)) if isinstance(value, str) else frozenset(value)


class Block(Protocol):
    """Some consecutive records, `first`..`last`, all of them evidence."""

    first: int
    last: int

    def records(self) -> list[Record]:
        """Return the records, verified. Raises Corrupt."""

    def payloads(self, kinds: Collection[str]) -> list[bytes]:
        """Return the payloads of the records of some kinds, verified. Raises Corrupt."""

    def objects(self, kinds: Collection[str]) -> list[Any] | None:
        """Return their entries decoded, or None if a line among them needs the care of `Record.entries`."""


class _SegmentBlock:
    __slots__ = ("_data", "_entries", "_what", "first", "last")

    def __init__(self, first: int, entries: list[IndexEntry], data: bytes, what: str) -> None:
        self.first = first
        self.last = first + len(entries) - 1
        self._entries = entries
        self._data = data
        self._what = what

    def records(self) -> list[Record]:
        origin = self._entries[0][0]
        out = []
        for seq, (offset, length, header_length, expected, _, _) in enumerate(self._entries, self.first):
            start = offset - origin
            try:
                shard = self._data[start : start + header_length + length]
                header, payload, _, crc32 = open_shard(shard, what=self._what)
            except Corrupt as error:
                raise Corrupt(f"{error} seq={seq}", seq=seq) from error
            if crc32 != expected:  # whole, and another one than the index says
                raise Corrupt(describe("another record lies in its place", what=self._what, seq=seq), seq=seq)
            out.append(record_of(seq, header, payload))
        return out

    def payloads(self, kinds: Collection[str]) -> list[bytes]:
        return self._verified(self._chosen(kinds), copy=True)

    def objects(self, kinds: Collection[str]) -> list[Any] | None:
        chosen = self._chosen(kinds)
        single = {entry[5] for entry in chosen} <= {1}
        return decode_payloads(self._verified(chosen, copy=not single), single=single)

    def _chosen(self, kinds: Collection[str]) -> list[IndexEntry]:
        wanted = _flags_of(frozenset(kinds))
        return [entry for entry in self._entries if entry[4] in wanted]

    def _verified(self, chosen: list[IndexEntry], *, copy: bool) -> list[Any]:
        data, origin = self._data if copy else memoryview(self._data), self._entries[0][0]
        out = [data[(at := offset + head - origin) : at + length] for offset, length, head, _, _, _ in chosen]
        if list(map(zlib.crc32, out)) != [entry[3] for entry in chosen]:
            bad = next(entry for entry, payload in zip(chosen, out, strict=True) if zlib.crc32(payload) != entry[3])
            seq = self.first + self._entries.index(bad)
            raise Corrupt(describe("checksum of a record does not match", what=self._what, seq=seq), seq=seq)
        return out


class _LargeBlock:
    """One record that is larger than a block: its payload is read by itself, so that it is in memory once."""

    __slots__ = ("_crc32", "_flags", "_line", "_payload", "_what", "first", "last")

    def __init__(self, seq: int, entry: IndexEntry, line: bytes, payload: bytes, what: str) -> None:
        self.first = self.last = seq
        self._crc32, self._flags = entry[3], entry[4]
        self._line = line
        self._payload = payload
        self._what = what

    def records(self) -> list[Record]:
        crc32 = zlib.crc32(self._payload)
        try:
            header = open_header(self._line, len(self._payload), crc32, what=self._what)
        except Corrupt as error:
            raise Corrupt(f"{error} seq={self.first}", seq=self.first) from error
        if crc32 != self._crc32:
            what = describe("another record lies in its place", what=self._what, seq=self.first)
            raise Corrupt(what, seq=self.first)
        return [record_of(self.first, header, self._payload)]

    def payloads(self, kinds: Collection[str]) -> list[bytes]:
        if self._flags not in _flags_of(frozenset(kinds)):
            return []
        if zlib.crc32(self._payload) != self._crc32:
            what = describe("checksum of a record does not match", what=self._what, seq=self.first)
            raise Corrupt(what, seq=self.first)
        return [self._payload]

    def objects(self, kinds: Collection[str]) -> list[Any] | None:
        return decode_payloads(self.payloads(kinds), single=False)


@lru_cache(maxsize=16)
def _flags_of(kinds: frozenset[str]) -> frozenset[int]:
    """Return the index flags that stand for `kinds`."""
    return frozenset(code | turn for code, kind in enumerate(KINDS) if kind in kinds for turn in (0, TURN_FLAG))


class _ShardBlock:
    __slots__ = ("_records", "first", "last")

    def __init__(self, records: list[Record]) -> None:
        self.first, self.last = records[0].seq, records[-1].seq
        self._records = records

    def records(self) -> list[Record]:
        return self._records

    def payloads(self, kinds: Collection[str]) -> list[bytes]:
        return [record.payload for record in self._records if record.kind in kinds]

    def objects(self, kinds: Collection[str]) -> list[Any] | None:
        return decode_payloads(self.payloads(kinds), single=False)


def _lost_record(seq: int) -> Record:
    """Return what a torn shard of an unsynced session reads as: its seq is spent, its content gone."""
    return Record(seq, "control", LOST, 0, None, None, "", b"")


class Reader:
    """Reads one session; safe to share between threads and across fork.

    `delivered` is told how far entries and views have been handed out, a block at a time.
    """

    def __init__(self, log: SessionLog, delivered: Callable[[int], None] = lambda _seq: None) -> None:
        self._log = log
        self._delivered = delivered

    # -------------------------------------------------------------- blocks

    def blocks(self, first: int = 1, last: int | None = None, *, holes: bool = True) -> Iterator[Block]:
        """Yield the records `first`..`last` (to the end by default) in blocks, in seq order.

        Everything yielded is evidence. With `holes`, reaching the end checks that nothing lies beyond it.
        Raises NotFound, Deleted, Corrupt, Unavailable.
        """
        manifest = self._log.look()
        position = first
        while last is None or position <= last:
            if position <= manifest.watermark:
                segment = segment_of(manifest, position)
                try:
                    for block in self._segment_blocks(segment, position, last):
                        position = block.last + 1
                        yield block
                except Vanished:
                    manifest = self._log.look_after_vanishing(segment)
                continue
            shards, ended = self._shards(position, last)
            manifest = self._log.look()
            if manifest.watermark >= position:
                continue  # some of it was compacted meanwhile: no evidence, read it from segments
            if shards:
                records = [self._decode(manifest, position + at, data) for at, data in enumerate(shards)]
                position += len(records)
                yield _ShardBlock(records)
            if ended and not (holes and self._continues_beyond(position)):
                return

    def _segment_blocks(
        self, segment: SegmentRef, first: int, last: int | None
    ) -> Iterator[_SegmentBlock | _LargeBlock]:
        upto = segment.last if last is None else min(last, segment.last)
        what = self._log.keys.segment(segment)
        for entries in self._log.entries(segment, first, upto):
            begin = 0
            while begin < len(entries):
                origin = entries[begin][0]
                end = bisect_right(entries, origin + BLOCK_BYTES, begin + 1, key=itemgetter(0))
                if end - 1 > begin and sum(span(entries[end - 1])) - origin > BLOCK_BYTES:
                    end -= 1
                if entries[begin][1] > BLOCK_BYTES:
                    yield self._large_block(segment, first, entries[begin])
                    first += 1
                    begin += 1
                    continue
                data = self._log.segment_bytes(segment, origin, sum(span(entries[end - 1])) - origin)
                yield _SegmentBlock(first, entries[begin:end], data, what)
                first += end - begin
                begin = end

    def _large_block(self, segment: SegmentRef, seq: int, entry: IndexEntry) -> _LargeBlock:
        offset, length, header_length = entry[:3]
        line = self._log.segment_bytes(segment, offset, header_length)
        payload = self._log.segment_bytes(segment, offset + header_length, length)
        return _LargeBlock(seq, entry, line, payload, self._log.keys.segment(segment))

    def _shards(self, position: int, last: int | None) -> tuple[list[bytes], bool]:
        """Read shards from `position` on; the flag says that the slot after them was missing."""
        shards: list[bytes] = []
        size = 0
        while len(shards) < SHARDS_AT_ONCE and size < BLOCK_BYTES:
            if last is not None and position + len(shards) > last:
                return shards, False
            data = self._log.shard(position + len(shards))
            if data is None:
                return shards, True
            shards.append(data)
            size += len(data)
        return shards, False

    def _decode(self, manifest: Manifest, seq: int, data: bytes) -> Record:
        key = self._log.keys.shard(seq)
        try:
            header, payload, _ = decode_shard(data, what=key)
        except Corrupt as error:
            if manifest.durability == "none":
                return _lost_record(seq)
            raise Corrupt(str(error), seq=seq) from error
        return record_of(seq, header, payload)

    def _continues_beyond(self, missing: int) -> bool:
        """Say whether the slot that was missing is there by now; raise Corrupt if it is a hole."""
        later = self._log.listed(missing)
        if not later:
            return False
        if self._log.has_shard(missing) or self._log.look().watermark >= missing:
            return True
        raise Corrupt(
            describe(
                "a record is missing below later ones; run verify, then repair",
                session=self._log.id,
                seq=missing,
                seen=later[0],
            ),
            seq=missing,
        )

    # -------------------------------------------------------------- records

    def records(self, first: int, last: int | None, selection: Selection, *, reverse: bool) -> Iterator[Record]:
        """Yield the selected records of a range, forwards or backwards."""
        if reverse:
            yield from self._backwards(first, last, selection)
            return
        for block in self.blocks(first, last):
            yield from filter(selection.wants, block.records())

    def _backwards(self, first: int, last: int | None, selection: Selection) -> Iterator[Record]:
        end = self.head()
        if last is not None and (last <= end or last < first):
            end = last
        else:
            self._continues_beyond(end + 1)  # a hole right above what was found is told, not passed over in silence
        count = 1
        while end >= first:
            begin = max(first, end - count + 1)
            window = [record for block in self.blocks(begin, end) for record in block.records()]
            yield from filter(selection.wants, reversed(window))
            end = begin - 1
            small = sum(len(record.payload) for record in window) < REVERSE_BYTES
            count = min(count * 2, REVERSE_WINDOW) if small else max(count // 2, 1)

    def last(self, count: int, selection: Selection) -> list[Record]:
        """Return the last `count` selected records, in seq order."""
        if count <= 0:
            raise InvalidRequest(describe("the number of records must be positive", k=count))
        if selection.kinds is None and selection.by_kind_alone:
            tail = list(self.records(max(1, self.head() - count + 1), None, selection, reverse=False))
            return tail[-count:]
        found: list[Record] = []
        for record in self._backwards(1, None, selection):
            found.append(record)
            if len(found) == count:
                break
        return found[::-1]

    def payloads(self, first: int, last: int | None, selection: Selection) -> Iterator[list[bytes]]:
        """Yield the selected payloads, a list a block; control records only if asked for by kind."""
        kinds = ("turn", "event") if selection.kinds is None else selection.kinds
        for block in self.blocks(first, last):
            if selection.by_kind_alone:
                yield block.payloads(kinds)
            else:
                yield [r.payload for r in block.records() if r.kind in kinds and selection.wants(r)]
            self._delivered(block.last)

    def view(self, first: int, last: int | None, selection: Selection) -> Iterator[bytes]:
        """Yield the view's bytes in pieces: payloads verbatim, with a newline before a record where one is lacking."""
        lacking = False
        for payloads in self.payloads(first, last, selection):
            pieces: list[bytes] = []
            for payload in payloads:
                if payload:
                    if lacking:
                        pieces.append(b"\n")
                    pieces.append(payload)
                    lacking = payload[-1] != 10
            if pieces:
                yield b"".join(pieces)

    def entries(
        self, first: int, last: int | None, selection: Selection, invalid: Literal["raise", "raw"]
    ) -> Iterator[Any]:
        """Yield the decoded entries of the selected records, forwards."""
        kinds = ("turn", "event") if selection.kinds is None else selection.kinds
        for block in self.blocks(first, last):
            if selection.by_kind_alone:
                yield from _decode_block(block, kinds, invalid)
            else:
                for record in block.records():
                    if record.kind in kinds and selection.wants(record):
                        yield from record.entries(invalid=invalid)
            self._delivered(block.last)

    # -------------------------------------------------------------- head

    def head(self) -> int:
        """Return the last seq of the log: none acknowledged before is above, and all up to it are there (but for a hole
        that a power loss left among unacknowledged ones, which reading names).
        """
        head = self._log.hinted(self._log.look().watermark)
        for _ in range(LOOKS_MAX):
            head = self._log.gallop(head)
            watermark = self._log.look().watermark
            if watermark <= head:
                return head
            head = watermark
        raise Unavailable(describe("the head kept moving", session=self._log.id, head=head))


def _decode_block(block: Block, kinds: Collection[str], invalid: Literal["raise", "raw"]) -> list[Any]:
    entries = block.objects(kinds)
    if entries is not None:
        return entries
    return [entry for record in block.records() if record.kind in kinds for entry in record.entries(invalid=invalid)]
