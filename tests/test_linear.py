"""Linearized views: concurrent entries follow each other, deliberate branches stay, the log keeps its bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import shardstore
from shardstore.linear import ENTRIES_MAX, Linear

HEADER = {"type": "session", "version": 3, "id": "s", "timestamp": "2026-01-22T02:16:56.565Z", "cwd": "/srv"}


def entry(id_: str, parent: str | None, **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": id_, "parentId": parent, "message": {"role": "user", "content": id_}, **more}


def chain(session: shardstore.Session) -> dict[str, str | None]:
    """Return the parent of each entry that the linearized view shows, in order."""
    shape = Linear()
    shown = b"".join(shape.shown(record) for record in session.records())
    entries = [json.loads(line) for line in shown.splitlines()]
    return {one["id"]: one["parentId"] for one in entries if "parentId" in one}


@pytest.fixture
def session(tmp_path: Path) -> shardstore.Session:
    with shardstore.open(tmp_path / "store", durability="none") as store:
        session = store.session("s")
        session.append([HEADER, entry("root", None), entry("a", "root")])
        return session


def test_two_writers_with_one_parent(session: shardstore.Session) -> None:
    """Of two that answered the same entry the later one is shown as the answer to the earlier one."""
    session.append(entry("b", "a"), base=1)
    session.append([entry("c", "a"), entry("d", "c")], base=1)
    session.append(entry("e", "b"), base=2)  # knew its own b only
    assert chain(session) == {"root": None, "a": "root", "b": "a", "c": "b", "d": "c", "e": "d"}


def test_two_writers_begin(tmp_path: Path) -> None:
    """Of two that begin the conversation at once, knowing its header, the later one is shown as an answer, too."""
    with shardstore.open(tmp_path / "store", durability="none") as store:
        session = store.session("s")
        session.append(HEADER)
        session.append(entry("a", None), base=1)
        session.append(entry("b", None), base=1)
        session.append(entry("c", "a"), base=2)
        session.append(entry("new", None), base=4)  # on purpose
        assert chain(session) == {"a": None, "b": "a", "c": "b", "new": None}


def test_a_deliberate_branch_stays(session: shardstore.Session) -> None:
    """Who knew the predecessor, or answered something older than it knew, meant it."""
    session.append(entry("b", "a"), base=1)
    session.append(entry("knew", "a"), base=2)
    session.append(entry("older", "root"), base=1)
    assert chain(session) == {"root": None, "a": "root", "b": "a", "knew": "a", "older": "root"}


def test_without_a_base_nothing_changes(session: shardstore.Session) -> None:
    """Imported records have none, and their branches are what they are."""
    with shardstore.open(session._log.backend.root) as store:
        lines = [HEADER, entry("a", None), entry("b", "a"), entry("c", "a"), entry("d", "a")]
        raw = [json.dumps(line).encode() + b"\n" for line in lines]
        store.import_session("imported", raw)
        assert chain(store.session("imported")) == {"a": None, "b": "a", "c": "a", "d": "a"}


def test_nothing_else_differs(session: shardstore.Session) -> None:
    """Numbers, order, blanks, fields of the same name further inside, odd lines: byte for byte what was appended."""
    session.append(entry("b", "a"), base=1)
    inside = b'{"x":{"parentId":"a"}, "n":1.50e3,"id":"c" ,"parentId" : "a","big":123456789012345678901234567890}\n'
    odd = [b"no json \xff\n", b'["id","parentId"]\n', b'{"id":7,"parentId":"a"}\n', b"\n", b'{"parentId":"a"}\n']
    session.append([inside, *odd, b'{"id":"d","parentId":"c"}'], base=1)
    shape = Linear()
    before, after = [b"".join(shape.shown(record) for record in session.records(n, n)) for n in (1, 2)], session.last(1)
    shown = shape.shown(after[0])
    assert before
    assert shown == inside.replace(b'"parentId" : "a"', b'"parentId" : "b"') + b"".join(odd) + (
        b'{"id":"d","parentId":"c"}\n'
    )
    assert session.last(1)[0].payload == inside + b"".join(odd) + b'{"id":"d","parentId":"c"}'


@pytest.mark.parametrize("seed", range(20))
def test_many_writers_one_chain(session: shardstore.Session, seed: int) -> None:
    """Whatever writers know when they answer the leaf that they know, the view is one chain of all their entries."""
    chance = random.Random(seed)
    known = dict.fromkeys("pqr", (1, "a"))  # base, leaf
    for number in range(60):
        name = chance.choice("pqr")
        if chance.random() < 0.4:  # reads everything
            shape = Linear()
            lines = b"".join(shape.shown(record) for record in session.records()).splitlines()
            known[name] = (session.head(), json.loads(lines[-1])["id"])
        base, leaf = known[name]
        ids = [f"{name}{number}-{part}" for part in range(chance.randrange(1, 4))]
        entries = [entry(id_, parent) for id_, parent in zip(ids, [leaf, *ids], strict=False)]
        receipt = session.append(entries, base=base)
        known[name] = (receipt.seq if receipt.seq == base + 1 else base, ids[-1])
    parents = chain(session)
    assert list(parents.values()) == [None, *list(parents)[:-1]]
    assert len(parents) > 60


def test_what_is_remembered_is_bounded(session: shardstore.Session) -> None:
    """An entry that answers one beyond the bound is left alone, and nothing grows without end."""
    session.append([entry(f"x{number}", f"x{number - 1}") for number in range(ENTRIES_MAX + 50)], base=1)
    session.append(entry("late", "a"), base=1)
    shape = Linear()
    shown = b"".join(shape.shown(record) for record in session.records())
    assert json.loads(shown.splitlines()[-1])["parentId"] == "a"
    assert len(shape._places) <= ENTRIES_MAX
