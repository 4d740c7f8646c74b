"""Upkeep: how fast it is by itself, and what it does to those who write meanwhile.

Upkeep is what a subject does now and then so that its files stay few, small or quick: shardstore's compaction, SQLite's
checkpoint. Subjects that have none take no part.

Rule: what is compared is the same writing with no upkeep at all, with what the subject does by itself, and with a
process beside the writers that does it again and again; all of it to one session, which is checked at the end.
Strategy: `Handle.leave_upkeep` turns off what a subject does by itself. On its own, upkeep begins in the process that
appended, for closing a subject may do it already.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from benchmarks import fresh
from benchmarks.lines import bodies, line_of, lines
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Handle, Refused, Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload, checked, write_for

__all__ = ["COMPACTION", "UPKEEP", "why_none"]

ALONE = (Figure("records_per_s", "/s", "more"), Figure("content_per_s", "MB/s", "more"), Figure("took", "ms", "less"))
MEANWHILE = (
    Figure("p99", "us", "less"),
    Figure("p50", "us", "less"),
    Figure("max", "us", "less"),
    Figure("appends_per_s", "/s", "more"),
)
SESSION = "s"
WRITERS = 4
PAUSE_S = 0.1  # between two goes of the process that does the upkeep
MOST = 5_000  # lines of one writer: each is a file of its own until upkeep merges it
NONE, OWN, BESIDE = "no upkeep", "its own upkeep", f"upkeep by a process beside, every {PAUSE_S * 1000:.0f} ms"


def why_none(subject: Subject) -> str | None:
    """Return why a subject takes no part: its handles do not say what upkeep is."""
    maker = subject.open.func if isinstance(subject.open, partial) else subject.open
    return None if getattr(maker, "compact", Handle.compact) is not Handle.compact else "it has no upkeep"


def alone(subject: str, folder: str, records: int) -> dict[str, Any]:
    """Subject: append some lines, then do all the upkeep that they need."""
    handle = subject_of(subject).open(folder)
    handle.leave_upkeep()
    written = [line_of(MIX, 0, number) for number in range(records)]
    for line in written:
        handle.append(SESSION, line)
    start = time.perf_counter()
    handle.compact(SESSION)
    took_s = time.perf_counter() - start
    handle.close()
    return {"seconds": took_s, "bytes": sum(map(len, written)), "count": records, "refused": []}


def run_alone(subject: Subject, case: Case, folder: str) -> Outcome:
    """Time the upkeep of a session that nobody writes to, then check it."""
    answer = fresh.call(alone, subject=subject.name, folder=folder, **case.arguments)
    seconds = answer["seconds"]
    return Outcome(
        figures={
            "records_per_s": answer["count"] / seconds,
            "content_per_s": answer["bytes"] / seconds / 1e6,
            "took": seconds * 1e3,
        },
        check=checked(subject, folder, SESSION, MIX, [answer]),
    )


def member(member: int, subject: str, folder: str, upkeep: str, seconds: float) -> dict[str, Any]:
    """Subject: one of the writers, or, after them, who does the upkeep."""
    bodies(MIX)
    handle = subject_of(subject).open(folder)
    if upkeep != OWN:
        handle.leave_upkeep()
    if member == WRITERS:
        return _keep(handle, seconds)
    handle.append(SESSION, line_of(MIX, member, 0))
    fresh.gate()
    writing = write_for(handle, SESSION, lines(MIX, member, 1), seconds, MOST, first=1)
    handle.close()
    return writing.answer()


def _keep(handle: Handle, seconds: float) -> dict[str, Any]:
    took_ms: list[float] = []
    refused = 0
    fresh.gate()
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        try:
            handle.compact(SESSION)
        except Refused:
            refused += 1
        took_ms.append((time.monotonic() - begun) * 1e3)
        time.sleep(PAUSE_S)
    handle.close()
    return {"took_ms": took_ms, "refused": refused}


def run_meanwhile(subject: Subject, case: Case, folder: str) -> Outcome:
    """Let writers append for a while, with upkeep or without, then check the session."""
    beside = case.arguments["upkeep"] == BESIDE
    answers = fresh.crew(member, WRITERS + beside, subject=subject.name, folder=folder, **case.arguments)
    wrote, kept = answers[:WRITERS], answers[WRITERS:]
    took_us = sorted(took for answer in wrote for took in answer["took_us"])
    seconds = (max(answer["end"] for answer in wrote) - min(answer["start"] for answer in wrote)) / 1e9
    done = len(took_us) - sum(len(answer["refused"]) for answer in wrote)
    return Outcome(
        figures={
            "p99": took_us[int(len(took_us) * 0.99)],
            "p50": took_us[len(took_us) // 2],
            "max": took_us[-1],
            "appends_per_s": done / seconds,
        },
        quantiles_us=quantiles(took_us),
        check=checked(subject, folder, SESSION, MIX, wrote),
        note="; ".join(
            f"upkeep {len(one['took_ms'])} times, {max(one['took_ms']):.0f} ms at most, {one['refused']} times refused"
            for one in kept
        ),
    )


def _alone(scale: Scale) -> Plan:
    rounds, records = {"quick": (1, 500), "usual": (3, 2_000), "full": (2, 4_000)}[scale]
    return Plan(rounds, [Case(f"{records:,} records", {"records": records}, x=records)])


def _meanwhile(scale: Scale) -> Plan:
    rounds, seconds = {"quick": (1, 0.3), "usual": (1, 1.0), "full": (1, 1.5)}[scale]
    kinds = (NONE, BESIDE) if scale == "quick" else (NONE, OWN, BESIDE)
    return Plan(rounds, [Case(f"{WRITERS} writers, {kind}", {"upkeep": kind, "seconds": seconds}) for kind in kinds])


COMPACTION = Workload("compaction", "upkeep of a session that nobody writes to", ALONE, _alone, run_alone, why_none)
UPKEEP = Workload("upkeep", "appends while upkeep goes on", MEANWHILE, _meanwhile, run_meanwhile, why_none)
