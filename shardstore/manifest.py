"""The manifest: the one object of a session that is ever replaced, and only by whoever holds its generation.

Rule: pure. A manifest is a value; every change is a new value with the next generation and a fresh nonce.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from shardstore.errors import Corrupt, UnsupportedFormat, describe
from shardstore.record import FORMAT, seal, unseal

__all__ = [
    "CRC_BYTES",
    "ENTRY_BYTES",
    "INDEX_ENTRIES",
    "KEY_PAIRS",
    "PAIR_BYTES",
    "TRAILER_BYTES",
    "Durability",
    "Manifest",
    "SegmentRef",
    "decode_manifest",
    "encode_manifest",
    "segment_size",
    "successor",
]

INDEX_ENTRIES = 128  # of a segment's footer, in one page
KEY_PAIRS = 256
ENTRY_BYTES, PAIR_BYTES, CRC_BYTES, TRAILER_BYTES = 32, 16, 4, 48
FILE_BYTES_MAX = 2**63 - 1
RECORDS_MAX = 1 << 21  # in one segment: it is merged up to 256 MiB, and a header takes 150 bytes

_NONCE = re.compile("[0-9a-f]{32}")
Durability = Literal["sync", "none"]
State = Literal["open", "closing", "deleted"]


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """What the manifest says of a segment; its file name follows from the first four fields.

    `data` is the length in bytes of the records, where the index begins; `keys` counts the records with a key,
    `size` is the whole file in bytes.
    """

    first: int
    last: int
    base: int
    nonce: str
    data: int
    keys: int
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A session's facts and its segments, which cover the seqs 1..`watermark` without a gap."""

    shardstore: int
    generation: int
    nonce: str
    birth: str
    created_at: int
    durability: Durability
    state: State
    archived: bool
    watermark: int
    segments: tuple[SegmentRef, ...]


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's bytes: one sealed JSON line."""
    return seal(manifest)


def decode_manifest(data: bytes, *, what: str) -> Manifest:
    """Decode a manifest. Raises Corrupt, or UnsupportedFormat if a newer version wrote it."""
    manifest = unseal(data, Manifest, what=what)
    if manifest.shardstore > FORMAT:
        raise UnsupportedFormat(describe("written by a newer shardstore; upgrade this one", what=what))
    reached = 0
    for segment in manifest.segments:
        if not _is_possible(segment):
            raise Corrupt(describe("manifest names a segment that can't be", what=what, seq=segment.first))
        if segment.first != reached + 1:
            raise Corrupt(describe("manifest names segments that do not follow each other", what=what, seq=reached + 1))
        reached = segment.last
    tombstone = manifest.state == "deleted" and not manifest.segments
    if manifest.shardstore != FORMAT or (reached != manifest.watermark and not tombstone):
        raise Corrupt(describe("manifest contradicts itself", what=what, watermark=manifest.watermark, reached=reached))
    return manifest


def _is_possible(segment: SegmentRef) -> bool:
    """Say whether there can be such a file: whoever reads it relies on these numbers for offsets and memory."""
    count = segment.last - segment.first + 1
    if not (0 < count <= RECORDS_MAX and 0 <= segment.keys <= count and segment.data >= 0 and segment.base >= 0):
        return False
    size = segment_size(segment.data, count, segment.keys)
    return segment.size == size <= FILE_BYTES_MAX and _NONCE.fullmatch(segment.nonce) is not None


def successor(manifest: Manifest, nonce: str, **changes: object) -> Manifest:
    """Return the next generation of `manifest` with `changes` applied."""
    return replace(manifest, generation=manifest.generation + 1, nonce=nonce, **changes)  # type: ignore[arg-type]


def segment_size(data: int, count: int, keys: int) -> int:
    """Return the bytes of a segment file with `data` bytes of records, `count` records and `keys` keys."""
    index = count * ENTRY_BYTES + -(-count // INDEX_ENTRIES) * CRC_BYTES
    return data + index + keys * PAIR_BYTES + -(-keys // KEY_PAIRS) * CRC_BYTES + TRAILER_BYTES
