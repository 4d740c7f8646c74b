"""What a session costs as it grows: the time of an append, and the room on the disk.

Rule: what is there already was brought in by another process; what is appended then is appended one by one, as agents
do. The disk is looked at when everybody has closed the store, before and after the upkeep that the subject has, if it
has any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from benchmarks import fresh
from benchmarks.checking import Check
from benchmarks.lines import line_of, lines
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Handle, Refused, Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload, checked, write_for
from benchmarks.workloads.filling import NAME, as_json, at, flush, made, method_of, opened, store_of, tail_of, twin_of

__all__ = ["FOOTPRINT", "GROWTH"]

UPKEEP_MEANWHILE = "shardstore"
BLOCK_BYTES = 512  # of st_blocks
GROWTH_MIX = "codex"  # whose lines are the smallest: a million of them have to fit onto a disk
SIZES_AT: dict[Scale, tuple[int, ...]] = {
    "quick": (1_000,),
    "usual": (100, 1_000, 10_000, 100_000),
    "full": (100, 10_000, 100_000, 1_000_000),
}
FILL_SECONDS_MAX = {100: 3.0, 1_000: 4.0, 10_000: 4.0, 100_000: 6.0, 1_000_000: 20.0}
ONE_OF_TWINS = 100_000  # from this size on the unsynced one shows the curve: nothing else hides it
WHOLE_MAX = 10_000  # entries of a session that is read back whole; of longer ones, those that were appended
BEFORE = 100  # entries that were there already, and are read back with them
APPENDS_MAX = 1_000


# ------------------------------------------------------------------ time


def append(subject: str, folder: str, mix: str, entries: int, seconds: float) -> dict[str, Any]:
    """Subject: append to a session that is `entries` long; the first append, by a fresh handle, is timed by itself."""
    handle = opened(subject, folder, mix)
    line = line_of(mix, 0, entries)
    begun = time.perf_counter()
    handle.append(NAME, line)
    first_us = (time.perf_counter() - begun) * 1e6
    writing = write_for(handle, NAME, lines(mix, 0, entries + 1), seconds, APPENDS_MAX, first=entries + 1)
    handle.close()
    return {"first_us": first_us, **writing.answer()}


def ending(subject: str, folder: str, mix: str, count: int, appended: int) -> dict[str, Any]:
    """Subject: check what was appended, and some of what was there."""
    handle = subject_of(subject).open(store_of(folder))
    expected = tail_of(mix, count, appended)
    same = handle.last(NAME, appended) == expected
    handle.close()
    return as_json(Check(acknowledged=appended, error="" if same else "the last entries are not those appended"))


def _growth_check(subject: Subject, folder: str, mix: str, entries: int, answer: dict[str, Any]) -> Check:
    if entries <= WHOLE_MAX or answer["refused"]:
        return checked(subject, store_of(folder), NAME, mix, [answer])
    count = answer["count"]
    arguments = {"mix": mix, "count": count, "appended": count - entries + BEFORE}
    return msgspec.convert(fresh.call(ending, subject=subject.name, folder=folder, **arguments), Check)


def _growth(subject: Subject, case: Case, folder: str) -> Outcome:
    mix, entries = case.arguments["mix"], case.arguments["entries"]
    twin = twin_of(subject)
    if entries >= ONE_OF_TWINS and subject.durable and twin is not None:
        return Outcome({}, note=f'for time, "{twin.label}" alone shows how it goes on')
    if reason := made(subject, folder, mix=mix, entries=entries, seconds_max=FILL_SECONDS_MAX[entries]):
        return Outcome({}, note=reason)
    answer = fresh.call(append, subject=subject.name, folder=folder, **case.arguments)
    took_us = answer["took_us"]
    return Outcome(
        figures={"p50": at(took_us, 0.5), "p99": at(took_us, 0.99), "first": answer["first_us"]},
        quantiles_us=quantiles(took_us),
        check=_growth_check(subject, folder, mix, entries, answer),
    )


def _growth_plan(scale: Scale) -> Plan:
    seconds = {"quick": 0.05, "usual": 0.2, "full": 0.4}[scale]
    arguments = {"mix": GROWTH_MIX, "seconds": seconds}
    return Plan(1, [Case(f"after {size:,}", {"entries": size, **arguments}, x=size) for size in SIZES_AT[scale]])


GROWTH = Workload(
    "growth",
    "append to a session that is so long already",
    (Figure("p50", "us", "less"), Figure("p99", "us", "less"), Figure("first", "us", "less")),
    _growth_plan,
    _growth,
)


# ------------------------------------------------------------------ room


def write(subject: str, folder: str, mix: str, entries: int, seconds_max: float) -> dict[str, Any]:
    """Subject: append lines one by one, for so many seconds at most."""
    os.mkdir(store_of(folder))
    handle = subject_of(subject).open(store_of(folder))
    end = time.monotonic() + seconds_max
    count, refused = 0, []
    for line in islice(lines(mix, 0), entries):
        if count and time.monotonic() > end:
            break
        try:
            handle.append(NAME, line)
        except Refused:
            refused.append(count)
        count += 1
    handle.close()
    return {"count": count, "refused": refused}


def upkeep(subject: str, folder: str) -> float:
    """Subject: do the subject's upkeep to its end; return the seconds that it took."""
    handle = opened(subject, folder, MIX)
    begun = time.perf_counter()
    handle.compact(NAME)
    took = time.perf_counter() - begun
    handle.close()
    return took


def room(folder: str) -> tuple[int, int, int]:
    """Return (bytes on the disk, bytes that the files say they have, inodes) of all that is below a folder."""
    found = {status.st_ino: status for status in _statuses(folder)}
    blocks = sum(status.st_blocks for status in found.values())
    return blocks * BLOCK_BYTES, sum(status.st_size for status in found.values()), len(found)


def _statuses(folder: str) -> Iterator[os.stat_result]:
    for path, _, files in os.walk(folder):
        yield os.lstat(path)
        for name in files:
            yield os.lstat(os.path.join(path, name))


def rooms_alike(subject: Subject) -> str | None:
    """Return why a subject's files need not be looked at: its unsynced twin's are; None if they have to be.

    shardstore's own twins are both looked at: who appends faster gets further ahead of the background compactor.
    """
    twin = twin_of(subject)
    if not subject.durable or twin is None or subject.name == UPKEEP_MEANWHILE:
        return None
    return f'it takes the room that "{twin.label}" does'


def _footprint(subject: Subject, case: Case, folder: str) -> Outcome:
    mix, entries = case.arguments["mix"], case.arguments["entries"]
    answer = fresh.call(write, subject=subject.name, folder=folder, **case.arguments)
    if answer["count"] < entries:
        return Outcome({}, note=f"{answer['count']:,} entries took {case.arguments['seconds_max']:.0f} s: given up")
    figures = _room(folder, mix, entries, "")
    if method_of(subject, "compact") is not Handle.compact:
        figures["upkeep"] = fresh.call(upkeep, subject=subject.name, folder=folder)
        figures |= _room(folder, mix, entries, "_after")
    return Outcome(figures, check=checked(subject, store_of(folder), NAME, mix, [answer]))


def _room(folder: str, mix: str, entries: int, end: str) -> dict[str, float]:
    flush(folder)  # what is not written has no blocks yet
    disk, apparent, inodes = room(store_of(folder))
    payload = _payload(mix, entries)
    return {f"disk{end}": disk / payload, f"apparent{end}": apparent / payload, f"inodes{end}": inodes}


def _payload(mix: str, entries: int) -> int:
    return sum(len(line) for line in islice(lines(mix, 0), entries))


def _footprint_plan(scale: Scale) -> Plan:
    entries = {"quick": 300, "usual": 2_000, "full": 5_000}[scale]
    seconds_max = {"quick": 5.0, "usual": 15.0, "full": 20.0}[scale]
    arguments = {"mix": MIX, "entries": entries, "seconds_max": seconds_max}
    size = _payload(MIX, entries) / 1e6
    return Plan(1, [Case(f"{entries:,} entries ({size:.1f} MB) appended one by one", arguments)])


FOOTPRINT = Workload(
    "footprint",
    "room on the disk in multiples of what was appended, before and after the subject's upkeep",
    (
        Figure("disk", "x", "less"),
        Figure("disk_after", "x", "less"),
        Figure("apparent", "x", "less"),
        Figure("apparent_after", "x", "less"),
        Figure("inodes", "files", "less"),
        Figure("inodes_after", "files", "less"),
        Figure("upkeep", "s", "less"),
    ),
    _footprint_plan,
    _footprint,
    rooms_alike,
)
