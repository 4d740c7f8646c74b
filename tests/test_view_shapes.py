"""What is shown of a record, and where a session's file lies: both are decided by the bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from view_checks import HEADER, shown_of

from shardstore import InvalidRequest, Record
from shardstore.layout import view_path
from shardstore.shapes import Readable

LINES = st.sampled_from(
    [
        HEADER % 1,
        HEADER % 2,
        b'{"type":"session","id":"cr"}\r\n',
        b' { "id" : 1 , "type" : "session" } \n',
        b'{"type":"message","text":"\\"session\\""}\n',
        b'{"type":"message","kind":"session"}\n',
        b'{"a":{"type":"session"}}\n',
        b'["session"]\n',
        b'"session"\n',
        b'{"type":"session"\n',
        b"\n",
        b" \t\n",
        b"\xff\xfe no text\n",
        b'{"n":1}\n',
        b'{"id":"a","text":"one"}\n',
        b'{"id":"a","text":"two"}\n',
        b'{"id":"a","text":"two"}\r\n',
        b'{"uuid":"a"}\n',
        b'{"id":7}\n',
        b'{"n":{"id":"a"}}\n',
    ]
)
PAYLOADS = st.lists(
    st.builds(lambda lines, cut: b"".join(lines)[: -1 if cut else None], st.lists(LINES, max_size=4), st.booleans()),
    max_size=6,
)


def record(seq: int, payload: bytes, kind: str = "turn") -> Record:
    """Return a record that holds `payload`."""
    return Record(seq, kind, "main", 0, None, None, "", payload)  # type: ignore[arg-type]


@given(PAYLOADS)
def test_it_shows_what_the_law_says(payloads: list[bytes]) -> None:
    """All lines in order, each with its newline, but for late headers and entries that are there already."""
    shape = Readable()
    shown = [shape.shown(record(seq, payload)) for seq, payload in enumerate(payloads, 1)]
    assert b"".join(shown) == shown_of(payloads)
    assert all(not piece or piece.endswith(b"\n") for piece in shown)


def test_control_records_show_nothing() -> None:
    """A control record is the store's own, and the first line is one that is shown."""
    shape = Readable()
    shown = [shape.shown(record(1, b"{}\n", "control")), shape.shown(record(2, HEADER % 1))]
    assert [*shown, shape.shown(record(3, HEADER % 2))] == [b"", HEADER % 1, b""]


def test_payloads_that_hold_no_header_are_passed_on() -> None:
    """Bytes that can't be a header are not copied, decoded or split."""
    shape = Readable()
    shape.shown(record(1, HEADER % 1))
    payload = b'{"n":1}\n'
    assert shape.shown(record(2, payload)) is payload


@pytest.mark.parametrize(("between", "is_shown"), [(510, False), (511, False), (512, True)])
def test_a_second_try_is_known_for_a_while(*, between: int, is_shown: bool) -> None:
    """An entry that comes again after 512 others is shown again: what is remembered has a bound."""
    shape = Readable()
    lines = [b'{"id":"%d"}\n' % number for number in range(between + 1)]
    for seq, line in enumerate(lines, 1):
        assert shape.shown(record(seq, line)) is line
    assert shape.shown(record(between + 2, lines[0])) == (lines[0] if is_shown else b"")


@pytest.mark.parametrize(
    ("id_", "path"),
    [
        ("a", "a.jsonl"),
        ("a/b/c", "a/b/c.jsonl"),
        ("telegram:42", "telegram:42.jsonl"),
        ("A é.x", "A é.x.jsonl"),
        ("x.jsonl", "x.jsonl.jsonl"),
        (".hidden", ".hidden.jsonl"),
        ("...", "....jsonl"),
        ("..", "...jsonl"),
        ("a" * 249, "a" * 249 + ".jsonl"),
    ],
)
def test_where_a_file_lies(id_: str, path: str) -> None:
    """The id is the path: no quoting, each slash a folder."""
    assert view_path(id_) == path


@pytest.mark.parametrize(
    "id_",
    ["a//b", "/a", "a/", "../a", "a/../b", "./a", "a/./b", "a\0b", "a.jsonl/b", "é" * 125, ".shardstore-view/a",
     ".shardstore-view-1", "/"],
)  # fmt: skip
def test_ids_that_have_no_place(id_: str) -> None:
    """An id that would lead elsewhere, or meet the view's own files, is refused."""
    with pytest.raises(InvalidRequest):
        view_path(id_)
