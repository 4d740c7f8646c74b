"""Writing sessions as files: what becomes a record, where a handle stands, and many writers at once."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonl_workers
import pytest
from helpers import Task, join_all, processes, together

import shardstore
from shardstore import jsonl


@pytest.fixture
def session(store_path: str) -> shardstore.Session:
    """Return a session that exists."""
    session = shardstore.open(store_path, compact_shards=None).session("s")
    session.create()
    return session


def payloads(session: shardstore.Session) -> list[bytes]:
    return [record.payload for record in session.records()]


# ------------------------------------------------------------------ what becomes a record


def test_one_write_is_one_record(session: shardstore.Session) -> None:
    """All lines that a write completes are one record, with the half line before; the rest waits for its newline."""
    with jsonl.open(session, "a") as file:
        file.write("a\n")
        file.write("b\nc\nha")
        file.flush()
        assert payloads(session) == [b"a\n", b"b\nc\n"]
        file.writelines(["lf", "\nd\n", "e\n"])
        file.write("rest")
        assert payloads(session) == [b"a\n", b"b\nc\n", b"half\nd\n", b"e\n"]
    assert payloads(session)[4:] == [b"rest"]
    with jsonl.open(session, "ab") as file:
        assert file.write(b"") == 0
    assert len(payloads(session)) == 5, "closing writes nothing where nothing is held"


def test_committed_when_write_returns(session: shardstore.Session) -> None:
    """A complete line is in the log before anything is flushed or closed; a large one is one record too."""
    large = json.dumps("x" * 3_000_000) + "\n"
    file = jsonl.open(session, "a")
    file.write(large)
    assert payloads(session) == [large.encode()]
    file.close()


def test_half_lines_of_two_handles_never_mix(session: shardstore.Session) -> None:
    """Whatever two handles write in turns, each line holds the bytes of one of them."""
    with jsonl.open(session, "a") as one, jsonl.open(session, "a") as two:
        for number in range(9):
            one.write("1" * number + ("\n" if number % 3 == 2 else ""))
            two.write("2" * number + ("\n" if number % 2 else ""))
    lines = session.read_jsonl().splitlines()
    assert all(len(set(line)) <= 1 for line in lines), lines
    assert sum(map(len, lines)) == 72


def test_a_handle_knows_where_its_own_bytes_end(session: shardstore.Session) -> None:
    """After a write, tell is the end of that write, whoever appended since; a+ reads on from there."""
    with jsonl.open(session, "a+b") as one, jsonl.open(session, "ab") as two:
        one.write(b"first\n")
        two.write(b"second\n")
        assert (one.tell(), two.tell()) == (6, 13)
        assert one.read() == b"second\n"


def test_what_is_held_stays_behind_what_others_append(session: shardstore.Session) -> None:
    """A half line is shown to its own handle behind the end, wherever that is by now, and never in two places."""
    with jsonl.open(session, "a+b") as one, jsonl.open(session, "ab") as two:
        one.write(b"x\nhalf")
        one.seek(0)
        assert one.read(3) == b"x\nh", "the rest is read ahead"
        two.write(b"others\n")
        one.write(b" a")
        one.seek(0)
        assert one.read() == b"x\nothers\nhalf a"
        assert one.tell() == len(b"x\nothers\nhalf a")
        one.write(b" line\n")
        one.seek(2)
        assert one.read() == b"others\nhalf a line\n"
        one.write(b"next")
        two.write(b"more\n")
        one.write(b"!")
        assert one.tell() == len(session.read_jsonl() + b"next!")


def test_a_lacking_newline_is_put_before_what_follows(session: shardstore.Session) -> None:
    """Where a handle was closed in the middle of a line, the next one begins a new line, for every reader."""
    with jsonl.open(session, "rb") as reader:
        for number in range(4):
            with jsonl.open(session, "a+b") as file:
                start = file.tell()
                file.write(b"%d" % number)
                file.seek(start)
                assert file.read() == (b"\n%d" if number else b"%d") % number
            assert reader.read() == (b"\n%d" if number else b"%d") % number
    assert session.read_jsonl() == b"0\n1\n2\n3"


def test_opening_measures_nothing(session: shardstore.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a session to append reads none of it, however large it is; only a tell does."""
    session.append(b"x\n" * 50)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("the session was read")

    with monkeypatch.context() as patch:
        patch.setattr(shardstore.Session, "payload_blocks", refuse)
        for mode in ("a", "ab", "a+"):
            with jsonl.open(session, mode) as file:
                file.write("y\n" if "b" not in mode else b"y\n")
    with jsonl.open(session, "a") as file:
        assert file.tell() == 106


def test_no_false_end(session: shardstore.Session) -> None:
    """A read that begins after an append was acknowledged returns its bytes, also in the middle of a walk."""
    with jsonl.open(session, "rb", 0) as file:
        for number in range(20):
            session.append(b"%d\n" % number)
            assert file.read(100) == b"%d\n" % number


def test_the_base_is_what_was_read(session: shardstore.Session) -> None:
    """A record's base is the last record that this handle gave to its caller; measuring the end is no reading."""
    session.append(b"seen\n")
    with jsonl.open(shardstore.open(session_store(session)).session("s"), "a+") as file:
        file.tell()
        file.write("blind\n")
        file.seek(0)
        file.read()
        file.write("seeing\n")
    assert [record.base for record in session.records()] == [None, 0, 2]


def session_store(session: shardstore.Session) -> str:
    root: str = session._log.backend.root  # type: ignore[attr-defined]
    return root


# ------------------------------------------------------------------ many writers


def test_threads_share_a_handle(session: shardstore.Session) -> None:
    """8 threads write whole lines through one binary handle: none is torn or lost."""
    file = jsonl.open(session, "ab")

    def writer(name: int) -> Callable[[], None]:
        return lambda: [file.write(b"%d %d\n" % (name, number)) for number in range(50)] and None

    together([writer(name) for name in range(8)])
    file.close()
    lines = session.read_jsonl().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (name, number) for name in range(8) for number in range(50))


def test_eight_processes(tmp_path: Path) -> None:
    """8 processes append to one path: every line is there, whole, each writer's in order, one write's side by side."""
    path, count = tmp_path / "shared.jsonl", 60
    gate = processes.Barrier(8)
    names = [f"writer-{number}" for number in range(8)]
    workers = [
        processes.Process(target=jsonl_workers.write_lines, args=(str(path), name, count, gate)) for name in names
    ]
    for worker in workers:
        worker.start()
    join_all(workers)
    with jsonl.open(path) as file:
        entries = [json.loads(line) for line in file]
    for name in names:
        assert [entry["number"] for entry in entries if entry.get("name") == name] == list(range(count))
    for place, entry in enumerate(entries):
        if entry.get("number", 0) % 3 == 2:
            assert entries[place + 1 : place + 3] == [{"follows": entry["name"]}] * 2
    assert len(entries) == 8 * count // 3 * 5


def test_reading_while_others_write_and_compact(session: shardstore.Session) -> None:
    """A reader that follows writers and a compactor sees every line once, whole, in the order of the view."""
    done = threading.Event()

    def write() -> None:
        with jsonl.open(session, "a") as file:
            for number in range(400):
                file.write(f"{number}\n")
                if number % 97 == 0:
                    session.compact()
        done.set()

    writer = Task(write)
    seen: list[str] = []
    with jsonl.open(session) as reader:
        while not done.is_set():
            seen += reader.readlines()
        writer.result()
        seen += reader.readlines()
    assert "".join(seen) == "".join(f"{number}\n" for number in range(400))


def test_memory_is_bounded(session: shardstore.Session) -> None:
    """Reading a large session by lines, or seeking in it, holds one block of it at a time."""
    import tracemalloc

    line = b"x" * 9_999 + b"\n"
    for _ in range(40):
        session.append([line] * 100)
    session.compact()
    tracemalloc.start()
    try:
        with jsonl.open(session, "rb") as file:
            assert file.seek(0, io.SEEK_END) == 40_000_000
            file.seek(20_000_001)
            assert len(file.readline()) == 9_999
            file.seek(0)
            assert sum(map(len, file)) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
