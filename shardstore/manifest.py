"""The manifest: the one object of a session that is ever replaced, and only by whoever holds its generation.

Rule: pure. A manifest is a value; every change is a new value with the next generation and a fresh nonce.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from shardstore.errors import Corrupt, UnsupportedFormat, describe
from shardstore.record import FORMAT, seal, unseal

__all__ = ["Durability", "Manifest", "SegmentRef", "decode_manifest", "encode_manifest", "successor"]

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
        if not _NONCE.fullmatch(segment.nonce) or not (
            0 <= segment.data < segment.size and segment.base >= 0 and segment.keys >= 0
        ):
            raise Corrupt(describe("manifest names a segment that can't be", what=what, seq=segment.first))
        if segment.first != reached + 1 or segment.last < segment.first:
            raise Corrupt(describe("manifest names segments that do not follow each other", what=what, seq=reached + 1))
        reached = segment.last
    if manifest.shardstore != FORMAT or (reached != manifest.watermark and manifest.state != "deleted"):
        raise Corrupt(describe("manifest contradicts itself", what=what, watermark=manifest.watermark, reached=reached))
    return manifest


def successor(manifest: Manifest, nonce: str, **changes: object) -> Manifest:
    """Return the next generation of `manifest` with `changes` applied."""
    return replace(manifest, generation=manifest.generation + 1, nonce=nonce, **changes)  # type: ignore[arg-type]
