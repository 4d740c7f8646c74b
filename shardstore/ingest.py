"""Bulk birth: a session that enters with its whole history, straight into segments, no shard a line.

Rule: the manifest is created last and names the segments; until then nothing exists, and if somebody else's session
was born first, ours never was. Segments of a birth have base generation 0. Memory is bounded by one segment.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain

from shardstore.compact import create_segment, discard_segments, sweep
from shardstore.errors import Conflict, Deleted, InvalidRequest, NotFound, ShardstoreError, describe
from shardstore.layout import SEQ_MAX
from shardstore.log import SessionLog
from shardstore.manifest import Durability, Manifest, SegmentRef
from shardstore.record import (
    FORMAT,
    KEY_BYTES_MAX,
    SOURCE_BYTES_MAX,
    Header,
    NewRecord,
    Record,
    encode_header,
)
from shardstore.segment import SegmentIndex
from shardstore.writer import bear, new_nonce, now_ms

__all__ = ["check_fields", "check_seqs", "ingest", "restore"]

IMPORT_SEGMENT_BYTES = 32 << 20

Shard = tuple[Header, bytes, bytes]  # header, its line, payload


def check_fields(kind: str, source: str, key: str | None, payload_bytes: int, *, bytes_max: int) -> None:
    """Raise InvalidRequest unless a record may carry these fields."""
    if kind not in ("turn", "event"):
        raise InvalidRequest(describe("kind must be 'turn' or 'event'", kind=kind))
    if not isinstance(source, str):
        raise InvalidRequest(describe("source must be a str", source=source))
    _check_source(source)
    if key is not None and (not isinstance(key, str) or not key or _size(key) > KEY_BYTES_MAX):
        raise InvalidRequest(describe("key must be a non-empty str", key=key, bytes_max=KEY_BYTES_MAX))
    if payload_bytes > bytes_max:
        raise InvalidRequest(
            describe(
                "record is over the limit; open the store with a larger record_bytes_max, or split it",
                bytes=payload_bytes,
                bytes_max=bytes_max,
            )
        )


@lru_cache(maxsize=1024)
def _check_source(source: str) -> None:
    if not source or _size(source) > SOURCE_BYTES_MAX:
        raise InvalidRequest(describe("source must be a non-empty str", source=source, bytes_max=SOURCE_BYTES_MAX))


def check_seqs(**seqs: int | None) -> None:
    """Raise InvalidRequest unless each is None or a whole number from 0 on that fits 63 bits."""
    for name, seq in seqs.items():
        if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq <= SEQ_MAX):
            raise InvalidRequest(describe(f"{name} must be a whole number from 0 on", got=seq))


def _size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(describe("text must be valid Unicode", text=text)) from error


def ingest(log: SessionLog, records: Iterable[bytes | NewRecord], *, durability: Durability, bytes_max: int) -> int:
    """Bear a session that holds `records`, in order; return their number.

    Raises Conflict if the session exists, InvalidRequest for a record that may not enter; nothing exists then.
    """
    if not isinstance(records, Iterable):
        raise InvalidRequest(describe("records must be an iterable of lines", got=type(records)))
    shards = _distinct(_shard(record, bytes_max) for record in records)
    return _bear_with(log, shards, durability, new_nonce(), now_ms(), False)


def restore(log: SessionLog, records: Iterable[Record], manifest: Manifest) -> int:
    """Bear a session with the same records, nonces and facts as the one that `manifest` describes."""
    shards = (_shard_again(record) for record in records)
    return _bear_with(log, shards, manifest.durability, manifest.birth, manifest.created_at, manifest.archived)


def _shard(record: bytes | NewRecord, bytes_max: int) -> Shard:
    new = NewRecord(payload=record, source="import") if isinstance(record, bytes) else record
    if not isinstance(new, NewRecord) or not isinstance(new.payload, bytes) or not new.payload:
        raise InvalidRequest(describe("an imported record is a line as bytes, or a NewRecord of one", got=type(record)))
    check_fields(new.kind, new.source, new.key, len(new.payload), bytes_max=bytes_max)
    check_seqs(at_ms=new.at_ms)
    at_ms = now_ms() if new.at_ms is None else new.at_ms
    header = Header(FORMAT, new.kind, new.source, at_ms, None, new.key, new_nonce(), len(new.payload))
    return header, encode_header(header, new.payload), new.payload


def _distinct(shards: Iterator[Shard]) -> Iterator[Shard]:
    """Refuse a key that comes twice: a key is committed once."""
    keys: set[str] = set()
    for shard in shards:
        key = shard[0].key
        if key is not None:
            if key in keys:
                raise InvalidRequest(describe("two imported records have the same key", key=key))
            keys.add(key)
        yield shard


def _shard_again(record: Record) -> Shard:
    header = Header(
        FORMAT, record.kind, record.source, record.at_ms, record.base, record.key, record.nonce, len(record.payload)
    )
    return header, encode_header(header, record.payload), record.payload


def _bear_with(
    log: SessionLog, shards: Iterator[Shard], durability: Durability, birth: str, created_at: int, archived: bool
) -> int:
    if _exists(log):
        raise Conflict(describe("session exists already; append to it, or choose another id", session=log.id))
    log.require_unborn()
    segments: list[SegmentRef] = []
    try:
        for batch in _batches(shards):
            first = segments[-1].last + 1 if segments else 1
            segments.append(_write(log, first, batch))
        last = segments[-1].last if segments else 0
        born = Manifest(FORMAT, 1, new_nonce(), birth, created_at, durability, "open", archived, last, tuple(segments))
        ours = bear(log, durability, born)
    except BaseException:
        discard_segments(log, segments)
        raise
    if not ours:
        discard_segments(log, segments)
        raise Conflict(describe("session was born meanwhile; append to it instead", session=log.id))
    # What a killed import left here must not be taken for this one's, should the manifest be lost. Where that can't be
    # done now, the next compaction does it: the session is born all the same.
    with suppress(ShardstoreError), log.backend.exclusive(log.keys.folder) as held:
        if held:
            sweep(log)
    log.backend.advise(log.keys.folder, last)  # a sign that there was a session, should its manifest ever be lost
    return last


def _exists(log: SessionLog) -> bool:
    try:
        log.look()
    except Deleted:
        raise
    except NotFound:
        return False
    return True


def _batches(shards: Iterator[Shard]) -> Iterator[list[Shard]]:
    batch: list[Shard] = []
    size = 0
    for shard in shards:
        batch.append(shard)
        size += len(shard[1]) + len(shard[2])
        if size >= IMPORT_SEGMENT_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(log: SessionLog, first: int, batch: list[Shard]) -> SegmentRef:
    index = SegmentIndex(first)
    for header, line, payload in batch:
        index.add(header, payload, len(line), zlib.crc32(payload))
    parts = chain.from_iterable((line, payload) for _, line, payload in batch)
    return create_segment(log, index, _gathered(parts), last=first + len(batch) - 1, base=0)


def _gathered(parts: Iterable[bytes], size_max: int = 1 << 20) -> Iterator[bytes]:
    """Join small pieces, so that they are written by few calls."""
    pieces: list[bytes] = []
    size = 0
    for part in parts:
        pieces.append(part)
        size += len(part)
        if size >= size_max:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)
