"""Repair: make a damaged session readable again without touching a record that can still be read.

Rule: nothing that reads back is removed or moved to another seq; what does not is kept in `damaged/`, and its seq is
spent as `lost`. Run it while nobody appends: it alone may replace a shard (a torn one, atomically, by `lost`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace

from shardstore.compact import create_segment, keep_damaged, sweep
from shardstore.errors import Corrupt, NotFound, Unavailable, UnsupportedFormat, describe
from shardstore.layout import SEQ_MAX, parse_segment_name, segment_name, shard_name
from shardstore.log import HOLES_MAX, SessionLog, Vanished
from shardstore.manifest import Durability, Manifest, SegmentRef, encode_manifest, successor
from shardstore.record import (
    DELETE,
    FORMAT,
    HEADER_BYTES_MAX,
    LOST,
    Header,
    control_shard,
    decode_header,
    decode_shard,
    encode_header,
    open_shard,
)
from shardstore.segment import (
    INDEX_ENTRIES,
    TRAILER_BYTES,
    IndexEntry,
    SegmentIndex,
    decode_index_page,
    decode_trailer,
    index_page_range,
    kind_of,
    segment_size,
    span,
)
from shardstore.verify import LOST_RECORD, Finding, verify_session, walk_segment
from shardstore.writer import bear, lost_draft, new_nonce, now_ms

__all__ = ["repair_session"]

_HEADER_START = b'{"shardstore":'


def repair_session(log: SessionLog) -> list[Finding]:
    """Repair a session; return what was found, each finding with whether it is gone now.

    A session that a newer version wrote in is left alone. Raises Unavailable if a compactor is at work.
    """
    with log.backend.exclusive(log.keys.folder) as held:
        if not held:
            raise Unavailable(describe("a compactor is at work on this session; try again", session=log.id))
        found = verify_session(log)
        damages = {finding.what for finding in found if finding.severity == "damage"}
        if not damages or "newer-format" in damages:
            return found  # nothing to do, or nothing that this version may touch
        _repair_manifest(log)
        _repair_segments(log, {finding.where for finding in verify_session(log) if finding.severity == "damage"})
        _repair_shards(log)
        left = {(finding.what, finding.where, finding.seqs) for finding in verify_session(log)}
    # a record that was lost before is lost for good, also where its note now names another file
    gone = [
        finding.what != LOST_RECORD and (finding.what, finding.where, finding.seqs) not in left for finding in found
    ]
    return [replace(finding, repaired=repaired) for finding, repaired in zip(found, gone, strict=True)]


# ------------------------------------------------------------------ manifest


def _repair_manifest(log: SessionLog) -> None:
    try:
        log.glance()
    except NotFound:
        if log.is_headless():
            bear(log, "sync", _rebuilt(log))
    except UnsupportedFormat:
        raise
    except Corrupt:
        seen = log.backend.look(log.keys.manifest, None)
        if seen is not None:
            keep_damaged(log, f"manifest-{new_nonce()}.json", seen.data)
            rebuilt = _with_facts_of(seen.data, _rebuilt(log), empty=not log.listed(0))
            log.backend.replace(log.keys.manifest, encode_manifest(rebuilt), seen)


def _with_facts_of(damaged: bytes, rebuilt: Manifest, *, empty: bool) -> Manifest:
    """Take over what can still be read of a damaged manifest: one flipped bit spoils one fact at the most."""
    facts = dict(re.findall(rb'"(\w+)":"?(\w+)"?', damaged))
    durability: Durability = "none" if facts.get(b"durability") == b"none" else "sync"
    generation, created_at, watermark = (
        int(value) if (value := facts.get(name, b"")).isdigit() else 0
        for name in (b"generation", b"created_at", b"watermark")
    )
    rebuilt = replace(
        rebuilt,
        birth=birth.decode() if len(birth := facts.get(b"birth", b"")) == 32 else rebuilt.birth,
        durability=durability,
        archived=facts.get(b"archived") == b"true",
        created_at=created_at or rebuilt.created_at,
        generation=max(rebuilt.generation, generation + 1),
    )
    state = facts.get(b"state")  # where nothing is left to tell, an id that may be spent stays spent
    if state == b"deleted" or (state != b"open" and empty and not rebuilt.watermark):
        return replace(rebuilt, state="deleted", segments=(), watermark=max(watermark, rebuilt.watermark))
    return replace(rebuilt, state="closing") if state == b"closing" else rebuilt


def _rebuilt(log: SessionLog) -> Manifest:
    """Return a manifest that covers what the segment files hold: from seq 1 on, always the longest that fits."""
    names = [(name, parsed) for name in log.backend.list(log.keys.segments) if (parsed := parse_segment_name(name))]
    generation = max((parsed[2] for _, parsed in names), default=0) + 1
    lowest = min(log.listed(0), default=SEQ_MAX)
    candidates = [
        _reference(log, name) or _rescued(log, name, generation)
        for name, (_, last, base, _) in names
        if base > 0 or lowest > last  # a killed import is shadowed by the shards of the session that was born instead
    ]
    found = [segment for segment in candidates if segment is not None]
    chain: list[SegmentRef] = []
    top = max([segment.last for segment in found] + [0])
    while (first := chain[-1].last + 1 if chain else 1) <= top:
        fitting = [segment for segment in found if segment.first == first]
        if fitting:
            chain.append(max(fitting, key=lambda segment: (segment.base > 0, segment.last, segment.base)))
        else:
            upto = min((segment.first - 1 for segment in found if segment.first > first), default=top)
            if upto - first >= HOLES_MAX:
                break  # what lies behind so wide a gap is nobody's record
            chain.append(_write(log, first, [log.shard(seq) for seq in range(first, upto + 1)], generation))
    last = chain[-1].last if chain else 0
    nonce = new_nonce()
    manifest = Manifest(FORMAT, generation + 1, nonce, nonce, now_ms(), "sync", "open", False, last, tuple(chain))
    return manifest if not _was_deleted(log, manifest) else replace(manifest, state="closing")


def _rescued(log: SessionLog, name: str, generation: int) -> SegmentRef | None:
    """Write anew what can be read of a segment whose trailer is damaged; keep the original in `damaged/`."""
    first, last, _, _ = parse_segment_name(name) or (0, 0, 0, "")
    data = log.backend.read(f"{log.keys.segments}/{name}") or b""
    if last < first or last - first >= len(data):
        return None  # a record takes more than a byte: this name promises what the file can't hold
    keep_damaged(log, name, data)
    return _write(log, first, _scanned(data, last - first + 1), generation)


def _reference(log: SessionLog, name: str) -> SegmentRef | None:
    """Return what a manifest would say of a segment file, None if its trailer can't be read."""
    parsed = parse_segment_name(name)
    data = log.backend.read(f"{log.keys.segments}/{name}") if parsed is not None else None
    if parsed is None or data is None:
        return None
    first, last, base, nonce = parsed
    try:
        _, count, length, keys = decode_trailer(data[-TRAILER_BYTES:], what=name)
    except (Corrupt, UnsupportedFormat):
        return None
    size = segment_size(length, count, keys)
    return SegmentRef(first, last, base, nonce, length, keys, size) if size == len(data) else None


def _was_deleted(log: SessionLog, manifest: Manifest) -> bool:
    """Say whether the log ends with the control record of a deletion."""
    shards = log.listed(manifest.watermark)
    data = log.shard(shards[-1]) if shards else None
    try:
        if data is not None:
            header = decode_shard(data, what="")[0]
        elif manifest.watermark:
            header = log.segment_header(manifest, manifest.watermark)
        else:
            return False
    except (Corrupt, UnsupportedFormat, Vanished):
        return False
    return header.kind == "control" and header.source == DELETE


# ------------------------------------------------------------------ segments


def _repair_segments(log: SessionLog, damaged: set[str]) -> None:
    seen, manifest = log.glance()
    segments = tuple(
        _mended(log, manifest, segment) if log.keys.segment(segment) in damaged else segment
        for segment in manifest.segments
    )
    if segments != manifest.segments:
        changed = successor(manifest, new_nonce(), segments=segments)
        if not log.backend.replace(log.keys.manifest, encode_manifest(changed), seen):
            raise Unavailable(describe("the manifest changed during repair; try again", session=log.id))
        sweep(log)


def _mended(log: SessionLog, manifest: Manifest, segment: SegmentRef) -> SegmentRef:
    """Return a new segment with what can be rescued of a damaged one."""
    name = segment_name(segment)
    data = log.backend.read(f"{log.keys.segments}/{name}")
    count = segment.last - segment.first + 1
    shards: list[bytes | None] = [None] * count
    if data is not None:
        keep_damaged(log, name, data)
        shards = _salvaged(segment, data)
    for other in list(log.backend.list(log.keys.segments)):  # one that was not swept yet may still have them
        reference = _reference(log, other) if None in shards and other != name else None
        if reference is not None and reference.base <= manifest.generation:
            _fill_from(log, reference, segment, shards)
    shards = [shard if shard is not None else log.shard(seq) for seq, shard in enumerate(shards, segment.first)]
    return _write(log, segment.first, shards, manifest.generation)


def _fill_from(log: SessionLog, other: SegmentRef, segment: SegmentRef, shards: list[bytes | None]) -> None:
    try:
        for seq, shard, _ in walk_segment(log, other, other.first):
            if segment.first <= seq <= segment.last and shards[seq - segment.first] is None:
                shards[seq - segment.first] = shard
    except (Corrupt, Vanished):
        return  # what it gave up to here was verified record by record


def _salvaged(segment: SegmentRef, data: bytes) -> list[bytes | None]:
    """Return each record's bytes where they read back: by the index where that is whole, else by scanning."""
    out: list[bytes | None] = []
    position = unknown = 0
    for number, entries in enumerate(_readable_pages(segment, data)):
        if entries is None:
            unknown += min(INDEX_ENTRIES, segment.last - segment.first + 1 - number * INDEX_ENTRIES)
            continue
        out += _scanned(data[position : entries[0][0]], unknown)
        unknown = 0
        out += [_kept(entry, data) for entry in entries]
        position = sum(span(entries[-1]))
    return out + _scanned(data[position : segment.data], unknown)


def _kept(entry: IndexEntry, data: bytes) -> bytes | None:
    """Return a record's bytes if its payload is what the index says, under a new header if its own is damaged.

    Such a record reads back in views, so it stays; its facts are those that can still be read.
    """
    offset, length = span(entry)
    shard = data[offset : offset + length]
    whole = _whole(shard)
    head, payload = shard[: entry[2]], shard[entry[2] :]
    if whole is not None or not payload or len(payload) != entry[1] or zlib.crc32(payload) != entry[3]:
        return whole
    facts = {name.decode(): value for name, value in re.findall(rb'"(\w+)":"?([^",{}]*)"?', head)}
    at_ms, base = (int(value) if (value := facts.get(name, b"")).isdigit() else 0 for name in ("at", "base"))
    source, key = (facts.get(name, b"").decode(errors="replace") for name in ("source", "key"))
    header = Header(
        FORMAT,
        kind_of(entry[4]),
        source or "unknown",
        at_ms,
        base or None,
        key if key not in ("", "null") else None,
        new_nonce(),
        len(payload),
    )
    return encode_header(header, payload) + payload


def _readable_pages(segment: SegmentRef, data: bytes) -> Iterator[list[IndexEntry] | None]:
    for number in range(-(-(segment.last - segment.first + 1) // INDEX_ENTRIES)):
        offset, length = index_page_range(segment, number)
        try:
            yield decode_index_page(segment, number, data[offset : offset + length], what="")
        except Corrupt:
            yield None


def _whole(shard: bytes) -> bytes | None:
    """Return `shard` if it reads back, None if it is damaged. Raises UnsupportedFormat: that is for a newer version."""
    try:
        decode_shard(shard, what="")
    except Corrupt:
        return None
    return shard


def _scanned(data: bytes, expected: int) -> list[bytes | None]:
    """Find `expected` records without an index.

    A record whose payload alone is damaged is stepped over by its header's length. Where a header is damaged, the
    records before the first and after the last such place have certain seqs; those between stay in `damaged/` only.
    """
    runs: list[list[bytes | None]] = [[]]
    at = 0
    while 0 <= at < len(data):
        length = _shard_length(data, at)
        if length:
            runs[-1].append(_whole(data[at : at + length]))
            at += length
        else:
            runs.append([])
            at = data.find(_HEADER_START, at + 1)
    head = runs[0][:expected]
    room = expected - len(head)
    likely = max(room - 1, 0)  # where a run broke lies a record at least; more would be shards quoted in its payload
    tail = runs[-1][max(len(runs[-1]) - likely, 0) :] if len(runs) > 1 else []
    return [*head, *[None] * (room - len(tail)), *tail]


def _shard_length(data: bytes, at: int) -> int:
    """Return the length of the shard at `at` by its header; 0 unless another one, or the end, follows it there."""
    end = data.find(b"\n", at, at + HEADER_BYTES_MAX) + 1
    try:
        length = end - at + decode_header(data[at:end], what="").length if end else 0
    except Corrupt:
        return 0
    follows = at + length == len(data) or data.startswith(_HEADER_START, at + length)
    return length if follows or _whole(data[at : at + length]) else 0


def _write(log: SessionLog, first: int, shards: list[bytes | None], generation: int) -> SegmentRef:
    index = SegmentIndex(first)

    def parts() -> Iterator[bytes]:
        for shard in shards:
            data = shard if shard is not None and _whole(shard) is not None else _lost()
            index.add(*open_shard(data, what=""))
            yield data

    return create_segment(log, index, parts(), last=first + len(shards) - 1, base=generation)


def _lost() -> bytes:
    return control_shard(LOST, new_nonce(), now_ms())


# ------------------------------------------------------------------ shards


def _repair_shards(log: SessionLog) -> None:
    manifest = log.glance()[1]
    listed, holes = log.missing(manifest.watermark)
    far = next((first for first, last in holes if last - first >= HOLES_MAX), SEQ_MAX)
    for first, last in holes:
        for seq in range(first, last + 1) if first < far else ():
            draft = lost_draft()
            log.backend.create(log.keys.shard(seq), draft, sync=True)
            draft.close()
    for seq in listed:
        _repair_shard(log, manifest, seq, far=seq > far)


def _repair_shard(log: SessionLog, manifest: Manifest, seq: int, *, far: bool) -> None:
    key = log.keys.shard(seq)
    try:
        data = log.shard(seq)
        if data is None or (not far and (manifest.durability == "none" or _whole(data) is not None)):
            return
    except (Corrupt, UnsupportedFormat):
        return  # no file of ours, or of a newer version; verify names it, and only a human can say what to do
    keep_damaged(log, shard_name(seq), data)
    seen = log.backend.look(key, None)
    if far:
        log.backend.delete(key)
    elif seen is not None:
        log.backend.replace(key, _lost(), seen)
