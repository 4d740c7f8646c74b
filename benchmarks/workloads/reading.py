"""Reading: a whole session, its last entries, and what was appended a moment ago.

Rule: the store was made by another process; the page cache is warm, the process and the handle are not, unless a figure
says so. Every answer that was timed is compared with what was written: the first load of a session entry by entry,
further ones by their number and the last entries.
"""

from __future__ import annotations

import statistics
import time
from array import array
from typing import Any

import msgspec
import orjson

from benchmarks import fresh
from benchmarks.checking import Check
from benchmarks.lines import line_of
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload, checked
from benchmarks.workloads.filling import NAME, as_json, at, made, opened, reads_alike, store_of, tail_of, twin_of, whole

__all__ = ["LAST", "LOAD", "READBACK"]

LAST_ENTRIES = 50
OPEN_READS = 10  # through an open handle, for each one through a fresh handle
MIB = 1 << 20
LARGE_MIX = "codex"  # whose lines are the smallest: a million of them, decoded, have to fit into memory
SIZES_AT: dict[Scale, tuple[int, ...]] = {
    "quick": (1_000,),
    "usual": (1_000, 10_000, 100_000),
    "full": (1_000, 10_000, 100_000, 1_000_000),
}
LOADS = {1_000: 3, 10_000: 2, 100_000: 1, 1_000_000: 1}  # fresh processes
FILL_SECONDS_MAX = {1_000: 5.0, 10_000: 5.0, 100_000: 8.0, 1_000_000: 20.0}
ONE_OF_TWINS = 1_000_000  # from this size on, of two that read by the same code the durable one is enough
WHOLE_MAX = 10_000  # entries of a session that is read back whole after its last ones were


# ------------------------------------------------------------------ whole


def load(subject: str, folder: str, mix: str, entries: int, compared: bool) -> dict[str, Any]:
    """Subject: open a store and load a session whole; every entry is compared, or their number and the last ones."""
    opened(subject, folder, mix).close()
    begun = time.perf_counter()
    handle = subject_of(subject).open(store_of(folder))
    found = handle.load(NAME)
    took = time.perf_counter() - begun
    peak = fresh.peak_bytes()
    handle.close()
    if compared:
        return {"seconds": took, "peak": peak, "check": as_json(whole(found, mix, entries))}
    same = len(found) == entries and found[-LAST_ENTRIES:] == tail_of(mix, entries, LAST_ENTRIES)
    return {
        "seconds": took,
        "peak": peak,
        "check": as_json(Check(error="" if same else "loaded again it was not whole")),
    }


def _size(mix: str, entries: int) -> int:
    return sum(len(line_of(mix, 0, number)) for number in range(entries))


def _load(subject: Subject, case: Case, folder: str) -> Outcome:
    mix, entries = case.arguments["mix"], case.arguments["entries"]
    limit = case.arguments["fill_seconds_max"]
    twin = twin_of(subject)
    if entries >= ONE_OF_TWINS and not subject.durable and twin is not None:
        return Outcome({}, note=f'it reads as "{twin.label}" does')
    if reason := made(subject, folder, mix=mix, entries=entries, seconds_max=limit, only_read=True):
        return Outcome({}, note=reason)
    answers = [
        fresh.call(load, subject=subject.name, folder=folder, mix=mix, entries=entries, compared=not number)
        for number in range(case.arguments["loads"])
    ]
    seconds = statistics.median(answer["seconds"] for answer in answers)
    return Outcome(
        figures={
            "ms": seconds * 1e3,
            "entries_per_s": entries / seconds,
            "MB_per_s": _size(mix, entries) / 1e6 / seconds,
            "peak_rss": max(answer["peak"] for answer in answers) / MIB,
        },
        check=_sum(answers),
    )


def _sum(answers: list[dict[str, Any]]) -> Check:
    return sum((msgspec.convert(answer["check"], Check) for answer in answers), Check())


def _load_plan(scale: Scale) -> Plan:
    cases = [
        Case(
            f"{size:,} entries",
            {
                "mix": LARGE_MIX if size >= 1_000_000 else MIX,
                "entries": size,
                "loads": 1 if scale == "quick" else LOADS[size],
                "fill_seconds_max": FILL_SECONDS_MAX[size],
            },
            x=size,
        )
        for size in SIZES_AT[scale]
    ]
    return Plan(1, cases)


LOAD = Workload(
    "load",
    "open a store and load a session whole, decoded, in a fresh process",
    (
        Figure("ms", "ms", "less"),
        Figure("entries_per_s", "/s", "more"),
        Figure("MB_per_s", "MB/s", "more"),
        Figure("peak_rss", "MiB", "less"),
    ),
    _load_plan,
    _load,
    reads_alike,
)


# ------------------------------------------------------------------ last


def last(subject: str, folder: str, mix: str, entries: int, seconds: float) -> dict[str, Any]:
    """Subject: read the last entries, through fresh handles (opening included) and through an open one."""
    expected = tail_of(mix, entries, LAST_ENTRIES)
    handle = opened(subject, folder, mix)
    handle.close()
    clock, wrong = time.perf_counter_ns, 0
    fresh_ns, open_ns = array("q"), array("q")
    end = clock() + int(seconds * 1e9)
    while not fresh_ns or clock() < end:
        begun = clock()
        handle = subject_of(subject).open(store_of(folder))
        found = handle.last(NAME, LAST_ENTRIES)
        fresh_ns.append(clock() - begun)
        wrong += found != expected
        for _ in range(OPEN_READS):
            begun = clock()
            found = handle.last(NAME, LAST_ENTRIES)
            open_ns.append(clock() - begun)
            wrong += found != expected
            if clock() > end:
                break
        handle.close()
    return {
        "fresh_us": [took / 1e3 for took in fresh_ns],
        "open_us": [took / 1e3 for took in open_ns],
        "wrong": wrong,
    }


def _last(subject: Subject, case: Case, folder: str) -> Outcome:
    arguments = dict(case.arguments)
    processes, limit = arguments.pop("processes"), arguments.pop("fill_seconds_max")
    entries, appended = arguments["entries"], arguments.pop("appended")
    mix = arguments["mix"]
    if reason := made(subject, folder, mix=mix, entries=entries, appended=appended, seconds_max=limit, only_read=True):
        return Outcome({}, note=reason)
    answers = [fresh.call(last, subject=subject.name, folder=folder, **arguments) for _ in range(processes)]
    fresh_us = [took for answer in answers for took in answer["fresh_us"]]
    open_us = [took for answer in answers for took in answer["open_us"]]
    found = Check(acknowledged=LAST_ENTRIES)
    if entries <= WHOLE_MAX:
        found = checked(subject, store_of(folder), NAME, mix, [{"count": entries, "refused": []}])
    return Outcome(
        figures={
            "fresh_p50": at(fresh_us, 0.5), "fresh_p99": at(fresh_us, 0.99),
            "open_p50": at(open_us, 0.5), "open_p99": at(open_us, 0.99),
        },
        quantiles_us=quantiles(fresh_us),
        check=_with_wrong(found, sum(answer["wrong"] for answer in answers), len(fresh_us) + len(open_us)),
    )  # fmt: skip


def _with_wrong(found: Check, wrong: int, answers: int) -> Check:
    told = f"{wrong:,} of {answers:,} answers were not the entries that were appended last"
    return found + Check(error=told) if wrong else found


def _last_case(size: int, scale: Scale, appended: int = 0) -> Case:
    return Case(
        f"of {size:,}" + (f", of which {appended:,} were appended since" if appended else ""),
        {
            "mix": MIX,
            "entries": size,
            "appended": appended,
            "processes": {"quick": 1, "usual": 2, "full": 2}[scale],
            "seconds": {"quick": 0.05, "usual": 0.2, "full": 0.4}[scale],
            "fill_seconds_max": FILL_SECONDS_MAX[size],
        },
        x=None if appended else size,
    )


def _last_plan(scale: Scale) -> Plan:
    if scale == "quick":
        return Plan(1, [_last_case(1_000, scale)])
    return Plan(1, [_last_case(1_000, scale), _last_case(1_000, scale, LAST_ENTRIES), _last_case(100_000, scale)])


LAST = Workload(
    "last",
    f"the last {LAST_ENTRIES} entries of a session, store opened for it (fresh) or open already (open)",
    tuple(Figure(name, "us", "less") for name in ("fresh_p50", "fresh_p99", "open_p50", "open_p99")),
    _last_plan,
    _last,
    reads_alike,
)


# ------------------------------------------------------------------ append, then read back


def readback(subject: str, folder: str, mix: str, entries: int, seconds: float) -> dict[str, Any]:
    """Subject: append a line and read the last entry, again and again."""
    clock, wrong = time.perf_counter_ns, 0
    pair_ns, read_ns = array("q"), array("q")
    handle = opened(subject, folder, mix)
    end = clock() + int(seconds * 1e9)
    while not pair_ns or clock() < end:
        line = line_of(mix, 0, entries + len(pair_ns))
        begun = clock()
        handle.append(NAME, line)
        middle = clock()
        found = handle.last(NAME, 1)
        read_ns.append(clock() - middle)
        pair_ns.append(clock() - begun)
        wrong += found != [orjson.loads(line)]
    handle.close()
    return {
        "pair_us": [took / 1e3 for took in pair_ns],
        "read_us": [took / 1e3 for took in read_ns],
        "wrong": wrong,
        "count": entries + len(pair_ns),
        "refused": [],
    }


def _readback(subject: Subject, case: Case, folder: str) -> Outcome:
    mix, entries = case.arguments["mix"], case.arguments["entries"]
    limit = FILL_SECONDS_MAX[entries]
    if reason := made(subject, folder, mix=mix, entries=entries, seconds_max=limit):
        return Outcome({}, note=reason)
    answer = fresh.call(readback, subject=subject.name, folder=folder, **case.arguments)
    found = checked(subject, store_of(folder), NAME, mix, [answer])
    pair_us, read_us = answer["pair_us"], answer["read_us"]
    return Outcome(
        figures={"p50": at(pair_us, 0.5), "p99": at(pair_us, 0.99), "read_p50": at(read_us, 0.5)},
        quantiles_us=quantiles(pair_us),
        check=_with_wrong(found, answer["wrong"], len(pair_us)),
    )


def _readback_plan(scale: Scale) -> Plan:
    seconds = {"quick": 0.1, "usual": 0.4, "full": 0.8}[scale]
    case = Case("after 1,000 entries", {"mix": MIX, "entries": 1_000, "seconds": seconds})
    return Plan({"quick": 1, "usual": 2, "full": 2}[scale], [case])


READBACK = Workload(
    "readback",
    "append an entry, then read the last one, by one process",
    (Figure("p50", "us", "less"), Figure("p99", "us", "less"), Figure("read_p50", "us", "less")),
    _readback_plan,
    _readback,
)
