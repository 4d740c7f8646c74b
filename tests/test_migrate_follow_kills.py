"""Following, killed at any step between any changes of any files: nothing is lost, mixed, or known twice."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import shardstore_migrate.following as following
import shardstore_migrate.lines as lines
from migrate_follow import HEADER, LINE, add, assert_exports, current, mirror_of, opened, statuses, views
from migrate_follow_kills import Agents, Killed, Steps, drop, judge
from shardstore_migrate.catalog import CATALOG_ID, Catalog, Entry
from shardstore_migrate.exporting import export
from shardstore_migrate.finding import find
from shardstore_migrate.importing import Importer

import shardstore
from shardstore import Session, Store

SCHEDULES = 120
STEPS = 12


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Count steps."""
    return Steps(monkeypatch)


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_schedules(tmp_path: Path, steps: Steps, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever agents do between rounds, and wherever these are killed, the store holds it, each file's lines once."""
    chance = random.Random(seed)
    (tmp_path / "files").mkdir()
    agents = Agents(tmp_path / "files", chance)
    monkeypatch.setattr(lines, "WRITE_S", 0.0)
    monkeypatch.setattr(following, "CHECKPOINT_S", chance.choice((0.0, 30.0, 30.0)))
    monkeypatch.setattr(following, "LIVE_MAX", chance.choice((1, 64)))
    monkeypatch.setattr(following, "LIVELY_NS", chance.choice((0, 300 * 10**9)))
    with shardstore.open(tmp_path / "store", durability="none", compact_shards=chance.choice((None, 2))) as store:
        _follow(store, agents, chance, steps)
        judge(store, agents, tmp_path / "back")


def _follow(store: Store, agents: Agents, chance: random.Random, steps: Steps) -> None:
    mirror = mirror_of(store, agents.folder)
    for _ in range(STEPS):
        for _ in range(chance.randrange(4)):
            agents.act()
        steps.left = chance.randrange(1, chance.choice((10, 40))) if chance.random() < 0.4 else 0
        everywhere = chance.random() < 0.6 or not mirror._files
        try:
            mirror.round(None if everywhere else set())
        except Killed:
            steps.left, everywhere = 0, False
            drop(mirror)
            mirror = mirror_of(store, agents.folder)
        agents.look(store, all_of_it=everywhere)
    steps.left = 0
    mirror.round()
    mirror.close()
    mirror = mirror_of(store, agents.folder)
    mirror.round()
    agents.look(store, all_of_it=True)
    mirror.close()


# ------------------------------------------------------------------ one by one


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store."""
    with opened(tmp_path / "store") as store:
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a transcript, in a folder of its own."""
    (tmp_path / "files").mkdir()
    return tmp_path / "files" / "a.jsonl"


def told_late(store: Store, path: Path, *added: bytes) -> None:
    """Mirror a file, add lines, mirror them, and be killed before the catalog is told."""
    mirror = mirror_of(store, path.parent)
    mirror.round()
    add(path, *added)
    assert statuses(mirror.round(set())) == ["grown"]
    drop(mirror)


def followed(store: Store, path: Path) -> list[str]:
    """Follow for one round, and end well."""
    mirror = mirror_of(store, path.parent)
    try:
        return statuses(mirror.round())
    finally:
        mirror.close()


def test_truncated_after_a_birth_that_the_catalog_does_not_know(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was cut since a killed run bore its session goes on in another one, also where it is seen between."""
    path.write_bytes(HEADER + LINE % 1 + LINE % 2)
    bear = Store.import_sessions

    def bearing(store: Store, sessions: Any) -> Any:
        list(bear(store, sessions))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "import_sessions", bearing)
        with pytest.raises(Killed):
            followed(store, path)
    before = path.read_bytes()
    assert (views(store), current(store)) == ([before], {})
    os.truncate(path, len(HEADER))
    assert followed(store, path) == ["imported"]
    add(path, LINE % 3)
    assert followed(store, path) == ["grown"]
    assert views(store) == sorted([before, HEADER + LINE % 3])


def test_truncated_to_what_the_catalog_knows(store: Store, path: Path, tmp_path: Path) -> None:
    """A file that is cut to just where the catalog left it begins another session, for its own holds more by then."""
    path.write_bytes(HEADER)
    told_late(store, path, LINE % 1, LINE % 2)
    before = path.read_bytes()
    os.truncate(path, len(HEADER))
    assert followed(store, path) == ["imported"]
    assert views(store) == sorted([before, HEADER])
    first, second = _entries(store)
    assert (first.state, first.size, first.lines, first.ranges) == ("replaced", len(before), 3, [(1, 3)])
    assert (second.state, second.size) == ("imported", len(HEADER))
    assert_exports(store, path.parent, tmp_path / "back")


def _entries(store: Store) -> list[Entry]:
    catalog = Catalog(store)
    catalog.refresh()
    return catalog.entries()


def test_what_the_catalog_was_not_told(store: Store, path: Path, tmp_path: Path) -> None:
    """Lines that a killed follower appended among others' records are the file's, its missing newline too."""
    path.write_bytes(HEADER[:-1])
    (found,), _ = find([str(path)], home="/nowhere", environ={})
    (outcome,) = Importer(store, Catalog(store)).run([found])  # a run, which takes what has no newline yet
    session = outcome.entry.session if outcome.entry else ""
    store.session(session).event(b"beat\n", source="heartbeat")
    told_late(store, path, b"\n", LINE % 1)
    store.session(session).event(b"beat\n", source="heartbeat")
    told_late(store, path, LINE % 2, b"half")
    assert [entry.lines for entry in _entries(store)] == [2]  # told when it was looked at again
    assert followed(store, path) == ["grown"]
    (entry,) = _entries(store)
    assert (entry.lines, entry.ranges, entry.size) == (3, [(1, 1), (3, 3), (5, 5)], len(HEADER + LINE % 1 + LINE % 2))
    os.truncate(path, entry.size)
    assert followed(store, path) == []
    assert_exports(store, path.parent, tmp_path / "back")


def test_renamed_after_it_was_empty_when_the_catalog_was_told(store: Store, path: Path) -> None:
    """A file that was empty when it was imported keeps its session under another name, once that has lines."""
    path.write_bytes(b"")
    told_late(store, path, LINE % 1, LINE % 2)
    old = path.rename(f"{path}.reset.2026-03-01T10-00-00.000Z")
    path.write_bytes(LINE % 3)
    assert followed(store, path) == ["grown", "imported"]
    assert views(store) == sorted([old.read_bytes(), path.read_bytes()])


def test_swapped_with_an_empty_file(store: Store, path: Path) -> None:
    """A file that takes the name of one of which nothing is known yet keeps its session."""
    empty = path.with_name("b.jsonl")
    empty.write_bytes(b"")
    path.write_bytes(HEADER)
    followed(store, path)
    session = current(store)["a.jsonl"].session
    path.rename(path.with_name(".aside"))
    empty.rename(path)
    path.with_name(".aside").rename(empty)
    followed(store, path)
    assert current(store)["b.jsonl"].session == session
    assert [view for view in views(store) if view] == [HEADER]


def test_an_inode_of_dead_files(store: Store, path: Path) -> None:
    """Of all entries with its inode a renamed file goes on with the one that it begins with."""
    for number, name in enumerate(("b", "a", "c")):
        path.with_name(f"{name}.jsonl").write_bytes(LINE % number)
    followed(store, path)
    known = current(store)
    for name in ("b.jsonl", "c.jsonl"):
        path.with_name(name).unlink()
        Catalog(store).add([msgspec.structs.replace(known[name], dev=known["a.jsonl"].dev, ino=known["a.jsonl"].ino)])
    path.rename(path.with_name("d.jsonl"))
    assert followed(store, path) == ["moved"]
    assert current(store)["d.jsonl"].session == known["a.jsonl"].session


def test_renamed_and_back(store: Store, path: Path) -> None:
    """A file that gets its name back from another one, which was seen meanwhile, gets its session back, too."""
    path.write_bytes(HEADER)
    followed(store, path)
    session = current(store)["a.jsonl"].session
    aside = path.rename(path.parent.parent / "aside")
    path.write_bytes(LINE % 1)
    assert followed(store, path) == ["imported"]
    aside.replace(path)
    followed(store, path)
    assert current(store)["a.jsonl"].session == session
    assert views(store) == sorted([HEADER, LINE % 1])


def test_gone_before_the_catalog_was_told(store: Store, path: Path, tmp_path: Path) -> None:
    """Of a file that is gone by the time the follower is begun again the catalog knows all that was mirrored."""
    path.write_bytes(HEADER)
    path.with_name("b.jsonl").write_bytes(HEADER)
    told_late(store, path, LINE % 1)
    whole = path.read_bytes()
    path.unlink()
    assert followed(store, path) == []
    entry = current(store)["a.jsonl"]
    assert (entry.size, entry.lines) == (len(whole), 2)
    (done,) = export(store, [entry], str(tmp_path / "back"))
    assert (done.status, Path(done.path).read_bytes()) == ("written", whole)


def test_renamed_to_a_new_name_while_a_round_looks(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known file that takes a new file's name after that was looked at, before it was read, keeps its session."""
    path.write_bytes(HEADER)
    followed(store, path)
    session = current(store)["a.jsonl"].session
    other = path.with_name("b.jsonl")
    other.write_bytes(LINE % 1)
    bear = Store.import_sessions

    def bearing(store: Store, sessions: Any) -> Any:
        path.replace(other)
        return bear(store, sessions)

    mirror = mirror_of(store, path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "import_sessions", bearing)
        assert statuses(mirror.round()) == []
    assert statuses(mirror.round(set())) == ["moved"]
    mirror.close()
    assert current(store)["b.jsonl"].session == session
    assert views(store) == [HEADER]


def test_written_anew_and_killed(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was written anew, with more, is known by its inode as soon as lines of it are in the session."""
    path.write_bytes(HEADER)
    followed(store, path)
    draft = path.with_name(".draft")
    draft.write_bytes(HEADER + LINE % 1)
    draft.replace(path)
    append = Session.append

    def appending(session: Session, payload: Any, **options: Any) -> Any:
        append(session, payload, **options)
        if session.id != CATALOG_ID:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, "append", appending)
        with pytest.raises(Killed):
            followed(store, path)
    old = path.rename(f"{path}.reset.2026-03-01T10-00-00.000Z")
    path.write_bytes(LINE % 2)
    add(old, LINE % 3)
    assert followed(store, path) == ["grown", "imported"]
    assert views(store) == sorted([HEADER + LINE % 1 + LINE % 3, LINE % 2])
