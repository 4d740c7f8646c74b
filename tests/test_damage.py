"""Damage to files: reading says so, verify names it, repair loses nothing that can still be read.

The store under test holds 12 records: 1..5 in a segment, 6..12 as shards.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mishaps import (
    ID,
    assert_kept,
    build,
    content,
    cut,
    damages,
    extend,
    flip,
    flip_record,
    folder,
    footer,
    fresh,
    manifest,
    segments,
    shard,
    tree,
)

from shardstore import Corrupt, NotFound, ShardstoreError
from shardstore.segment import key_page_range

RECORDS = 12
COMPACTED = 5
ALL_COMPACTED = set(range(1, COMPACTED + 1))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "store"
    build(path, RECORDS, compact_at=(COMPACTED,))
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "store"))


# ------------------------------------------------------------------ the damages


class Damage(NamedTuple):
    """How to hurt, which records can't be read any more, whether reading all must notice, which file verify names."""

    hurt: Callable[[Path], object]
    lost: set[int]
    where: str
    reads: bool = False


DAMAGES = {
    "torn shard": Damage(lambda p: cut(shard(p, 8), -5), {8}, "08.shard"),
    "torn header of a shard": Damage(lambda p: cut(shard(p, 8), 30), {8}, "08.shard"),
    "empty shard": Damage(lambda p: cut(shard(p, 8), 0), {8}, "08.shard"),
    "torn last shard": Damage(lambda p: cut(shard(p, 12), -1), {12}, "12.shard"),
    "torn first shard": Damage(lambda p: cut(shard(p, 6), -1), {6}, "06.shard"),
    "zeroed shard": Damage(lambda p: shard(p, 8).write_bytes(bytes(shard(p, 8).stat().st_size)), {8}, "08.shard"),
    "bytes behind a shard": Damage(lambda p: extend(shard(p, 8)), {8}, "08.shard"),
    "flipped bit in a payload": Damage(lambda p: flip(shard(p, 8), -4), {8}, "08.shard"),
    "flipped bit in a header": Damage(lambda p: flip(shard(p, 8), 20), {8}, "08.shard"),
    "flipped line end of a header": Damage(lambda p: flip(shard(p, 8), shard(p, 8).read_bytes().index(b"\n")), {8},
    "08.shard"),
    "missing shard": Damage(lambda p: shard(p, 8).unlink(), {8}, "08.shard"),
    "three missing shards": Damage(lambda p: [shard(p, seq).unlink() for seq in (7, 8, 10)], {7, 8, 10}, ".shard"),
    "first shard missing": Damage(lambda p: shard(p, 6).unlink(), {6}, "06.shard"),
    "flipped bit in a segment's payload": Damage(lambda p: flip_record(p, 3, -3), {3}, ".segment"),
    "flipped bit in a segment's header": Damage(lambda p: flip_record(p, 3, 40), {3}, ".segment"),
    "flipped bit in the first record": Damage(lambda p: flip_record(p, 1, 0), {1}, ".segment"),
    "flipped bit in the last record": Damage(lambda p: flip_record(p, 5, -1), {5}, ".segment"),
    "index page": Damage(lambda p: flip(segments(p)[0], footer(p)[0].data + 3), set(), ".segment"),
    "key page": Damage(lambda p: flip(segments(p)[0], key_page_range(footer(p)[0], 0)[0]), set(), ".segment", True),
    "trailer": Damage(lambda p: flip(segments(p)[0], -10), set(), ".segment", True),
    "last bit": Damage(lambda p: flip(segments(p)[0], -1, 7), set(), ".segment", True),
    "segment cut by a byte": Damage(lambda p: cut(segments(p)[0], -1), set(), ".segment", True),
    "segment cut in its index": Damage(lambda p: cut(segments(p)[0], footer(p)[0].data + 9), set(), ".segment"),
    "segment without a footer": Damage(lambda p: cut(segments(p)[0], footer(p)[0].data), set(), ".segment"),
    "segment cut in record 4": Damage(lambda p: cut(segments(p)[0], footer(p)[1][3][0] + 9), {4, 5}, ".segment"),
    "empty segment": Damage(lambda p: cut(segments(p)[0], 0), ALL_COMPACTED, ".segment"),
    "bytes behind a segment": Damage(lambda p: extend(segments(p)[0]), set(), ".segment", True),
    "missing segment": Damage(lambda p: segments(p)[0].unlink(), ALL_COMPACTED, ".segment"),
    "index page and a record": Damage(
        lambda p: (flip_record(p, 3, -3), flip(segments(p)[0], footer(p)[0].data + 3)), {3}, ".segment"
    ),
    "record and a shard": Damage(lambda p: (flip_record(p, 3, -3), cut(shard(p, 8), -5)), {3, 8}, ".s"),
    "flipped bit in the manifest": Damage(lambda p: flip(manifest(p), 50), set(), "manifest.json"),
    "empty manifest": Damage(lambda p: cut(manifest(p), 0), set(), "manifest.json"),
    "torn manifest": Damage(lambda p: cut(manifest(p), -30), set(), "manifest.json"),
    "missing manifest": Damage(lambda p: manifest(p).unlink(), set(), "manifest.json"),
    "missing manifest, torn shard": Damage(lambda p: (manifest(p).unlink(), cut(shard(p, 8), -5)), {8},
    "manifest.json"),
    "missing manifest, missing shard": Damage(lambda p: (manifest(p).unlink(), shard(p, 8).unlink()), {8},
    "manifest.json"),
    "missing manifest, flipped trailer": Damage(lambda p: (manifest(p).unlink(), flip(segments(p)[0], -1)), set(),
    "manifest.json"),
    "torn manifest, flipped record": Damage(lambda p: (flip_record(p, 3, -3), cut(manifest(p), -30)), {3},
    "manifest.json"),
}  # fmt: skip


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES.keys())
def damage(request: pytest.FixtureRequest) -> Damage:
    case: Damage = request.param
    return case


def test_damage_is_told_and_repaired(damage: Damage, store: Path) -> None:
    """Reading raises a typed error, verify names the file and the seqs, repair keeps every other record as it was."""
    before = content(store)
    damage.hurt(store)
    hurt = tree(store)
    opened, session = fresh(store)
    if damage.reads:
        assert list(session.records()) == before
    else:
        with pytest.raises((Corrupt, NotFound)):
            list(session.records())
    found = damages(opened.verify())
    assert found
    assert any(damage.where in finding.where for finding in found)
    assert all((finding.session, finding.repaired) == (ID, False) and finding.advice for finding in found)
    if "manifest" not in damage.where:
        named = {seq for f in found if f.seqs is not None for seq in range(f.seqs[0], f.seqs[1] + 1)}
        assert damage.lost <= named
    assert tree(store) == hurt, "verify only reads"
    repaired = opened.repair()
    assert all(finding.repaired for finding in damages(repaired))
    assert_kept(store, before, lost=damage.lost)


def test_original_of_what_was_damaged_is_kept(damage: Damage, store: Path) -> None:
    """Whatever file repair replaces, its bytes lie in damaged/ afterwards, and a second repair changes nothing."""
    whole = tree(store)
    damage.hurt(store)
    hurt = tree(store)
    opened, _ = fresh(store)
    opened.repair()
    after = tree(store)
    kept = [data for name, data in after.items() if "/damaged/" in name]
    for name, data in hurt.items():
        replaced_whole = name.endswith("manifest.json") and whole[name] == data
        assert after.get(name) == data or data in kept or replaced_whole, name
    fresh(store)[0].repair()
    assert tree(store) == after


@pytest.mark.parametrize("options", [{}, {"key": "late"}, {"if_no_turn_since": 11}], ids=str)
def test_append_to_a_damaged_session(damage: Damage, store: Path, options: dict[str, Any]) -> None:
    """An append commits at the next seq or raises a typed error; either way repair still keeps every other record."""
    before = content(store)
    damage.hurt(store)
    _, session = fresh(store)
    more = 0
    lost = set(damage.lost)
    try:
        seq = session.append({"late": True}, **options).seq
    except ShardstoreError:
        pass
    else:
        assert seq in (RECORDS, RECORDS + 1)
        more = seq - RECORDS
        lost -= {seq} if not more else set()
        assert [record.entries() for record in session.records(seq, seq)] == [[{"late": True}]]
    opened, session = fresh(store)
    opened.repair()
    after = list(session.records())
    assert len(after) == RECORDS + more
    assert_kept(store, before, lost=lost, more=more)


def test_compaction_of_a_damaged_session(damage: Damage, store: Path) -> None:
    """Compaction never carries damage on in silence and never removes what can be read, however often it runs."""
    before = content(store)
    damage.hurt(store)
    _, session = fresh(store)
    for _ in range(3):
        try:
            session.compact()
        except ShardstoreError:
            continue
    stored = sum(len(data) for name, data in tree(store).items() if name.endswith((".segment", ".shard")))
    assert stored < 20_000, "attempts leave nothing behind"
    fresh(store)[0].repair()
    assert_kept(store, before, lost=damage.lost)


# ------------------------------------------------------------------ unsynced sessions


def test_torn_shard_of_an_unsynced_session(tmp_path: Path) -> None:
    """Without durability a torn or empty shard reads as `lost`, is only a note, and compacts into a lost record."""
    before = build(tmp_path, 8, durability="none")
    cut(shard(tmp_path, 3), 0)
    cut(shard(tmp_path, 6), -1)
    torn = shard(tmp_path, 6).read_bytes()
    opened, session = fresh(tmp_path)
    for step in ("as shards", "compacted"):
        records = list(session.records())
        assert [record.seq for record in records] == list(range(1, 9)), step
        for old, new in zip(before, records, strict=True):
            assert (new.kind, new.source, new.payload) == ("control", "lost", b"") if old.seq in (3, 6) else new == old
        assert session.read_jsonl() == b"".join(r.payload for r in before if r.seq not in (3, 6))
        assert damages(opened.verify()) == []
        session.compact()
    assert session.append(b"next\n").seq == 9
    assert torn in [data for name, data in tree(tmp_path).items() if "damaged" in name]


def test_unsynced_session_after_a_power_loss(tmp_path: Path) -> None:
    """Shards that vanished below a later one are spent as `lost` by the next writer; their seqs are never reused."""
    before = build(tmp_path, 6, durability="none")
    shard(tmp_path, 2).unlink()
    shard(tmp_path, 5).unlink()
    (folder(tmp_path) / "head").write_bytes((10**6).to_bytes(8, "little"))
    opened, session = fresh(tmp_path)
    assert session.append(b"next\n").seq == 7
    records = list(session.records())
    assert [record.source for record in records if record.seq in (2, 5)] == ["lost", "lost"]
    assert [record for record in records if record.seq in (1, 3, 4, 6)] == [before[seq - 1] for seq in (1, 3, 4, 6)]
    assert damages(opened.verify()) == []


# ------------------------------------------------------------------ damage at random


@pytest.mark.parametrize("seed", range(60))
def test_random_damage(store: Path, seed: int) -> None:
    """One random hurt to one random file costs at most the records whose bytes it touched."""
    chance = random.Random(seed)
    before = content(store)
    _, spans = footer(store)
    file = chance.choice([path for path in sorted(folder(store).rglob("*")) if path.is_file()])
    size = file.stat().st_size
    start = chance.randrange(size)
    stop = chance.choice([start + 1, min(size, start + 50), size])
    data = file.read_bytes()
    hurt = chance.choice(
        [data[:start], data[:start] + chance.randbytes(stop - start) + data[stop:], data[:start] + data[stop:]]
    )
    file.write_bytes(hurt)
    touched = size if len(hurt) < size else stop
    lost: set[int] = set()
    if file.suffix == ".shard" and hurt != data:
        lost = {int(file.stem)}
    elif file.suffix == ".segment":
        lost = {seq for seq, (begin, length) in enumerate(spans, 1) if begin + length > start and begin < touched}
    opened, session = fresh(store)
    for call in (
        lambda: list(session.records()),
        lambda: list(session.records(reverse=True)),
        lambda: session.last(20),
        lambda: list(session.entries()),
        session.read_jsonl,
        session.describe,
        session.files,
        lambda: session.append({"number": 3, "text": "xxx"}, key="key-3"),
    ):
        with suppress(ShardstoreError):  # and nothing else
            call()
    after = tree(store)
    opened.verify()
    assert tree(store) == after
    opened.repair()
    after = list(fresh(store)[1].records())
    lost &= {record.seq for record, old in zip(after, before, strict=False) if record != old}
    assert_kept(store, before, lost=lost)


def test_a_session_born_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who verifies a folder while its session is born finds the session, not one that has lost its manifest."""
    store, session = fresh(tmp_path / "store")
    (tmp_path / "store/sessions" / ID / "segments").mkdir(parents=True)  # an import that was killed, or is at work
    list_folder = type(store._backend).list

    def bears_first(backend: Any, prefix: str) -> Any:
        monkeypatch.undo()
        fresh(tmp_path / "store")[1].append({"number": 1})
        return list_folder(backend, prefix)

    monkeypatch.setattr(type(store._backend), "list", bears_first)
    assert session.verify() == []
    assert session.head() == 1
