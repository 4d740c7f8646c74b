"""Bars 5 to 9: loading, the tail, compaction, memory, and the first append of a fresh process.

Rule: both sides of a ratio do the same work on the same bytes in one run, in turns, with handles that have seen
nothing before; the page cache is warm for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

import shardstore
from benchmarks import fresh
from benchmarks.report import Row
from benchmarks.workshop import Workshop, fresh_name, kib_line, realistic_lines

__all__ = ["compaction", "first_append", "load", "memory", "tail"]

TAIL = 50
PIECE = 1 << 20


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter_ns()
    value = action()
    return value, (time.perf_counter_ns() - start) / 1e6


# ------------------------------------------------------------------ 5: loading


def make_realistic(path: str, sizes: dict[str, int]) -> None:
    """Subject: import sessions of so many realistic lines, each the tail of the largest, and write plain files."""
    lines = realistic_lines(max(sizes.values()))
    with shardstore.open(path) as store:
        for name, count in sizes.items():
            assert store.import_session(name, lines[-count:]) == count
            with open(os.path.join(path, f"{name}.jsonl"), "wb") as plain:
                plain.writelines(lines[-count:])


def _plain_load(path: str) -> list[Any]:
    with open(path, "rb") as lines:
        return [orjson.loads(line) for line in lines]


def load_turns(path: str, rounds: int) -> dict[str, list[float]]:
    """Subject: load a session and the plain file in turns; return milliseconds."""
    store = shardstore.open(path)
    sides: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: list(store.session("load").entries()),
        "plain": lambda: _plain_load(os.path.join(path, "load.jsonl")),
    }
    took: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            value, ms = _timed(sides[side])
            took[side].append(ms)
            del value
    assert sides["ours"]() == sides["plain"]()
    return took


def load(workshop: Workshop) -> list[Row]:
    """Bar 5: a session in segments, as an import bears it, against orjson over the plain file."""
    count = workshop.size(10_000, 10_000)
    took: dict[str, list[float]] = {"ours": [], "plain": []}
    with workshop.large_folder() as path:
        fresh.call(make_realistic, path=path, sizes={"load": count})
        for _ in range(workshop.many(8)):
            for side, samples in fresh.call(load_turns, path=path, rounds=5).items():
                took[side] += samples
    what = f"load and decode {count:,} compacted records, against orjson.loads over the plain lines"
    return [Row(bar="load", what=what, unit="ms", ours=took["ours"], other=took["plain"], bound=1.25)]


# ------------------------------------------------------------------ 6: the tail


def tail_turns(path: str, rounds: int) -> dict[str, list[float]]:
    """Subject: read the last records of a long and of a short session in turns; return milliseconds."""
    took: dict[str, list[float]] = {"long": [], "short": []}
    payloads: dict[str, list[bytes]] = {}
    for number in range(rounds * 2):
        name = ("long", "short")[number % 2]
        with shardstore.open(path) as store:
            session = store.session(name)
            records, ms = _timed(lambda session=session: session.last(TAIL))  # type: ignore[misc]
        took[name].append(ms)
        payloads[name] = [record.payload for record in records]
    assert payloads["long"] == payloads["short"]
    assert len(payloads["long"]) == TAIL
    return took


def tail(workshop: Workshop) -> list[Row]:
    """Bar 6."""
    sizes = {"long": workshop.size(100_000, 20_000), "short": 1_000}
    with workshop.large_folder() as path:
        fresh.call(make_realistic, path=path, sizes=sizes)
        took = fresh.call(tail_turns, path=path, rounds=workshop.many(200))
    what = f"the last {TAIL} records of {sizes['long']:,} compacted ones, against those of {sizes['short']:,}"
    return [Row(bar="tail", what=what, unit="ms", ours=took["long"], other=took["short"], bound=1.5)]


# ------------------------------------------------------------------ 7: compaction


def _bare_compaction(shards: str, target: str, *, unlink: bool) -> None:
    """Read every shard of a folder, in order, and write one synced file."""
    folder = os.open(shards, os.O_RDONLY | os.O_DIRECTORY)
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    names = sorted(os.listdir(folder))
    pieces: list[bytes] = []
    size = 0
    for name in names:
        fd = os.open(name, os.O_RDONLY, dir_fd=folder)
        data = os.read(fd, os.fstat(fd).st_size)
        os.close(fd)
        pieces.append(data)
        size += len(data)
        if size >= PIECE:
            os.writev(out, pieces[:1000]) if len(pieces) <= 1000 else os.write(out, b"".join(pieces))
            pieces, size = [], 0
    os.write(out, b"".join(pieces))
    os.fsync(out)
    os.close(out)
    if unlink:
        for name in names:
            os.unlink(name, dir_fd=folder)
    os.close(folder)


def _published_ms(session: shardstore.Session) -> tuple[float, float]:
    """Compact; return milliseconds until the segment was published, and until everything was swept."""
    published: list[int] = []
    start = time.perf_counter_ns()
    session.compact(on_progress=lambda _done, _total: published.append(time.perf_counter_ns()))
    whole = time.perf_counter_ns() - start
    return (published[-1] - start) / 1e6, whole / 1e6


def compaction_turns(path: str, rounds: int, count: int) -> dict[str, list[float]]:
    """Subject: compact a session, and its twin by a bare loop, in turns; return milliseconds."""
    lines = realistic_lines(count)
    took: dict[str, list[float]] = {"published": [], "whole": [], "bare": [], "unlinking": []}
    store = shardstore.open(path, durability="none", compact_shards=None)
    for number in range(rounds):
        ours, twin = store.session(fresh_name()), store.session(fresh_name())
        for session in (ours, twin):
            for line in lines:
                session.append(line)
        shards = os.path.join(path, os.path.dirname(twin.files()[-1][0]))
        target = os.path.join(path, twin.id)
        for side in ("bare", "ours") if number % 2 else ("ours", "bare"):
            os.sync()
            if side == "bare":
                took[side].append(_timed(lambda: _bare_compaction(shards, target, unlink=False))[1])  # noqa: B023
            else:
                published, whole = _published_ms(ours)
                took["published"].append(published)
                took["whole"].append(whole)
        os.sync()
        took["unlinking"].append(_timed(lambda: _bare_compaction(shards, f"{target}-again", unlink=True))[1])  # noqa: B023
        assert os.path.getsize(target) == os.path.getsize(f"{target}-again") > sum(map(len, lines))
        assert [record.payload for record in ours.records()] == lines
        assert ours.info().watermark == count
    return took


def compaction(workshop: Workshop) -> list[Row]:
    """Bar 7: up to publication against a loop that deletes nothing; and whole, against one that deletes as well."""
    count = workshop.size(5_000, 2_000)
    took = fresh.call(compaction_turns, path=workshop.folder(), rounds=workshop.many(8), count=count)
    what = f"{count:,} shards"
    bare, unlinking, whole = took["bare"], took["unlinking"], took["whole"]
    return [
        _row(f"compact {what} until published, against a bare loop", took["published"], bare, 0.5),
        _row(f"compact {what} and sweep, against a bare loop that deletes too", whole, unlinking, None),
        _row(f"compact {what} and sweep, against a bare loop that deletes nothing", whole, bare, None),
    ]


def _row(what: str, ours: list[float], other: list[float], bound: float | None) -> Row:
    return Row(bar="compaction", what=what, unit="ms", ours=ours, other=other, bound=bound, rule=">=")


# ------------------------------------------------------------------ 8: memory


def make_large(path: str, total: int) -> int:
    """Subject: import records of 1 byte to 1 MiB, `total` bytes of them; return how many."""
    block = os.urandom(1 << 20).replace(b"\n", b" ")

    def records() -> Iterator[bytes]:
        left, size = total, 1
        while left > 0:
            size = size * 5 % ((1 << 20) - 1) + 1
            yield block[: size - 1] + b"\n"
            left -= size

    with shardstore.open(path) as store:
        return store.import_session("large", records())


def iterate(path: str, reverse: bool) -> dict[str, int]:
    """Subject: iterate a session; return how much was seen and the most memory that was held."""
    records = payload = 0
    with shardstore.open(path, create=False) as store:
        for record in store.session("large", create=False).records(reverse=reverse):
            records += 1
            payload += len(record.payload)
    return {"records": records, "payload": payload, "peak": fresh.peak_bytes()}


def memory(workshop: Workshop) -> list[Row]:
    """Bar 8."""
    total = workshop.size(1 << 30, 1 << 28)
    rows = []
    with workshop.large_folder() as path:
        count = fresh.call(make_large, path=path, total=total)
        for name, reverse in (("memory", False), ("memory-reversed", True)):
            seen = fresh.call(iterate, path=path, reverse=reverse)
            assert seen["records"] == count
            assert total <= seen["payload"] < total + (1 << 20)
            what = f"peak RSS of iterating {total >> 20:,} MiB in {count:,} records{' backwards' * reverse}"
            peak = [seen["peak"] / (1 << 20)]
            rows.append(Row(bar=name, what=what, unit="MiB", ours=peak, other=[100.0], bound=1.0, rule="<"))
    return rows


# ------------------------------------------------------------------ 9: the first append


def make_sized(path: str, durability: shardstore.Durability, sizes: dict[str, int]) -> None:
    """Subject: import sessions of so many 1 KiB records."""
    with shardstore.open(path) as store:
        for name, count in sizes.items():
            lines = (kib_line(number) for number in range(count))
            assert store.import_session(name, lines, durability=durability) == count


def first(path: str, name: str, number: int) -> dict[str, float]:
    """Subject: append one record, the first thing that this process does; return milliseconds."""

    def act() -> shardstore.Receipt:
        return shardstore.open(path, create=False).session(name, create=False).append(line)

    line = kib_line(number, number)
    receipt, ms = _timed(act)
    assert [record.payload for record in shardstore.open(path).session(name).last(1)] == [line]
    return {"ms": ms, "seq": receipt.seq}


def first_append(workshop: Workshop) -> list[Row]:
    """Bar 9, durably and not."""
    sizes = {"long": workshop.size(1_000_000, 100_000), "short": 10}
    rows = []
    for durability in ("sync", "none"):
        took: dict[str, list[float]] = {name: [] for name in sizes}
        with workshop.large_folder() as path:
            fresh.call(make_sized, path=path, durability=durability, sizes=sizes)
            for number in range(1, workshop.many(60) + 1):
                for name, count in sizes.items():
                    answer = fresh.call(first, path=path, name=name, number=number)
                    assert answer["seq"] == count + number
                    took[name].append(answer["ms"])
        what = f"a fresh process's first append to {sizes['long']:,} compacted records, against {sizes['short']}"
        bar = "first-append" if durability == "sync" else "first-append-unsynced"
        rows.append(Row(bar=bar, what=what, unit="ms", ours=took["long"], other=took["short"], bound=2.0))
    return rows
