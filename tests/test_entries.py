"""What an append takes: each input is a faithful round trip, compacted or not, or a clear InvalidRequest."""

from __future__ import annotations

import datetime
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import InvalidRequest, NewRecord, NotFound, Session
from shardstore.record import decode_line, encode_entries


class Usage(msgspec.Struct):
    """A nested struct."""

    tokens: int
    cost: float | None = None


class Message(msgspec.Struct, rename="camel"):
    """A struct as callers have them."""

    role: str
    tool_name: str | None = None
    usage: Usage | None = None


class Text(str):
    """A subclass of str, as enums and template engines have them."""

    __slots__ = ()


@pytest.fixture
def session(store_path: str) -> Session:
    return shardstore.open(store_path, compact_shards=None).session("s")


def stored(session: Session, entries: object) -> bytes:
    """Append; return the payload that reads back, the same before and after compaction."""
    seq = session.append(entries).seq
    (before,) = session.records(seq, seq)
    session.compact()
    (after,) = session.records(seq, seq)
    assert before == after
    assert session.read_jsonl(seq, seq) == before.payload
    assert session.verify() == []
    return before.payload


JSON_CASES: list[tuple[object, list[object]]] = [
    ({"a": 1}, [{"a": 1}]),
    ({}, [{}]),
    ([{"a": 1}, {"b": [1, 2.5, None, True, "\u2028\n\t\0"]}], [{"a": 1}, {"b": [1, 2.5, None, True, "\u2028\n\t\0"]}]),
    (Message("user"), [{"role": "user", "toolName": None, "usage": None}]),
    ([Message("tool", "x", Usage(5)), {"m": Usage(1, 0.5)}],
     [{"role": "tool", "toolName": "x", "usage": {"tokens": 5, "cost": None}}, {"m": {"tokens": 1, "cost": 0.5}}]),
    ({"a": 2**63 - 1, "b": -(2**63), "c": 2**64 - 1}, [{"a": 2**63 - 1, "b": -(2**63), "c": 2**64 - 1}]),
    ({"a": "\ud800"}, [{"a": "\ud800"}]),
    ({"\udfff": "x", "n": None}, [{"\udfff": "x", "n": None}]),
    (OrderedDict(z=1, a=None), [{"z": 1, "a": None}]),
    ({"a": (1, None)}, [{"a": [1, None]}]),
    ({"a": Text("x"), "b": None}, [{"a": "x", "b": None}]),
    ({"null": "null", "a": float("1e308")}, [{"null": "null", "a": 1e308}]),
    ((entry for entry in ({"a": 1}, {"b": 2})), [{"a": 1}, {"b": 2}]),
    ([[1, 2], None, 5], [[1, 2], None, 5]),
    ({"id": uuid.UUID(int=1), "n": None}, [{"id": str(uuid.UUID(int=1)), "n": None}]),
    ({"at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "n": None}, [{"at": "2026-01-02T00:00:00+00:00",
    "n": None}]),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "expected"), JSON_CASES, ids=range(len(JSON_CASES)))
def test_json_round_trip(session: Session, entries: object, expected: list[object]) -> None:
    """Objects that JSON can carry come back equal, one line an entry, each line ended."""
    payload = stored(session, entries)
    assert payload.count(b"\n") == len(expected)
    assert payload.endswith(b"\n")
    (record,) = session.records()
    assert record.entries() == expected
    assert list(session.entries()) == expected
    assert list(session.entries(kind="turn", source="main")) == expected


RAW_CASES: list[bytes] = [
    b'{"a":1}\n',
    b'{"a":1}',
    b'{"a":1}\r\n{"b":2}\r\n',
    b"\n",
    b"\n\n{}\n\n",
    b"  \t \n",
    b"\xef\xbb\xbf{}\n",
    b'{"a":"\xe2\x80\xa8\xc2\x85"}\n',
    b"\xff\xfe\x00 no utf-8\n",
    b'{"a":NaN,"b":-Infinity}\n',
    b'{"a":1180591620717411303425}\n',
    b'{"a":"\\ud800"}\n',
    b'{"dup":1,"dup":2}\n',
    b"{ spaced :\n",
    b"\0\0\0",
    b'{"shardstore":1,"kind":"turn"}\n',
    b"[" * 5000 + b"\n",
    b"9" * 5000 + b"\n",
    "\u00e9\u4e2d\U0001f600\n".encode(),
    '{"a":1}\n'.encode("utf-16"),
]


@pytest.mark.parametrize("raw", RAW_CASES, ids=range(len(RAW_CASES)))
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda raw: [raw], lambda raw: iter([raw])])
def test_raw_bytes_are_kept(session: Session, raw: bytes, wrap: Callable[[bytes], object]) -> None:
    """Raw bytes are stored verbatim, whatever they are; as entries they decode, or are told apart as raw lines."""
    assert stored(session, wrap(raw)) == raw
    for entry in session.entries(invalid="raw"):
        assert not isinstance(entry, bytes) or entry in raw
    try:
        entries = list(session.entries())
    except InvalidRequest:
        return
    assert len(entries) == sum(1 for line in raw.split(b"\n") if line.strip())


def test_lines_that_python_can_read_decode(session: Session) -> None:
    """NaN, lone surrogates and a BOM in stored lines decode as Python's json reads them; blank lines hold no entry."""
    session.append(b'\n{"a":NaN}\r\n\n  \n{"b":"\\udc00"}\n\xef\xbb\xbf{"c":1}')
    first, second, third = session.entries()
    assert math.isnan(first["a"])
    assert (second, third) == ({"b": "\udc00"}, {"c": 1})


def test_mixed_entries_are_joined_by_newlines(session: Session) -> None:
    """A raw line that lacks its newline gets one before the next entry, the last one stays as it is."""
    assert stored(session, [b"raw", {"a": 1}, b"crlf\r\n", b"last"]) == b'raw\n{"a":1}\ncrlf\r\nlast'


def test_record_without_final_newline_in_the_view(session: Session) -> None:
    """The view puts a newline between a record that lacks one and the next; the records themselves stay as they are."""
    for payload in (b"one", b"two\n", b"three"):
        session.append(payload)
    assert session.read_jsonl() == b"one\ntwo\nthree"
    session.compact()
    assert session.read_jsonl() == b"one\ntwo\nthree"
    assert [record.payload for record in session.records()] == [b"one", b"two\n", b"three"]


def raising() -> Iterator[dict[str, int]]:
    """Yield one entry, then fail as a caller's generator may."""
    yield {"a": 1}
    raise KeyError("the caller's own error")


LOOP: dict[str, Any] = {}
LOOP["self"] = LOOP
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]
REFUSED: list[object] = [
    "text", ["text"], [{"a": 1}, "text"], b"", [], (), iter(()), [b""], [b"a\n", b""], None, 5, 1.5, True, object(),
    Message,
    {"a": math.nan}, {"a": [{"b": math.inf}]}, {"a": -math.inf}, [math.nan], Usage(1, math.nan), {"u": Usage(1,
    math.inf), "n": None},
    {"a": "\ud800", "b": math.nan}, {"a": 2**64}, {"a": -(2**63) - 1}, {1: "a"}, {None: 1}, {("a",): 1},
    {"a": {2: 3}}, {"a": object()},
    {"a": b"bytes"}, {"a": {1, 2}}, {"a": "\ud800", 5: 1}, {"a": "\ud800", "b": 2**64}, LOOP, [LOOP],
    {"deep": DEEP}, {"a": 1j},
    {"a": "\ud800", "deep": LOOP},
]  # fmt: skip


@pytest.mark.parametrize("entries", REFUSED, ids=range(len(REFUSED)))
def test_refused_before_anything_is_written(session: Session, entries: object) -> None:
    """What JSON can't carry exactly, text without an encoding, and nothing at all: InvalidRequest, and no session."""
    with pytest.raises(InvalidRequest):
        session.append(entries)
    with pytest.raises(NotFound):
        session.head()


def test_error_of_the_callers_generator(session: Session) -> None:
    """An error of the caller's own generator is the caller's, and nothing is written."""
    with pytest.raises(KeyError, match="the caller's own error"):
        session.append(raising())
    with pytest.raises(NotFound):
        session.head()


def test_record_limit(store_path: str) -> None:
    """A record of the limit's size goes in, one byte more is an InvalidRequest, by append and by import alike."""
    store = shardstore.open(store_path, record_bytes_max=1000, compact_shards=None)
    session = store.session("s")
    assert session.append(b"x" * 1000).seq == 1
    for oversized in (b"x" * 1001, [b"x" * 500, b"y" * 501], {"a": "x" * 1000}):
        with pytest.raises(InvalidRequest):
            session.append(oversized)
    with pytest.raises(InvalidRequest):
        store.import_session("t", [b"fine\n", b"x" * 1001])
    with pytest.raises(NotFound):
        store.session("t").head()
    assert session.head() == 1
    assert shardstore.open(store_path, record_bytes_max=10).session("s").read_jsonl() == b"x" * 1000


def test_default_limit_is_64_mib(session: Session) -> None:
    """64 MiB is the largest record by default, and it reads back from a shard and from a segment."""
    with pytest.raises(InvalidRequest):
        session.append(bytes(64 * 2**20 + 1))
    assert len(stored(session, bytes(64 * 2**20))) == 64 * 2**20


FIELDS: list[dict[str, Any]] = [
    {"kind": "control"}, {"kind": "blob"}, {"kind": None}, {"kind": ["turn"]}, {"source": ""}, {"source": None},
    {"source": "s" * 513},
    {"source": "\ud800"}, {"source": b"s"}, {"key": ""}, {"key": 5}, {"key": "k" * 1025}, {"key": "\ud800"},
    {"base": -1}, {"base": "1"},
    {"base": 2**63}, {"base": True}, {"base": 1.0}, {"at_ms": -1}, {"at_ms": 1.5}, {"at_ms": 2**63},
    {"if_no_turn_since": -1},
    {"if_no_turn_since": "0"}, {"if_no_turn_since": 1},
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_bad_fields_are_refused(session: Session, fields: dict[str, Any]) -> None:
    """A kind, source, key, base, time or condition that makes no sense is an InvalidRequest; no record is written."""
    with pytest.raises(InvalidRequest):
        session.append({"a": 1}, **fields)
    try:
        assert session.head() == 0
    except NotFound:
        return


IMPORTS: list[object] = [
    [5], ["text"], [{"a": 1}], [None], b"abc", "text", 5, None, [b""],
    [NewRecord(payload="text")], [NewRecord(payload=b"x", at_ms=1.5)],  # type: ignore[arg-type]
    [NewRecord(payload=b"x", at_ms="z")], [NewRecord(payload=b"x", at_ms=-5)],  # type: ignore[arg-type]
    [NewRecord(payload=b"x", at_ms=2**63)], [NewRecord(payload=b"x", at_ms=True)],
    [NewRecord(payload=b"x", kind="control")], [NewRecord(payload=b"x", source="")], [NewRecord(payload=b"x", key="")],
    [b"good\n", NewRecord(payload=None)],  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("records", IMPORTS, ids=range(len(IMPORTS)))
def test_bad_imports_are_refused(store_path: str, records: Any) -> None:
    """A bulk import that holds something that may not enter is an InvalidRequest and leaves no session."""
    store = shardstore.open(store_path)
    with pytest.raises(InvalidRequest):
        store.import_session("t", records)
    with pytest.raises(NotFound):
        store.session("t").head()
    assert list(store.sessions()) == []


@given(st.lists(st.binary(max_size=60).filter(bool), min_size=1, max_size=6))
@settings(deadline=None)
def test_any_raw_lines(lines: list[bytes]) -> None:
    """Any raw lines are kept, with newlines between them only where they lack one."""
    payload = encode_entries(list(lines))
    joined = [line if line.endswith(b"\n") else line + b"\n" for line in lines[:-1]]
    assert payload == b"".join([*joined, lines[-1]])
    assert encode_entries(payload) == payload


KEYS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_json_object(entry: dict[str, Any]) -> None:
    """Any object that JSON can carry comes back equal, lone surrogates included, on a line of its own."""
    line = encode_entries(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line, 1) == entry


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_any_line_decodes_or_is_told(line: bytes) -> None:
    """Any stored line decodes, or raises InvalidRequest, or is handed out raw."""
    try:
        decode_line(line, 1)
    except InvalidRequest:
        assert decode_line(line, 1, "raw") == line


def test_written_lines_are_plain_json(session: Session) -> None:
    """Other programs can read what was written: UTF-8 JSON, one object a line."""
    session.append([{"text": "caf\u00e9 \u2028"}, Message("user")])
    assert [orjson.loads(line) for line in session.read_jsonl().splitlines()] == list(session.entries())
