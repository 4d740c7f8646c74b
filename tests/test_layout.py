"""Names: two ids never share a folder, every name parses back, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import InvalidRequest
from shardstore.layout import (
    NAME_BYTES_MAX,
    SEQ_MAX,
    SessionKeys,
    parse_segment_name,
    parse_shard_name,
    quote_id,
    segment_name,
    shard_name,
    unquote_id,
)
from shardstore.manifest import SegmentRef

GOOD = [
    "..", ".", "...", ".hidden", ".tmp-1", "a/b", "a:b", "A", "a", "%41", "%", "a%2Fb", "a\0b", " ", "a b", "\n",
    "~", "-",
    "telegram:-100123/42", "\u00e9", "e\u0301", "\U0001f600" * 21, "con", "store.json", "a" * 255, "x\\y", "\u2028",
    "nul.txt",
    "\ufeff", "\u202e", "*?<>|\"'",
]  # fmt: skip
BAD = ["", "a" * 256, "a" * 300, "\U0001f600" * 22, "A" * 86, "\ud800", "a\udfffb", 5, None, b"a", 1.5]


@pytest.mark.parametrize("session_id", GOOD, ids=ascii)
def test_good_ids_work_end_to_end(session_id: str, store_path: str) -> None:
    """Any text is an id: the session is written, listed, compacted, verified and read under exactly that id."""
    store = shardstore.open(store_path)
    store.session(session_id).append(b"one\n")
    store.compact()
    store.session(session_id).append(b"two\n")
    reopened = shardstore.open(store_path)
    assert [info.id for info in reopened.sessions()] == [session_id]
    assert reopened.session(session_id).read_jsonl() == b"one\ntwo\n"
    assert reopened.verify() == []
    assert os.listdir(Path(store_path).parent) == ["store"]


def test_ids_that_look_alike_stay_apart(store_path: str) -> None:
    """Ids that some filesystem or decoder might take for one another are different sessions."""
    store = shardstore.open(store_path)
    for number, session_id in enumerate(GOOD):
        store.session(session_id).append(b"%d\n" % number)
    assert sorted(info.id for info in store.sessions()) == sorted(GOOD)
    for number, session_id in enumerate(GOOD):
        assert store.session(session_id).read_jsonl() == b"%d\n" % number
    folded = {name.casefold() for name in os.listdir(Path(store_path) / "sessions")}
    assert len(folded) == len(GOOD)


@pytest.mark.parametrize("session_id", BAD, ids=ascii)
def test_bad_ids_are_refused(session_id: object, store_path: str) -> None:
    """What is no text, empty, or too long once quoted is an InvalidRequest, and nothing is written."""
    store = shardstore.open(store_path)
    for call in (
        lambda: store.session(session_id).append(b"x\n"),  # type: ignore[arg-type]
        lambda: store.create(session_id),  # type: ignore[arg-type]
        lambda: store.import_session(session_id, [b"x\n"]),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest):
            call()
    assert os.listdir(store_path) == ["store.json"]


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_quoting_is_one_to_one(session_id: str) -> None:
    """An id is refused, or quotes to a plain lower-case name that unquotes to it."""
    try:
        name = quote_id(session_id)
    except InvalidRequest:
        return
    assert unquote_id(name) == session_id
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith(".")
    assert 0 < len(name) <= NAME_BYTES_MAX


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_only_quoted_names_unquote(name: str) -> None:
    """A folder name that no id quotes to belongs to no session."""
    session_id = unquote_id(name)
    assert session_id is None or quote_id(session_id) == name


@pytest.mark.parametrize("name", ["A", "%61", "%2e", "%zz", "%", ".x", "a%2Fb%", "%C3", "caf\u00e9", "", "\udc80"])
def test_foreign_folder_names(name: str) -> None:
    """Names that only look like quoted ids are none."""
    assert unquote_id(name) is None


@given(st.integers(1, SEQ_MAX - 1))
@settings(deadline=None)
def test_shard_names(seq: int) -> None:
    """A shard's name parses back and sorts as its seq does."""
    name = shard_name(seq)
    assert parse_shard_name(name) == seq
    assert shard_name(seq + 1) > name
    assert SessionKeys("s").shard(seq) == f"sessions/s/shards/{name}"


@pytest.mark.parametrize(
    "name",
    ["1.shard", "0" * 20 + ".shard", "0" * 19 + "1", "0" * 20 + ".SHARD", "\u0661" * 20 + ".shard",
    "0" * 20 + ".shard\n", ".tmp-" + "0" * 20,
     "9" * 20 + ".shard", "-" + "0" * 19 + ".shard", ""],
)  # fmt: skip
def test_foreign_shard_names(name: str) -> None:
    """Anything else, a seq beyond the largest one too, is no shard."""
    assert parse_shard_name(name) is None


@given(
    st.integers(1, 2**62), st.integers(0, SEQ_MAX - 2**62), st.integers(0, 2**70), st.binary(min_size=16, max_size=16)
)
@settings(deadline=None)
def test_segment_names(first: int, more: int, base: int, nonce: bytes) -> None:
    """A segment's name parses back."""
    segment = SegmentRef(first, first + more, base, nonce.hex(), 0, 0, 0)
    assert parse_segment_name(segment_name(segment)) == (first, first + more, base, nonce.hex())
    assert len(segment_name(segment)) <= NAME_BYTES_MAX


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x.segment",
        "1-2-3-4.segment",
        "0" * 20 + "-" + "0" * 20 + "-1-" + "G" * 32 + ".segment",
        f"{5:020d}-{4:020d}-1-{'0' * 32}.segment",
        f"{0:020d}-{4:020d}-1-{'0' * 32}.segment",
        f"{1:020d}-{2**63:020d}-1-{'0' * 32}.segment",
    ],
)
def test_foreign_segment_names(name: str) -> None:
    """Anything else is no segment."""
    assert parse_segment_name(name) is None
