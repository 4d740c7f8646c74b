"""Many at once on a mounted session: writers of both kinds, a compactor, a deleter, and a mount that is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import run
from helpers import join_all, processes, wait_until
from mounts import (
    Mounted,
    append,
    append_lines,
    kill,
    line_of,
    lines_of,
    mounted_in,
    needs,
    numbers_of,
    why_not,
    write_lines,
)

import shardstore

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store, empty."""
    yield from mounted_in(tmp_path)


def test_sixteen_writers(mount: Mounted, tmp_path: Path) -> None:
    """Eight processes append through the mount and eight by the API: every line is there once, whole, in order."""
    count = 24
    path, store = str(mount.path / "a.jsonl"), str(mount.store_path)
    workers = [
        processes.Process(target=write_lines, args=(path, writer, count, str(tmp_path / f"notes{writer}")))
        for writer in range(8)
    ] + [processes.Process(target=append_lines, args=(store, "a", writer, count)) for writer in range(8, 16)]
    for worker in workers:
        worker.start()
    join_all(workers)
    found = numbers_of(mount.view("a"))
    assert found == {writer: list(range(count)) for writer in range(16)}
    assert (mount.path / "a.jsonl").read_bytes() == mount.view("a")


def test_a_kill_loses_no_whole_line(mount: Mounted, tmp_path: Path) -> None:
    """kill -9 of the mount while writers write: what a write was told is there, and the next mount goes on."""
    append(mount.path / "a.jsonl", line_of(99, 1))
    for round_ in range(3):
        notes = [tmp_path / f"notes{round_}-{writer}" for writer in range(4)]
        path = str(mount.path / "a.jsonl")
        workers = [
            processes.Process(target=write_lines, args=(path, round_ * 4 + writer, 100_000, str(notes[writer])))
            for writer in range(4)
        ]
        for worker in workers:
            worker.start()
        wait_until(lambda notes=notes: all(n.exists() and n.stat().st_size > 60 for n in notes), what="some writes")
        kill(mount)
        join_all(workers)
        mount.start()
        found = numbers_of((mount.path / "a.jsonl").read_bytes())
        for note in notes:
            for line in lines_of(note):
                writer, number = map(int, line.split())
                assert number in found[writer]
    assert found[99] == [1]
    assert [finding for finding in mount.session("a").verify() if finding.severity == "damage"] == []


def test_a_compactor_and_a_deleter_at_work(mount: Mounted, tmp_path: Path) -> None:
    """While segments replace shards, reading and appending go on; a session that is deleted is gone, and no other."""
    path, notes = mount.path / "a.jsonl", tmp_path / "notes"
    append(mount.path / "doomed.jsonl", b"{}\n")
    writer = processes.Process(target=write_lines, args=(str(path), 0, 60, str(notes)))
    with open(mount.path / "doomed.jsonl", "rb", buffering=0) as doomed, open(path, "ab+", buffering=0) as held:
        assert doomed.read(3) == b"{}\n"
        writer.start()
        rounds = 0
        while writer.exitcode is None or rounds < 3:
            run(mount.store_path, "compact")
            content = path.read_bytes()
            assert content == b"".join(line_of(0, number) for number in range(content.count(b"\n")))
            rounds += 1
            if rounds == 2:
                mount.session("doomed").delete()
                with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                    doomed.read(3)
                assert os.listdir(mount.path) == ["a.jsonl"]
                with pytest.raises(FileNotFoundError):
                    (mount.path / "doomed.jsonl").read_bytes()
        join_all([writer])
        run(mount.store_path, "compact")
        held.write(b'{"last":1}\n')
        held.seek(0)
        assert held.readall() == path.read_bytes() == mount.view("a")
    assert len(lines_of(path)) == 61
    append(mount.path / "doomed.jsonl", b'{"again":1}\n')
    assert mount.view("doomed~2") == b'{"again":1}\n'
    with pytest.raises(shardstore.Deleted):
        mount.view("doomed")


@needs("strace")
def test_fsync_reaches_the_disk(tmp_path: Path) -> None:
    """An fsync through the mount flushes a session that appends do not flush, before it returns."""
    trace = tmp_path / "trace"
    mount = Mounted(tmp_path)
    mount.under = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=syncfs,fsync,fdatasync")
    try:
        mount.start()
        with open(mount.path / "a.jsonl", "ab", buffering=0) as file:
            file.write(b"{}\n")
            before = len(lines_of(trace))
            file.write(b"{}\n")
            assert len(lines_of(trace)) == before
            os.fsync(file.fileno())
            assert b" = 0\n" in b"".join(lines_of(trace)[before:])
    finally:
        mount.close()
