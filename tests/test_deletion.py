"""Archives and deletions: a flag, and a tombstone; deleted transcripts do not linger."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from mishaps import ID, build, damages, failing, folder, fresh, named_temps, shard, tree

import shardstore
from shardstore import Deleted, NotFound, ShardstoreError
from shardstore.backends import syscalls

SECRET = b"the secret of the transcript"


def test_archive_and_unarchive(tmp_path: Path) -> None:
    """An archived session leaves the listing and nothing else changes; the flag is taken back the same way."""
    before = build(tmp_path, 4, compact_at=(2,))
    store, session = fresh(tmp_path)
    for _ in range(2):
        session.archive()
    assert list(store.sessions()) == []
    assert [info.archived for info in store.sessions(archived=True)] == [True]
    assert session.append(b"still\n").seq == 5
    session.compact()
    assert list(fresh(tmp_path)[1].records())[:4] == before
    session.unarchive()
    assert [info.archived for info in store.sessions()] == [False]
    for call in (store.session("absent").archive, store.session("absent").delete, store.session("absent").unarchive):
        with pytest.raises(NotFound):
            call()
    assert not (tmp_path / "sessions" / "absent").exists()


@pytest.mark.parametrize("temps", ["unnamed", "named"])
def test_nothing_of_a_deleted_transcript_is_left(tmp_path: Path, temps: str) -> None:
    """After delete and compact no file holds a byte of the transcript: no shard, segment, leftover or damaged one."""
    with named_temps() if temps == "named" else pytest.MonkeyPatch.context():
        store, session = fresh(tmp_path)
    for number in range(6):
        session.append(SECRET + b" %d\n" % number, key=f"k{number}")
        if number == 3:
            session.compact()
    shard(tmp_path, 5).write_bytes(SECRET)
    store.repair()
    session.append(SECRET)
    for name in ("shards", "segments", "."):
        (folder(tmp_path) / name / ".tmp-123-abc").write_bytes(SECRET)
    (folder(tmp_path) / "segments" / f"{1:020d}-{3:020d}-1-{'0' * 32}.segment").write_bytes(SECRET)
    session.delete()
    session.compact()
    assert [name for name, data in tree(tmp_path).items() if SECRET in data] == []
    assert session.info().state == "deleted"
    assert [info.id for info in store.sessions()] == []
    assert [info.id for info in store.sessions(deleted=True)] == [ID]
    assert store.verify() == []


def test_deleted_stays_deleted(tmp_path: Path) -> None:
    """Every call on a deleted session answers Deleted, for handles that knew it alive too; deleting again is fine."""
    build(tmp_path, 4, compact_at=(2,))
    store, old = fresh(tmp_path)
    assert len(list(old.records())) == 4
    fresh(tmp_path)[1].delete()
    for session in (old, store.session(ID), fresh(tmp_path)[1]):
        for call in (
            lambda s=session: s.append(b"x\n"), lambda s=session: s.append(b"x\n", key="k"),
            lambda s=session: list(s.records()),
            session.head, session.read_jsonl, lambda s=session: s.last(1), session.archive, session.files,
            lambda s=session: next(s.follow(0)),
        ):  # fmt: skip
            with pytest.raises(Deleted):
                call()  # type: ignore[operator]
        session.delete()
    assert [name for name in tree(tmp_path) if name.endswith((".shard", ".segment"))] == []
    assert store.verify() == []


def test_deletion_that_fails_is_repeated(tmp_path: Path) -> None:
    """A deletion cut short by any failing call answers Deleted from then on, and a second one completes it."""
    for number in range(1, 12):
        for name in ("link_named", "flush_folder", "flush_data", "write_all"):
            path = tmp_path / f"{name}-{number}"
            build(path, 4, compact_at=(2,))
            _, session = fresh(path)
            with failing(syscalls, name, errno.EIO, lambda call, n=number: call == n):
                try:
                    session.delete()
                except ShardstoreError:
                    if session.info().state == "open":
                        assert len(list(session.records())) == 4
            session.delete()
            with pytest.raises(Deleted):
                session.append(b"x\n")
            session.compact()
            assert [name for name in tree(path) if name.endswith((".shard", ".segment"))] == []
            assert damages(fresh(path)[0].verify()) == []


def test_a_compaction_keeps_every_fact(tmp_path: Path) -> None:
    """Archived, created when, born as what: no compaction and no merge changes a session's facts."""
    with shardstore.open(tmp_path, durability="none", compact_shards=None) as store:
        session = store.session("a")
        session.append(b"one\n")
        session.archive()
        before = session.info()
        for number in range(3):
            session.compact()
            session.append(b"more %d\n" % number)
        session.compact()
        after = session.info()
    assert after.archived
    assert (after.created_at_ms, after.durability, after.state) == (before.created_at_ms, "none", "open")
    assert after.generation > before.generation
