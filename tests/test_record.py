"""Shards as bytes: any bytes decode to a record, or to Corrupt or UnsupportedFormat, and to nothing else."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardstore import Corrupt, UnsupportedFormat, split_lines
from shardstore.record import (
    FORMAT,
    KEY_BYTES_MAX,
    SOURCE_BYTES_MAX,
    Header,
    counts_as_turn,
    decode_header,
    decode_shard,
    encode_header,
    seal,
    unseal,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SEQS = st.integers(0, 2**63 - 1)
HEADERS = st.builds(
    Header,
    st.just(FORMAT),
    st.sampled_from(["turn", "event", "control"]),
    TEXT,
    SEQS,
    st.none() | SEQS,
    st.none() | TEXT,
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.just(0),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=8
)
FIELDS = {
    "shardstore": 1,
    "kind": "turn",
    "source": "main",
    "at": 5,
    "base": None,
    "key": None,
    "nonce": "n",
    "length": 2,
}


def sealed(header: object, payload: bytes) -> bytes:
    """Return a shard with this JSON value for a header and a checksum that is right."""
    body = json.dumps(header).encode()[:-1]
    checked = zlib.crc32(zlib.crc32(payload).to_bytes(4, "little"), zlib.crc32(body))
    return body + b',"crc32":"%08x"}\n' % checked + payload


def shard_of(header: Header, payload: bytes) -> bytes:
    """Return the bytes of a shard."""
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    whole = Header(**{**fields, "length": len(payload)})
    return encode_header(whole, payload) + payload


def outcome(data: bytes) -> str:
    """Decode; return what came of it, letting through only what is allowed to come of it."""
    try:
        header, payload, length = decode_shard(data, what="test")
    except UnsupportedFormat:
        return "newer"
    except Corrupt:
        return "corrupt"
    assert data[length:] == payload
    assert header.length == len(payload)
    return "record"


@given(HEADERS, st.binary(max_size=300))
@settings(deadline=None, max_examples=150)
def test_round_trip(header: Header, payload: bytes) -> None:
    """Whatever a header and a payload hold, the shard gives both back."""
    decoded, found, length = decode_shard(shard_of(header, payload), what="test")
    assert found == payload
    assert (decoded.kind, decoded.source, decoded.at_ms) == (header.kind, header.source, header.at_ms)
    assert (decoded.base, decoded.key, decoded.nonce) == (header.base, header.key, header.nonce)
    assert decode_header(shard_of(header, payload)[:length], what="test") == decoded


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
@example(b"")
@example(b"\n")
@example(b"{}\n")
@example(b"\n" * 40)
def test_any_bytes_decode_to_an_allowed_outcome(data: bytes) -> None:
    """Random bytes are Corrupt; no other exception ever leaves the decoder."""
    assert outcome(data) == "corrupt"


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON), st.binary(max_size=20))
@settings(deadline=None, max_examples=300)
@example({"shardstore": 2}, b"")
@example({"shardstore": 2, "future": {"deep": [1]}}, b"xx")
@example({"shardstore": 10**400}, b"xx")
@example({"shardstore": True}, b"xx")
@example({"shardstore": 0}, b"xx")
@example({"length": -2}, b"xx")
@example({"source": "\ud800"}, b"xx")
@example({"kind": "blob"}, b"xx")
@example({"at": 1e400}, b"xx")
@example({"shardstore": 2, "at": 1e400}, b"xx")
def test_any_header_with_a_right_checksum(changes: dict[str, Any], payload: bytes) -> None:
    """A header of a wrong type or value is Corrupt even where its checksum is right; a larger format is newer."""
    found = outcome(sealed({**FIELDS, **changes}, payload))
    version = changes.get("shardstore", 1)
    is_newer = isinstance(version, int) and not isinstance(version, bool) and 1 < version < 2**63
    if is_newer and "Infinity" not in json.dumps(changes) and "NaN" not in json.dumps(changes):  # else no JSON at all
        assert found == "newer"
    elif version != 1:
        assert found in ("corrupt", "newer")


@pytest.mark.parametrize("header", [5, "x", [1, 2], None, "[" * 3000, [[[]]]])
def test_header_that_is_no_object(header: object) -> None:
    """A header line of another JSON type is Corrupt."""
    assert outcome(sealed(header, b"")) == "corrupt"


def test_deeply_nested_header() -> None:
    """Nesting far beyond any parser's stack is Corrupt, not a crash."""
    body = b'{"shardstore":1,"kind":' + b"[" * 7000 + b"]" * 7000
    checked = zlib.crc32(bytes(4), zlib.crc32(body))
    assert outcome(body + b',"crc32":"%08x"}\n' % checked) == "corrupt"


def test_every_flipped_bit_is_noticed() -> None:
    """One flipped bit anywhere in a shard makes it Corrupt."""
    header = Header(FORMAT, "turn", "main", 1_700_000_000_000, 7, "k\u00e9y", "0" * 32, 0)
    data = shard_of(header, b'{"role":"user","text":"caf\xc3\xa9"}\nsecond line without an end')
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(flipped)) == "corrupt", bit


def test_every_torn_length_is_noticed() -> None:
    """A shard cut anywhere, or with anything behind it, is Corrupt."""
    header = Header(FORMAT, "event", "cron:x", 1, None, None, "0" * 32, 0)
    data = shard_of(header, b"one\ntwo\n")
    assert all(outcome(data[:length]) == "corrupt" for length in range(len(data)))
    assert outcome(data + b"\n") == "corrupt"
    assert outcome(data + data) == "corrupt"
    assert outcome(data + b"\0" * 4096) == "corrupt"


def test_largest_fields_fit_the_header_line() -> None:
    """Source and key of the greatest length, all of them characters that JSON escapes, still read back."""
    header = Header(
        FORMAT, "event", "\x01" * SOURCE_BYTES_MAX, 2**63 - 1, 2**63 - 1, "\x01" * KEY_BYTES_MAX, "f" * 32, 0
    )
    decoded, _, _ = decode_shard(shard_of(header, b"x"), what="test")
    assert (decoded.source, decoded.key) == (header.source, header.key)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_split_lines_loses_nothing(payload: bytes) -> None:
    """Lines join to the payload again; each but the last ends with LF, and none is empty."""
    lines = split_lines(payload)
    assert b"".join(lines) == payload
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert all(line.count(b"\n") <= 1 and line for line in lines)


@pytest.mark.parametrize("separator", ["\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_lf_ends_a_line(separator: str) -> None:
    """What other programs take for a line break does not split a line here."""
    line = b'{"text":"a' + separator.encode() + b'b"}\r\n'
    assert split_lines(line + line) == [line, line]


@given(st.binary(max_size=120))
@settings(deadline=None, max_examples=200)
def test_any_sealed_line(data: bytes) -> None:
    """A line that `seal` did not make is Corrupt or newer."""
    for line in (data, data + b',"crc32":"%08x"}\n' % zlib.crc32(data)):
        with pytest.raises((Corrupt, UnsupportedFormat)):
            unseal(line, Header, what="test")


def test_seal_round_trip() -> None:
    """A sealed value comes back, and no flipped bit passes."""
    header = Header(FORMAT, "turn", "main", 1, None, None, "n", 3)
    line = seal(header)
    assert unseal(line, Header, what="test") == header
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Corrupt, UnsupportedFormat)):
            unseal(bytes(flipped), Header, what="test")


def test_what_counts_as_a_turn() -> None:
    """Turns and unknown control operations defeat a condition; events, `lost` and `delete` do not."""
    assert counts_as_turn("turn", "anything")
    assert counts_as_turn("control", "redact")
    assert not counts_as_turn("event", "main")
    assert not counts_as_turn("control", "lost")
    assert not counts_as_turn("control", "delete")
