"""Who saw what last, and what follows from it: bases of appends, bounds of rewrites."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest
from helpers import Task

import shardstore
from shardstore.mount.handles import Sessions
from shardstore.mount.looks import LOOKS_MAX, Looks

PID = 10_000_000  # beyond what a kernel gives
APPEND = os.O_RDWR | os.O_APPEND


@pytest.fixture
def store(store_path: str) -> shardstore.Store:
    """Return a store of unsynced sessions."""
    return shardstore.open(store_path, durability="none", compact_shards=None)


def test_a_look_only_moves_forward() -> None:
    """What was seen stays seen; what was written counts only if nothing came between."""
    looks = Looks()
    assert looks.last(1, "x") is None
    looks.wrote(1, "x", 1)
    assert looks.last(1, "x") is None
    looks.saw(1, "x", 0)
    looks.wrote(1, "x", 1)
    assert looks.last(1, "x") == 1
    looks.wrote(1, "x", 3)
    assert looks.last(1, "x") == 1
    looks.saw(1, "x", 3)
    looks.saw(1, "x", 2)
    assert (looks.last(1, "x"), looks.last(2, "x"), looks.last(1, "y")) == (3, None, None)


def test_looks_are_bounded() -> None:
    """Of very many looks those that were used last are kept."""
    looks = Looks()
    for process in range(LOOKS_MAX):
        looks.saw(process, "x", process)
    looks.last(0, "x")
    looks.saw(LOOKS_MAX, "x", 7)
    assert (looks.last(0, "x"), looks.last(1, "x"), looks.last(LOOKS_MAX, "x")) == (0, None, 7)


def test_threads_are_their_process() -> None:
    """Every thread's id stands for its process, apart from every other's; one that is not alive for itself."""
    looks = Looks()
    mine = looks.process(os.getpid())
    assert Task(lambda: looks.process(threading.get_native_id())).result() == mine
    assert mine & 0xFFFFFFFF == os.getpid()
    assert mine >> 32 == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert looks.process(1) != mine
    assert looks.process(PID) == PID


def test_reading_the_beginning_again_unsees_nothing(store: shardstore.Store) -> None:
    """A process that has read all and then looks at the first line again still knows all."""
    sessions = Sessions(store)
    for line in (b"1\n", b"2\n"):
        store.session("x").append(line)
    file = sessions.open("x.jsonl", APPEND, PID)
    assert (file.read(10, 0), file.read(2, 0)) == (b"1\n2\n", b"1\n")
    file.write(b"3\n", 0)
    assert store.session("x").last(1)[0].base == 2
    file.release()


def test_the_maker_of_a_session_knows_it(store: shardstore.Store) -> None:
    """Who made a session and wrote to it alone knows all of it, and may rewrite it without reading it."""
    sessions = Sessions(store)
    file = sessions.create("x.jsonl", APPEND, PID)
    file.write(b"1\n", 0)
    file.write(b"2\n", 0)
    file.release()
    assert [record.base for record in store.session("x").records()] == [0, 1]
    store.session("x").append(b"heartbeat\n")
    sessions.replace("x.jsonl", io.BytesIO(b"compacted\n"), None, PID)
    reader = sessions.open("x.jsonl", os.O_RDONLY, PID)
    assert reader.read(100, 0) == b"compacted\nheartbeat\n"
    reader.release()


def test_a_blind_truncation_takes_what_is_there(store: shardstore.Store) -> None:
    """A process that never looked empties what there is when it opens the file, and nothing that comes later."""
    sessions = Sessions(store)
    store.session("x").append(b"1\n")
    file = sessions.open("x.jsonl", os.O_RDWR | os.O_TRUNC, PID)
    store.session("x").append(b"2\n")
    file.flush()
    assert file.read(100, 0) == b"2\n"
    file.release()


def test_a_piece_of_a_line_belongs_to_what_its_writer_overwrites(store: shardstore.Store) -> None:
    """A handle that wrote part of a line and then writes inside the file has both in its copy."""
    sessions = Sessions(store)
    store.session("x").append(b"one\n")
    file = sessions.open("x.jsonl", os.O_RDWR, PID)
    file.write(b"tw", 4)
    file.write(b"O", 0)
    file.write(b"o\n", 6)
    file.release()
    reader = sessions.open("x.jsonl", os.O_RDONLY, PID)
    assert reader.read(100, 0) == b"One\ntwo\n"
    reader.release()


def test_syncing_a_file_commits_and_flushes(store: shardstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When fsync returns, what was written, pieces of lines too, was committed before the session was made durable."""
    sessions = Sessions(store)
    synced: list[int] = []
    monkeypatch.setattr(shardstore.Session, "sync", lambda session: synced.append(session.head()))
    file = sessions.create("x.jsonl", APPEND, PID)
    file.write(b"1\n2", 0)
    file.fsync()
    assert synced == [2]
    sessions.sync("x.jsonl")
    assert synced == [2, 2]
    file.release()


def test_own_records_that_an_image_has_already_are_dropped(store: shardstore.Store) -> None:
    """A record that another thread has read before its writer hands it over is in the image once, and kept nowhere."""
    opened = Sessions(store)._open(store.create("x").id)
    receipts = [opened.session.append(b"%d\n" % n) for n in range(3)]
    opened._took(b"1\n", receipts[1])
    assert opened._pending.keys() == {2}
    assert opened.image().size == 6
    opened._took(b"0\n", receipts[0])
    assert opened._pending == {}
    assert opened.image().read(0, 10) == b"0\n1\n2\n"
