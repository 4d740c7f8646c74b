"""Attacks on linearized views: what a writer knew is told from what it did not, whatever it wrote itself."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardstore
from shardstore import Session, Store
from shardstore.linear import ENTRIES_MAX, Linear
from shardstore.views import DiskView


def entry(id_: str, parent: str | None) -> dict[str, Any]:
    return {"type": "message", "id": id_, "parentId": parent}


def chain(session: Session) -> list[tuple[str, str | None]]:
    """Return each entry that the linearized view shows, and its parent, in order."""
    shape = Linear()
    shown = b"".join(shape.shown(record) for record in session.records())
    return [(one["id"], one["parentId"]) for one in map(json.loads, shown.splitlines())]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with shardstore.open(tmp_path / "store", durability="none") as store:
        yield store


@pytest.fixture
def session(store: Store) -> Session:
    """Return a session with an entry `root` (seq 1), and one of another lane that answered it (seq 2)."""
    session = store.session("s")
    session.append(entry("root", None))
    session.append(entry("other", "root"), base=1)
    return session


def test_who_wrote_the_predecessor_in_the_same_record_knew_it(session: Session) -> None:
    """Two answers to one entry in one record are a branch made on purpose; the first alone was concurrent."""
    session.append([entry("a", "root"), entry("b", "root"), entry("c", "b")], base=1)
    assert chain(session)[2:] == [("a", "other"), ("b", "root"), ("c", "b")]


def test_a_branch_of_ones_own_stays_though_the_base_is_old(session: Session) -> None:
    """A writer that has read nothing since may go back behind its newest entry, whoever wrote after that one."""
    for id_, parent in (("mine-1", "root"), ("mine-2", "mine-1"), ("again", "mine-1")):
        session.append(entry(id_, parent), base=1)
    session.append(entry("late", "root"), base=1)
    session.append(entry("third", "mine-2"), base=1)
    session.append(entry("goes-on", "third"), base=1)
    assert chain(session)[2:] == [
        ("mine-1", "other"),
        ("mine-2", "mine-1"),
        ("again", "mine-1"),
        ("late", "again"),
        ("third", "mine-2"),
        ("goes-on", "third"),
    ]


def test_two_that_go_on_from_their_own_are_one_chain(session: Session) -> None:
    """Each of two lanes knows its own entries only, and answers its newest: all of them follow each other."""
    for number in range(3):
        for lane in "pq":
            ids = [f"{lane}{number}-{part}" for part in range(2)]
            parent = f"{lane}{number - 1}-1" if number else "root"
            session.append([entry(ids[0], parent), entry(ids[1], ids[0])], base=1)
    shown = chain(session)
    assert [parent for _, parent in shown] == [None, *(id_ for id_, _ in shown[:-1])]


def test_an_id_that_was_shown_before_is_no_link(session: Session) -> None:
    """An entry that comes with other bytes a second time is not made its own parent, nor that of its parent."""
    session.append(entry("other", "root") | {"try": 2}, base=1)
    assert chain(session)[2] == ("other", "root")
    session.append(entry("more", "root"), base=1)
    session.append(entry("other", "root") | {"try": 3}, base=1)
    assert chain(session)[3:] == [("more", "other"), ("other", "root")]


def test_a_second_try_is_shown_once(session: Session) -> None:
    """An entry that a retry appended twice, byte for byte, is one link."""
    session.append(entry("more", "other"), base=2)
    session.append(entry("other", "root"), base=1)
    session.append(entry("late", "other"), base=2)
    assert chain(session)[1:] == [("other", "root"), ("more", "other"), ("late", "more")]


def test_a_repeated_id_outlives_its_first_place(session: Session) -> None:
    """What is forgotten of an id's first place does not forget its second one."""
    session.append([entry(f"x{number}", f"x{number - 1}") for number in range(ENTRIES_MAX - 3)], base=2)
    session.append(entry("root", "x0"), base=3)
    session.append([entry("y", "root"), entry("z", "y")], base=4)
    session.append(entry("w", "root"), base=4)
    assert chain(session)[-1] == ("w", "z")


def test_a_parent_spelled_in_utf_8_is_found(store: Store) -> None:
    """What JSON encoders other than Python's write, letters as they are, is replaced like anything else."""
    session = store.session("s")
    session.append(entry("Wurzel-ß", None))
    session.append(entry("é", "Wurzel-ß"), base=1)
    session.append('{"id":"ü","parentId":"Wurzel-ß"}\n'.encode(), base=1)
    session.append(b'{"id":"\\ud800","parentId":"\xc3\xbc"}\n', base=3)
    session.append(b'{"id":"q","parentId":"\\ud800"}\n', base=4)
    session.append(b'{"id":"r","parentId":"\\ud800"}\n', base=4)
    assert chain(session)[2:] == [("ü", "é"), ("\ud800", "ü"), ("q", "\ud800"), ("r", "q")]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_writers_do_on_purpose_stays(store: Store, seed: int) -> None:
    """Answers to the newest entry that a writer knows are linked to the predecessor, answers to an older one stay."""
    chance, session = random.Random(seed), store.session("s")
    session.append([entry("r0", None), entry("r1", "r0"), entry("r2", "r1")])
    shown, bases, mine = ["r0", "r1", "r2"], dict.fromkeys("pqr", 1), {name: list[str]() for name in "pqr"}
    read, wanted = dict.fromkeys("pqr", 3), list[tuple[str, str | None]]()
    for number in range(60):
        name = chance.choice("pqr")
        if chance.random() < 0.3:
            bases[name], read[name], mine[name] = session.head(), len(shown), []
        on_purpose = chance.random() < 0.2
        known = shown[: read[name]] if not mine[name] else mine[name]
        parent = chance.choice(known[:-1]) if on_purpose and len(known) > 1 else known[-1]
        ids = [f"{name}{number}-{part}" for part in range(chance.randrange(1, 3))]
        wanted += zip(ids, [parent if parent != known[-1] else shown[-1], *ids], strict=False)
        base = bases[name]
        receipt = session.append(
            [entry(id_, before) for id_, before in zip(ids, [parent, *ids], strict=False)], base=base
        )
        shown += ids
        mine[name] += ids
        if receipt.seq == base + 1:
            bases[name], read[name], mine[name] = receipt.seq, len(shown), []
    assert chain(session)[3:] == wanted


def test_a_session_that_was_removed_by_hand_and_born_again(store: Store, tmp_path: Path) -> None:
    """Its file is made again from the new records, and never goes on with them behind those of the old session."""
    with DiskView(store, tmp_path / "views") as kept:
        for payloads in ([b"old 1\n"], [b"new 1\n"], [b"newer 1\n", b"newer 2\n"]):
            shutil.rmtree(Path(store.path, "sessions", "s"), ignore_errors=True)
            with shardstore.open(store.path) as other:
                for payload in payloads:
                    other.session("s").append(payload)
            assert [outcome.error for outcome in kept.refresh()] == [None]
            assert (tmp_path / "views" / "s.jsonl").read_bytes() == b"".join(payloads)


def test_what_has_no_base_may_be_anybodys(session: Session) -> None:
    """An answer to an entry above its base, in a record without one, is concurrent to what came after that entry."""
    with shardstore.open(session._log.backend.root) as fresh:  # type: ignore[attr-defined]
        fresh.session(session.id).append([entry("x", "other"), entry("y", "x")])
    session.append(entry("z", "x"), base=2)
    session.append(entry("mine", "z"), base=2)
    session.append(entry("again", "z"), base=2)
    assert chain(session)[2:] == [("x", "other"), ("y", "x"), ("z", "y"), ("mine", "z"), ("again", "z")]
