"""Views of sessions that programs have rewritten: the newest generation, made again beside the old one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardstore
from shardstore import Session, Store
from shardstore.linear import Linear
from shardstore.mount.image import Image
from shardstore.shapes import Readable
from shardstore.views import DiskView


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with shardstore.open(tmp_path / "store", durability="none", compact_shards=None) as store:
        yield store


def test_a_rewrite_is_a_new_file(store: Store, tmp_path: Path) -> None:
    """It shows the new content and what its writer had not seen; who holds the old file reads on in it."""
    session, path = store.session("s"), tmp_path / "views" / "s.jsonl"
    for payload in (b"1\n", b"2\n", b"3\n"):
        session.append(payload)
    with DiskView(store, tmp_path / "views") as kept:
        list(kept.refresh())
        with path.open("rb") as held:
            session.rewrite(b"one\n", seen=1, holds=[(3, 3)])
            session.append(b"4\n")
            assert [outcome.status for outcome in kept.refresh()] == ["made again"]
            assert path.read_bytes() == b"one\n2\n4\n"
            assert held.read() == b"1\n2\n3\n"
        session.append(b"5\n")
        assert [outcome.status for outcome in kept.refresh()] == ["appended"]
    with DiskView(store, tmp_path / "views") as kept:
        assert [outcome.status for outcome in kept.refresh()] == ["unchanged"]
        assert path.read_bytes() == b"one\n2\n4\n5\n"
        session.rewrite(b"", seen=0)  # by a writer that knew nothing
        session.append(b"6")
        list(kept.refresh())
        assert path.read_bytes() == b"1\n2\n3\n4\n5\n6\n"
    assert session.read_jsonl() == b"1\n2\n3\n4\n5\n6"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", [Readable, Linear])
def test_it_is_what_a_mount_shows(store: Store, tmp_path: Path, seed: int, shape: type[Readable | Linear]) -> None:
    """After any appends, rewrites, compactions and restarts the file holds the bytes of the mount's image."""
    chance = random.Random(seed)
    session = store.session("s")
    view = DiskView(store, tmp_path / "views", new_shape=shape)
    for number in range(40):
        _step(session, chance, number)
        if chance.random() < 0.2:
            view.close()
            view = DiskView(store, tmp_path / "views", new_shape=shape)
        if chance.random() < 0.5:
            assert [outcome.error for outcome in view.refresh()] == [None]
            image = Image(session, shape).advanced(session.head())
            assert (tmp_path / "views" / "s.jsonl").read_bytes() == image.read(0, image.size)
    view.close()


def _step(session: Session, chance: random.Random, number: int) -> None:
    head = session.head() if number else 0
    line = b'{"id":"%d","parentId":%b}' % (number, b'"%d"' % chance.randrange(number) if number else b"null")
    large = b'{"x":"' + b"x" * chance.choice([1, 300_000]) + b'"}\n'
    match chance.randrange(6):
        case 0 if number:
            seen = chance.randrange(head + 1)
            later = chance.randint(seen + 1, head) if seen < head else 0
            session.rewrite(large + line, seen=seen, holds=[(later, later)] if later else [])
        case 1 if number:
            session.compact()
        case _:
            session.append(chance.choice([line + b"\n", line, large]), base=chance.randrange(head + 1))
