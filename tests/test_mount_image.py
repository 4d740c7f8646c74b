"""Images: the bytes that a mount shows of a session, against the session's own view, through offsets and rewrites."""

from __future__ import annotations

import random

import pytest

import shardstore
from shardstore.mount.image import Image
from shardstore.shapes import Readable


@pytest.fixture
def session(store_path: str) -> shardstore.Session:
    """Return an unsynced session."""
    store = shardstore.open(store_path, durability="none", compact_shards=None)
    store.create("x")
    return store.session("x")


def shown(image: Image) -> bytes:
    """Return all of an image."""
    return image.read(0, image.size + 1)


def fresh(session: shardstore.Session) -> Image:
    """Return an image made from the log as it is."""
    return Image(session).advanced(session.head())


@pytest.mark.parametrize("memory_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_an_image_is_the_view(
    session: shardstore.Session, seed: int, memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever bytes were appended, an image has the view's and a last newline; any read is a slice of them."""
    monkeypatch.setattr("shardstore.mount.image.MEMORY_BYTES_MAX", memory_bytes)
    chance = random.Random(seed)
    image = Image(session)
    ends = {0: 0}
    for _ in range(60):
        payload = bytes(chance.choices(b"\n\r\xff{}a", k=chance.randint(1, 9)))
        session.append(payload, kind=chance.choice(["turn", "event"]))
        if chance.random() < 0.1:
            session.compact()
        if chance.random() < 0.7:
            image = image.advanced(session.head())
        view = session.read_jsonl()
        ends[session.head()] = len(view if view.endswith(b"\n") else view + b"\n")
    image = image.advanced(session.head())
    view = session.read_jsonl()
    whole = view if view.endswith(b"\n") else view + b"\n"
    assert shown(image) == shown(fresh(session)) == whole
    for _ in range(100):
        offset, size = chance.randint(0, len(whole) + 3), chance.randint(0, 20)
        assert image.read(offset, size) == whole[offset : offset + size]
        assert image.seq_at(offset) == max(seq for seq, end in ends.items() if end <= offset)
    for seq, end in ends.items():
        assert image.end_of(seq) == end
    assert b"".join(image.shown(seq) for seq in range(1, session.head() + 1)) == whole


def test_a_rewrite_begins_another_image(session: shardstore.Session) -> None:
    """From a rewrite on, an image has its content, then what its writer did not know; the old one goes on as it was."""
    for line in (b"1\n", b"2\n", b"3\n", b"4\n"):
        session.append(line)
    old = fresh(session)
    session.rewrite(b"new\n4", seen=2, holds=[(4, 4)])
    session.append(b"6\n")
    new = old.advanced(session.head())
    assert (shown(old), shown(new), shown(fresh(session))) == (b"1\n2\n3\n4\n", b"new\n4\n3\n6\n", b"new\n4\n3\n6\n")
    assert (new.generation, new.seq, old.generation, old.seq) == (5, 6, 0, 4)
    old.extend(6)
    assert shown(old) == b"1\n2\n3\n4\n6\n"
    assert [new.seq_at(offset) for offset in (0, 5, 6, 7, 8, 9, 10)] == [2, 2, 2, 2, 5, 5, 6]
    assert [new.end_of(seq) for seq in (2, 4, 5, 6)] == [None, None, 8, 10]
    session.rewrite(b"", seen=6)
    assert shown(new.advanced(7)) == shown(fresh(session)) == b""


def test_a_rewrite_by_one_who_knew_nothing_of_the_last_one(session: shardstore.Session) -> None:
    """The latest rewrite counts, by seq; what was appended after what its writer knew comes back."""
    session.append(b"1\n")
    session.append(b"2\n")
    session.rewrite(b"first\n", seen=2)
    session.append(b"4\n")
    session.rewrite(b"second\n", seen=1)
    assert shown(fresh(session)) == b"second\n2\n4\n"


def test_what_is_no_transcript_shows_nothing(session: shardstore.Session, store_path: str) -> None:
    """Control records have their seqs and no bytes."""
    session.append(b"1\n")
    session._writer.spend(2)
    session.append(b"3\n")
    image = fresh(session)
    assert (shown(image), image.seq_at(1), image.seq_at(2), image.seq_at(4)) == (b"1\n3\n", 0, 2, 3)


def test_a_shape_decides_what_is_shown(session: shardstore.Session) -> None:
    """With a shape the image has the shaped bytes, of a rewrite's content too."""
    header = b'{"type":"session"}\n'
    session.append(header + b"1\n")
    session.append(header + b"2\n")
    image = Image(session, Readable).advanced(2)
    assert shown(image) == header + b"1\n2\n"
    assert image.shown(2) == b"2\n"
    session.rewrite(header + header + b"new\n", seen=1)
    assert shown(image.advanced(3)) == header + b"new\n2\n"


@pytest.mark.parametrize(
    "payload", [b"", b"no json\nx", b"{}\n", b'{"seen":1,"seqs":[]}\n', b'{"seen":0,"seqs":[1]}\n']
)
def test_a_rewrite_that_says_nonsense_is_corrupt(session: shardstore.Session, payload: bytes) -> None:
    """A rewrite that this format does not write is told as damage, with its seq."""
    session._writer.append(payload, kind="control", source="rewrite", base=None, key=None, since=None, at_ms=None)
    with pytest.raises(shardstore.Corrupt) as caught:
        fresh(session)
    assert caught.value.seq == 1
