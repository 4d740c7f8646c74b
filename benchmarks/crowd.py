"""Bars 3 and 4: sixteen processes append to one session, against SQLite doing the same.

Rule: SQLite gets its best case: WAL, nothing in the table but a number and the payload, one cached INSERT in autocommit
(BEGIN IMMEDIATE and COMMIT around it: half as fast unsynced, no faster durably, 2026-11-21), a busy timeout that nobody
reaches. Every member has appended once before the common start; what is measured is the time until the last one is
done. Both sides take turns, each time with fresh processes and a fresh store. The longest stall is the slowest single
append of any member in any round.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from itertools import count as count_from
from typing import Any

import shardstore
from benchmarks import fresh
from benchmarks.report import Row
from benchmarks.workshop import Workshop, fresh_name, kib_line

__all__ = ["crowd_durable", "crowd_unsynced"]

MEMBERS = 16
BUSY_TIMEOUT_MS = 60_000
_INSERT = "INSERT INTO log (payload) VALUES (?)"


def _run(member: int, count: int, append: Callable[[bytes], object]) -> dict[str, Any]:
    """Append once, wait for the others, append `count` times; return what it took and what was refused."""
    append(kib_line(member, 0))
    payloads = [kib_line(member, number) for number in range(1, count + 1)]
    longest = busy = 0
    fresh.gate()
    start = last = time.monotonic_ns()
    for payload in payloads:
        try:
            append(payload)
        except (sqlite3.OperationalError, shardstore.Unavailable):
            busy += 1
        now = time.monotonic_ns()
        longest = max(longest, now - last)
        last = now
    return {"start": start, "end": last, "longest_ms": longest / 1e6, "busy": busy}


def shardstore_member(member: int, path: str, name: str, count: int, shards: int | None) -> dict[str, Any]:
    """Subject: one member of the crowd on shardstore."""
    seqs: list[int] = []
    with shardstore.open(path, compact_shards=shards) as store:
        session = store.session(name)
        answer = _run(member, count, lambda payload: seqs.append(session.append(payload).seq))
    return {**answer, "seqs": seqs}


def sqlite_member(member: int, path: str, count: int, synchronous: str, immediate: bool) -> dict[str, Any]:
    """Subject: one member of the crowd on SQLite."""
    connection = _connect(path, synchronous)
    execute = connection.execute

    def append(payload: bytes) -> None:
        execute(_INSERT, (payload,))

    def append_immediate(payload: bytes) -> None:
        execute("BEGIN IMMEDIATE")
        execute(_INSERT, (payload,))
        execute("COMMIT")

    answer = _run(member, count, append_immediate if immediate else append)
    connection.close()
    return answer


def _connect(path: str, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(os.path.join(path, "log.sqlite"), isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


def _expected(count: int) -> set[bytes]:
    return {kib_line(member, number) for member in range(MEMBERS) for number in range(count + 1)}


def shardstore_round(path: str, durability: str, count: int, shards: int | None) -> list[dict[str, Any]]:
    """Run the crowd on a new session and check that every acknowledged record is there, once, at its seq."""
    assert durability in ("sync", "none")
    store = shardstore.open(path, durability="sync" if durability == "sync" else "none", compact_shards=shards)
    session = store.create(fresh_name())
    answers = fresh.crew(shardstore_member, MEMBERS, path=path, name=session.id, count=count, shards=shards)
    found = [record.payload for record in session.records()]
    for member, answer in enumerate(answers):
        assert answer["busy"] or [found[seq - 1] for seq in answer["seqs"]] == [
            kib_line(member, number) for number in range(count + 1)
        ]
    assert len(found) == len(set(found)) >= len(_expected(count)) - sum(answer["busy"] for answer in answers)
    assert set(found) <= _expected(count)
    assert not [finding for finding in session.verify() if finding.severity == "damage"]
    return answers


def sqlite_round(path: str, synchronous: str, count: int, *, immediate: bool = False) -> list[dict[str, Any]]:
    """Run the crowd on a new database and check it likewise."""
    connection = _connect(path, synchronous)
    connection.execute("CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL)")
    connection.close()
    crew = {"path": path, "count": count, "synchronous": synchronous, "immediate": immediate}
    answers = fresh.crew(sqlite_member, MEMBERS, **crew)
    connection = _connect(path, synchronous)
    found = Counter(row[0] for row in connection.execute("SELECT payload FROM log"))
    connection.close()
    assert set(found) <= _expected(count)
    assert max(found.values()) == 1
    assert len(found) == len(_expected(count)) - sum(answer["busy"] for answer in answers)
    return answers


def bare_member(member: int, path: str, count: int) -> dict[str, Any]:
    """Subject: one member that makes the system calls of a durable append, and nothing else: the floor."""
    shards = os.open(os.path.join(path, "shards"), os.O_RDONLY | os.O_DIRECTORY)
    hint = os.open(os.path.join(path, "head"), os.O_RDWR)
    temps = (f".tmp-{os.getpid()}-{os.urandom(8).hex()}-{number}" for number in count_from(0))

    def append(payload: bytes) -> None:
        temp = next(temps)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=shards)
        os.writev(fd, (os.urandom(16).hex().encode(), payload))
        os.fdatasync(fd)
        seq = int.from_bytes(os.pread(hint, 8, 0), "little") + 1
        while not _linked(temp, seq, shards):
            seq = max(seq, int.from_bytes(os.pread(hint, 8, 0), "little")) + 1
        os.pwrite(hint, seq.to_bytes(8, "little"), 0)
        os.close(fd)
        os.unlink(temp, dir_fd=shards)
        os.fsync(shards)
        os.stat(path)

    return _run(member, count, append)


def _linked(temp: str, seq: int, shards: int) -> bool:
    try:
        os.link(temp, f"{seq:020d}.shard", src_dir_fd=shards, dst_dir_fd=shards, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def bare_round(path: str, count: int) -> list[dict[str, Any]]:
    """Run the crowd of bare system calls, and check that each made its files.

    The folder lies where the engine's would, so that ext4 places both alike: sessions are spread over its block groups.
    """
    session = shardstore.open(path, compact_shards=None).create(fresh_name())
    folder = os.path.join(path, "sessions", session.id, "bare")
    os.makedirs(os.path.join(folder, "shards"))
    with open(os.path.join(folder, "head"), "xb"):
        pass
    answers = fresh.crew(bare_member, MEMBERS, path=folder, count=count)
    assert len(os.listdir(os.path.join(folder, "shards"))) == MEMBERS * (count + 1)
    return answers


def _took_us(answers: list[dict[str, Any]], count: int) -> float:
    wall: int = max(answer["end"] for answer in answers) - min(answer["start"] for answer in answers)
    return wall / (count * MEMBERS) / 1e3


def _crowd(workshop: Workshop, bar: str, durability: str, bound: float, count: int) -> list[Row]:
    synchronous = "FULL" if durability == "sync" else "NORMAL"
    sides: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "ours": lambda path: shardstore_round(path, durability, count, None),
        "sqlite": lambda path: sqlite_round(path, synchronous, count),
        "default": lambda path: shardstore_round(path, durability, count, 1024),
    }
    if durability == "sync":
        sides["bare"] = lambda path: bare_round(path, count)
    took: dict[str, list[float]] = {side: [] for side in sides}
    stalls: dict[str, list[float]] = {side: [] for side in sides}
    busy = dict.fromkeys(sides, 0)
    for _ in range(workshop.many(7)):
        for side, run in sides.items():
            answers = run(workshop.folder())
            took[side].append(_took_us(answers, count))
            stalls[side].append(max(answer["longest_ms"] for answer in answers))
            busy[side] += sum(answer["busy"] for answer in answers)
    what = f"{MEMBERS} processes, {durability}, SQLite {synchronous}"
    return _rows(bar, what, bound, took, stalls, busy)


def _rows(
    bar: str,
    what: str,
    bound: float,
    took: dict[str, list[float]],
    stalls: dict[str, list[float]],
    busy: dict[str, int],
) -> list[Row]:
    refused = f"busy errors: ours {busy['ours']}, sqlite {busy['sqlite']}, default {busy['default']}"
    bound_busy = 0.5 if busy["ours"] == 0 else 0.0  # a busy error misses the bar

    def speed(name: str, what: str, side: str, bound: float | None = None, note: str = "") -> Row:
        rate = {"unit": "us", "ours": took[side], "other": took["sqlite"]}
        return Row(bar=name, what=what, bound=bound, rule=">=", note=note, **rate)  # type: ignore[arg-type]

    def stall(name: str, what: str, side: str, bound: float | None = None) -> Row:
        longest = {"unit": "ms", "ours": stalls[side], "other": stalls["sqlite"]}
        return Row(bar=name, what=what, bound=bound, rule="<", by="max", **longest)  # type: ignore[arg-type]

    floor = "the bare system calls by as many fresh processes, against the same"
    return [
        *([speed(f"{bar}-floor", floor, "bare")] if "bare" in took else []),
        speed(bar, what, "ours", bound, refused),
        stall(f"{bar}-stall", "longest stall", "ours", bound_busy),
        speed(f"{bar}-default", "the same with background compaction", "default"),
        stall(f"{bar}-default-stall", "its longest stall", "default"),
    ]


def crowd_durable(workshop: Workshop) -> list[Row]:
    """Bar 3."""
    return _crowd(workshop, "crowd", "sync", 2.5, workshop.size(150, 60))


def crowd_unsynced(workshop: Workshop) -> list[Row]:
    """Bar 4."""
    return _crowd(workshop, "crowd-unsynced", "none", 0.85, workshop.size(600, 150))
