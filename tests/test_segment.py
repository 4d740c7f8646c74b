"""Segments as bytes: the footer finds every record, and no damage to it passes unnoticed."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardstore import Corrupt, UnsupportedFormat
from shardstore.manifest import SegmentRef
from shardstore.record import FORMAT, Header, encode_header
from shardstore.segment import (
    INDEX_ENTRIES,
    KEY_PAIRS,
    TRAILER_BYTES,
    IndexEntry,
    SegmentIndex,
    check_trailer,
    decode_index_page,
    decode_key_page,
    decode_trailer,
    index_page_range,
    key_hash,
    key_page_range,
    kind_of,
    segment_size,
    span,
)

NONCE = "ab" * 16


def build(count: int, *, first: int = 1, key_each: int = 0, payload: bytes = b"x\n") -> tuple[SegmentRef, bytes]:
    """Return a segment of `count` records, every `key_each`-th with a key, and its bytes."""
    index = SegmentIndex(first)
    data = b""
    for number in range(count):
        key = f"k{number}" if key_each and number % key_each == 0 else None
        kind = ("turn", "event", "control")[number % 3]
        body = payload * (number % 4)
        header = Header(FORMAT, kind, "s", number, None, key, NONCE, len(body))  # type: ignore[arg-type]
        line = encode_header(header, body)
        index.add(header, body, len(line), zlib.crc32(body))
        data += line + body
    return index.reference(7, NONCE), data + b"".join(index.footer())


def index_of(segment: SegmentRef, data: bytes) -> list[IndexEntry]:
    """Decode all index pages."""
    entries: list[IndexEntry] = []
    for number in range(-(-(segment.last - segment.first + 1) // INDEX_ENTRIES)):
        start, length = index_page_range(segment, number)
        entries += decode_index_page(segment, number, data[start : start + length], what="test")
    return entries


def keys_of(segment: SegmentRef, data: bytes) -> list[tuple[int, int]]:
    """Decode all key pages."""
    pairs: list[tuple[int, int]] = []
    for number in range(-(-segment.keys // KEY_PAIRS)):
        start, length = key_page_range(segment, number)
        pairs += decode_key_page(segment, number, data[start : start + length], what="test")
    return pairs


def read_footer(segment: SegmentRef, data: bytes) -> None:
    """Read everything in the footer, as verification does. Raises Corrupt or UnsupportedFormat for damage."""
    check_trailer(segment, data[-TRAILER_BYTES:], what="test")
    index_of(segment, data)
    keys_of(segment, data)


@pytest.mark.parametrize("count", [1, 2, INDEX_ENTRIES - 1, INDEX_ENTRIES, INDEX_ENTRIES + 1, 3 * INDEX_ENTRIES + 5])
@pytest.mark.parametrize("key_each", [0, 1, 7])
def test_footer_finds_every_record(count: int, key_each: int) -> None:
    """Offsets, lengths, kinds, checksums and keys in the footer are those of the records, at any page boundary."""
    segment, data = build(count, first=11, key_each=key_each)
    assert len(data) == segment.size == segment_size(segment.data, count, segment.keys)
    entries = index_of(segment, data)
    assert len(entries) == count
    reached = 0
    for number, (offset, payload_length, header_length, crc, flags, lines) in enumerate(entries):
        payload = b"x\n" * (number % 4)
        begin = offset + header_length
        assert offset == reached
        assert data[begin : begin + payload_length] == payload
        assert (crc, lines) == (zlib.crc32(payload), number % 4)
        assert kind_of(flags) == ("turn", "event", "control")[number % 3]
        reached = begin + payload_length
    assert reached == segment.data
    pairs = keys_of(segment, data)
    keyed = range(0, count, key_each) if key_each else range(0)
    assert pairs == sorted((key_hash(f"k{number}"), 11 + number) for number in keyed)
    check_trailer(segment, data[-TRAILER_BYTES:], what="test")


def test_many_keys_fill_many_pages() -> None:
    """Keys beyond one page are all found, sorted over the pages."""
    segment, data = build(KEY_PAIRS * 2 + 3, key_each=1)
    pairs = keys_of(segment, data)
    assert len(pairs) == KEY_PAIRS * 2 + 3
    assert pairs == sorted(pairs)


def test_every_flipped_bit_of_the_footer_is_noticed() -> None:
    """One flipped bit in an index page, a key page or the trailer is an error."""
    segment, data = build(5, key_each=2)
    for bit in range(segment.data * 8, len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Corrupt, UnsupportedFormat)):
            read_footer(segment, bytes(flipped))


def test_every_cut_is_noticed() -> None:
    """A footer from which anything is missing is Corrupt."""
    segment, data = build(5, key_each=2)
    for length in range(segment.data, len(data)):
        with pytest.raises(Corrupt):
            read_footer(segment, data[:length])


def test_swapped_pages_are_noticed() -> None:
    """A page that is whole, but not at its place, is Corrupt."""
    segment, data = build(INDEX_ENTRIES * 2, key_each=1)
    pages = [data[start : start + length] for start, length in (index_page_range(segment, n) for n in (0, 1))]
    with pytest.raises(Corrupt):
        decode_index_page(segment, 0, pages[1], what="test")
    with pytest.raises(Corrupt):
        decode_index_page(segment, 1, pages[0], what="test")


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2, *[st.integers(0, 2**32 - 1)] * 4), min_size=3, max_size=3))
@settings(deadline=None, max_examples=200)
@example([(0, 2**64 - 1, 10, 0, 0, 0), (9, 0, 0, 0, 0, 0), (9, 0, 0, 0, 0, 0)])
@example([(0, 10, 0, 0, 0, 0), (5000, 10, 0, 0, 0, 0), (20, 10, 0, 0, 0, 0)])
def test_index_page_never_points_outside(entries: list[tuple[int, ...]]) -> None:
    """A page with a right checksum and wrong numbers is Corrupt, or all its ranges lie inside the segment's data."""
    segment = SegmentRef(1, 3, 0, NONCE, 1000, 0, segment_size(1000, 3, 0))
    body = b"".join(struct.pack("<QQIIII", *entry) for entry in entries)
    page = body + struct.pack("<I", zlib.crc32(body, 0))
    try:
        decoded = decode_index_page(segment, 0, page, what="test")
    except Corrupt:
        return
    assert all(sum(span(entry)) <= segment.data for entry in decoded)


@given(st.binary(max_size=TRAILER_BYTES + 8))
@settings(deadline=None)
def test_any_trailer(data: bytes) -> None:
    """Random bytes are no trailer, sealed or not."""
    for trailer in (data, data + struct.pack("<I", zlib.crc32(data))):
        with pytest.raises((Corrupt, UnsupportedFormat)):
            decode_trailer(trailer, what="test")


def test_trailer_of_a_newer_format() -> None:
    """A larger format number is UnsupportedFormat."""
    body = struct.pack("<8sIQQQQ", b"shardseg", 2, 1, 1, 100, 0)
    with pytest.raises(UnsupportedFormat):
        decode_trailer(body + struct.pack("<I", zlib.crc32(body)), what="test")


@pytest.mark.parametrize("change", [{"first": 2, "last": 6}, {"last": 6}, {"data": 3}, {"keys": 0}])
def test_trailer_of_another_segment(change: dict[str, int]) -> None:
    """A whole trailer that says something else than the manifest is Corrupt."""
    segment, data = build(5, key_each=2)
    fields = {name: getattr(segment, name) for name in ("first", "last", "base", "nonce", "data", "keys", "size")}
    other = SegmentRef(**{**fields, **change})
    with pytest.raises(Corrupt):
        check_trailer(other, data[-TRAILER_BYTES:], what="test")


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_any_flags(flags: int) -> None:
    """Flags name a kind, or are Corrupt."""
    try:
        assert kind_of(flags) in ("turn", "event", "control")
    except Corrupt:
        return


def test_key_hash_takes_any_text() -> None:
    """Every key that an append takes has a hash of 64 bits."""
    for key in ["a", "\0", "\U0001f600" * 256, "k" * 1024]:
        assert 0 <= key_hash(key) < 2**64
