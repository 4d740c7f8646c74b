"""Rewrites in the engine, and making sessions durable on request."""

from __future__ import annotations

import errno
import io

import pytest
from helpers import raw_session
from mount_model import errno_of

import shardstore
from shardstore.backends.local import LocalBackend, make_root
from shardstore.backends.memory import MemoryBackend
from shardstore.mount.handles import Sessions
from shardstore.rewrite import Rewrite, decode_rewrite, is_rewrite
from shardstore.session import Options

UNSYNCED = Options(durability="none", record_bytes_max=1 << 10, compact_shards=None)


def backends(path: str) -> list[MemoryBackend | LocalBackend]:
    """Return one backend of each kind."""
    make_root(path)
    return [MemoryBackend(), LocalBackend(path)]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_rewrite_is_a_record_that_others_pass_over(store_path: str, compacted: bool) -> None:
    """It has a seq, carries its content, counts as a turn, survives compaction; views show the log as it was."""
    for backend in backends(store_path):
        session = raw_session(backend)
        session.append(b"1\n")
        session.append(b"2\n")
        receipt = session.rewrite(b"new\nno newline", seen=1, holds=[(2, 2)])
        assert (receipt.seq, receipt.base) == (3, 1)
        if compacted:
            session.compact()
        *_, record = session.records()
        assert is_rewrite(record)
        assert decode_rewrite(record) == Rewrite(1, ((2, 2),), b"new\nno newline")
        assert [decode_rewrite(record).replaces(seq) for seq in (1, 2, 3)] == [True, True, False]
        assert session.read_jsonl() == b"1\n2\n"
        assert list(session.entries()) == [1, 2]
        assert [finding.code for finding in session.verify()] == []
        with pytest.raises(shardstore.Conflict) as caught:
            session.append(b"3\n", if_no_turn_since=2)
        assert caught.value.seqs == (3,)


def test_a_backup_keeps_rewrites(store_path: str) -> None:
    """A copy of the store has the same rewrite at the same seq."""
    with shardstore.open(store_path) as store:
        store.session("x").append(b"1\n")
        store.session("x").rewrite(b"new\n", seen=1)
        store.backup(store_path + "-copy")
        with shardstore.open(store_path + "-copy") as copy:
            assert list(copy.session("x").records()) == list(store.session("x").records())


@pytest.mark.parametrize(("seen", "holds"), [(-1, []), (True, []), (2, [(2, 2)]), (1, [(3, 2)]), (2, []), (2**63, [])])
def test_nonsense_is_refused(store_path: str, seen: int, holds: list[tuple[int, int]]) -> None:
    """Seqs that are none, and ranges not above what was seen, are refused; nothing is written."""
    session = raw_session(backends(store_path)[1])
    session.append(b"1\n")
    with pytest.raises(shardstore.InvalidRequest):
        session.rewrite(b"x", seen=seen, holds=holds)
    assert session.head() == 1


def test_a_rewrite_is_bounded_as_any_record(store_path: str) -> None:
    """Content over the store's limit for a record is refused."""
    session = raw_session(backends(store_path)[1], options=UNSYNCED)
    session.append(b"1\n")
    with pytest.raises(shardstore.InvalidRequest):
        session.rewrite(b"x" * (1 << 10), seen=1)


def test_a_mount_says_that_a_file_is_too_large(store_path: str) -> None:
    """What is over the store's limit for a record is EFBIG for a file, and nothing of it is there."""
    with shardstore.open(store_path, record_bytes_max=100) as store:
        store.session("x").append(b"1\n")
        sessions = Sessions(store)
        assert errno_of(lambda: sessions.replace("x.jsonl", io.BytesIO(b"x" * 99), None, 1)) == errno.EFBIG
        assert errno_of(lambda: sessions.replace("y.jsonl", io.BytesIO(b"x" * 101), None, 1)) == errno.EFBIG
        assert (sessions.listing(""), store.session("x").head()) == ((["x.jsonl"], []), 1)


def test_sync_flushes_what_is_not_durable_by_itself(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an unsynced session, sync flushes the whole filesystem after the last append, or else compacts all of it."""
    flushed: list[int] = []
    backend = backends(store_path)[1]
    assert isinstance(backend, LocalBackend)
    session = raw_session(backend, options=UNSYNCED)
    for _ in range(5):
        session.append(b"x\n")
    monkeypatch.setattr(backend, "flusher", lambda: lambda: flushed.append(session.head()))
    session.sync()
    assert (flushed, session.info().watermark) == ([5], 0)
    monkeypatch.setattr(backend, "flusher", lambda: None)
    session.sync()
    assert (flushed, session.info().watermark) == ([5], 5)


def test_sync_waits_for_no_stopped_compactor_for_ever(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would have to compact and somebody holds the right to, sync says that nothing is certain."""
    monkeypatch.setattr("shardstore.durable.LOCK_WAIT_S", 0.01)
    backend, other = backends(store_path)[1], LocalBackend(store_path)
    session = raw_session(backend, options=UNSYNCED)
    session.append(b"x\n")
    monkeypatch.setattr(backend, "flusher", lambda: None)
    with other.exclusive("sessions/s") as held:
        assert held
        with pytest.raises(shardstore.Unavailable):
            session.sync()
    session.sync()


def test_sync_flushes_the_names_of_a_synced_session(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a synced session only the folder of its records is left to be flushed."""
    settled: list[str] = []
    backend = backends(store_path)[1]
    session = raw_session(backend)
    session.append(b"x\n")
    monkeypatch.setattr(backend, "settle", settled.append)
    session.sync()
    assert settled == ["sessions/s/shards"]
