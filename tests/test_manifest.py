"""Manifests as bytes: a value goes in and comes out; anything else is Corrupt or UnsupportedFormat."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardstore import Corrupt, UnsupportedFormat
from shardstore.layout import parse_segment_name, segment_name
from shardstore.manifest import Manifest, SegmentRef, decode_manifest, encode_manifest, segment_size, successor

NONCE = "0123456789abcdef" * 2
COUNTS = st.integers(0, 2**62)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=8
)


def sample(**changes: Any) -> Manifest:
    """Return a manifest with two segments, some fields changed."""
    segments = (SegmentRef(1, 5, 0, NONCE, 500, 1, 732), SegmentRef(6, 9, 3, NONCE[::-1], 400, 0, 580))
    fields = {
        "shardstore": 1, "generation": 4, "nonce": NONCE, "birth": NONCE, "created_at": 1_700_000_000_000,
        "durability": "sync", "state": "open", "archived": False, "watermark": 9, "segments": segments,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def as_json() -> dict[str, Any]:
    """Return the sample as its JSON object, without the checksum."""
    fields: dict[str, Any] = json.loads(encode_manifest(sample()))
    del fields["crc32"]
    return fields


def sealed(value: object) -> bytes:
    """Return a line with this value and a checksum that is right."""
    body = json.dumps(value).encode()[:-1]
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


@given(st.lists(st.tuples(st.integers(1, 2**21), COUNTS, COUNTS, st.floats(0, 1)), max_size=5), COUNTS, st.booleans())
@settings(deadline=None)
def test_round_trip(parts: list[tuple[int, int, int, float]], generation: int, archived: bool) -> None:
    """Any manifest of segments that follow each other decodes to itself."""
    segments: list[SegmentRef] = []
    reached = 0
    for count, base, data, share in parts:
        keys = int(count * share)
        size = segment_size(data, count, keys)
        segments.append(SegmentRef(reached + 1, reached + count, base, NONCE, data, keys, size))
        reached += count
    manifest = sample(segments=tuple(segments), watermark=reached, generation=generation, archived=archived)
    assert decode_manifest(encode_manifest(manifest), what="test") == manifest


def test_every_flipped_bit_is_noticed() -> None:
    """One flipped bit anywhere in a manifest is an error."""
    data = encode_manifest(sample())
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Corrupt, UnsupportedFormat)):
            decode_manifest(bytes(flipped), what="test")


def test_every_torn_length_is_noticed() -> None:
    """A manifest cut anywhere, or written twice, is Corrupt."""
    data = encode_manifest(sample())
    for torn in [data[:length] for length in range(len(data))] + [data + data, data + b"\n", data + b"\0" * 100]:
        with pytest.raises(Corrupt):
            decode_manifest(torn, what="test")


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes(data: bytes) -> None:
    """Random bytes, sealed or not, raise Corrupt or UnsupportedFormat and nothing else."""
    for line in (data, data + b',"crc32":"%08x"}\n' % zlib.crc32(data)):
        with pytest.raises((Corrupt, UnsupportedFormat)):
            decode_manifest(line, what="test")


@given(st.dictionaries(st.sampled_from([*as_json(), "other"]), JSON, min_size=1))
@settings(deadline=None, max_examples=300)
@example({"watermark": 8})
@example({"segments": []})
@example({"segments": None})
@example({"state": "future"})
@example({"shardstore": 0})
@example({"shardstore": -1})
@example({"generation": "x"})
def test_any_fields_with_a_right_checksum(changes: dict[str, Any]) -> None:
    """A manifest with fields of a wrong type or value decodes to a consistent manifest, or is refused."""
    try:
        manifest = decode_manifest(sealed({**as_json(), **changes}), what="test")
    except (Corrupt, UnsupportedFormat):
        return
    assert manifest.segments[-1:] == () or manifest.segments[-1].last == manifest.watermark
    assert manifest.state in ("open", "closing", "deleted")


@pytest.mark.parametrize(
    ("field", "value"),
    [("nonce", "../../../etc/passwd"), ("nonce", "\0"), ("nonce", "x/y"), ("base", -1), ("last", 2**70), ("data",
    -1), ("keys", -1), ("size", 3), ("size", 733), ("keys", 6), ("last", 2**60), ("data", 2**63),
     ("first", 2), ("last", 0)],
)  # fmt: skip
def test_segment_that_can_not_be(field: str, value: object) -> None:
    """A segment whose name or size is impossible makes the manifest Corrupt; it never becomes a path or a read."""
    fields = as_json()
    fields["segments"][0][field] = value
    with pytest.raises(Corrupt):
        decode_manifest(sealed(fields), what="test")


def test_newer_format() -> None:
    """A manifest of a larger format number is UnsupportedFormat, whatever else it holds."""
    for fields in ({**as_json(), "shardstore": 2}, {"shardstore": 2}, {"shardstore": 7, "shards": {"a": [1]}}):
        with pytest.raises(UnsupportedFormat):
            decode_manifest(sealed(fields), what="test")


def test_segments_must_follow_each_other() -> None:
    """A gap, an overlap or a wrong watermark between segments is Corrupt."""
    one, two = sample().segments
    gap = SegmentRef(7, 9, 3, NONCE, 400, 0, 548)
    overlap = SegmentRef(5, 9, 3, NONCE, 400, 0, 612)
    for segments, watermark in [
        ((one, gap), 9),
        ((one, overlap), 9),
        ((two,), 9),
        ((one, two), 10),
        ((one,), 9),
        ((), 9),
    ]:
        with pytest.raises(Corrupt):
            decode_manifest(encode_manifest(sample(segments=segments, watermark=watermark)), what="test")


def test_tombstone_keeps_its_watermark_without_segments() -> None:
    """A deleted session's manifest names no segments and still knows how far it went."""
    manifest = sample(state="deleted", segments=())
    assert decode_manifest(encode_manifest(manifest), what="test") == manifest


def test_successor() -> None:
    """The next generation differs in generation, nonce and what was asked for, in nothing else; birth stays."""
    manifest = sample()
    following = successor(manifest, "f" * 32, archived=True)
    assert (following.generation, following.nonce, following.archived) == (5, "f" * 32, True)
    assert following.birth == manifest.birth
    assert following.segments == manifest.segments
    assert manifest.generation == 4


def test_names_of_segments_parse_back() -> None:
    """What a manifest says of a segment and what its file name says agree."""
    for segment in sample().segments:
        assert parse_segment_name(segment_name(segment)) == (segment.first, segment.last, segment.base, segment.nonce)
