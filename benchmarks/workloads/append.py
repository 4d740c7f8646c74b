"""Appending: one process alone, and several at once, to one session or to one each.

Rule: every writer has appended once before the clock starts, and all start at one moment. What is timed is a fixed
time, in which each writes as much as it can; throughput is the sum of what each got acknowledged over the time that its
appends took: making the next line counts for nobody.
"""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks import fresh
from benchmarks.checking import Check, check_sessions
from benchmarks.lines import bodies, line_of, lines
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.subjects.floor import Floor
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload, checked, write_for

__all__ = ["APPEND", "SPREAD", "WRITERS"]

FIGURES = (
    Figure("appends_per_s", "/s", "more"),
    Figure("p50", "us", "less"),
    Figure("p99", "us", "less"),
    Figure("max", "us", "less"),
)
SECONDS: dict[Scale, float] = {"quick": 0.2, "usual": 0.3, "full": 0.4}
WRITERS_AT: dict[Scale, tuple[int, ...]] = {"quick": (4,), "usual": (1, 4, 16), "full": (1, 2, 4, 8, 16)}
MOST = 50_000  # lines of one writer


def member(member: int, subject: str, folder: str, mix: str, spread: bool, seconds: float) -> dict[str, Any]:
    """Subject: one of several writers."""
    session = f"s{member}" if spread else "s"
    bodies(mix)
    handle = subject_of(subject).open(folder)
    handle.append(session, line_of(mix, member, 0))
    bare = handle.prepared() if isinstance(handle, Floor) else None
    fresh.gate()
    if bare is not None:
        answer = bare(mix, member, seconds, MOST)
    else:
        answer = write_for(handle, session, lines(mix, member, 1), seconds, MOST, first=1).answer()
    handle.close()
    return answer | {"note": handle.note if isinstance(handle, Floor) else ""}


def run(subject: Subject, case: Case, folder: str) -> Outcome:
    """Let writers append for a while, then check all sessions."""
    arguments: dict[str, Any] = {"mix": MIX, "spread": False} | case.arguments
    writers = arguments.pop("writers")
    if writers > subject.writers_max:
        return Outcome({}, note=f"left out beyond {subject.writers_max} writers: importing it takes too long")
    answers = fresh.crew(member, writers, subject=subject.name, folder=folder, **arguments)
    took_us = [took for answer in answers for took in answer["took_us"]]
    spread = quantiles(took_us)
    return Outcome(
        figures={"appends_per_s": sum(map(_rate, answers)), "p50": _at(took_us, 0.5), "p99": _at(took_us, 0.99),
                 "max": max(took_us)},
        quantiles_us=spread,
        check=_checked(subject, folder, arguments, answers),
        note=answers[0]["note"],
    )  # fmt: skip


def _rate(answer: dict[str, Any]) -> float:
    """Return how many lines a second one writer got acknowledged while it was in `append`."""
    done = len(answer["took_us"]) - len(answer["refused"])
    return float(done / (sum(answer["took_us"]) / 1e6))


def _at(samples: list[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _checked(subject: Subject, folder: str, arguments: dict[str, Any], answers: list[dict[str, Any]]) -> Check:
    if not arguments["spread"]:
        return checked(subject, folder, "s", arguments["mix"], answers)
    written = {
        f"s{number}": {str(number): {"count": one["count"], "refused": one["refused"]}}
        for number, one in enumerate(answers)
    }
    found = fresh.call(check_sessions, subject=subject.name, folder=folder, mix=arguments["mix"], written=written)
    return msgspec.convert(found, Check)


def _single(scale: Scale) -> Plan:
    mixes = {"quick": [MIX], "usual": [MIX], "full": [MIX, "claude-code"]}[scale]
    cases = [Case(f"{mix} sizes", {"writers": 1, "mix": mix, "seconds": SECONDS[scale]}) for mix in mixes]
    return Plan({"quick": 1, "usual": 3, "full": 2}[scale], cases)


def _several(scale: Scale, *, spread: bool) -> Plan:
    numbers = [number for number in WRITERS_AT["usual" if spread and scale == "full" else scale]
               if number > 1 or not spread]  # fmt: skip
    arguments = {"spread": spread, "seconds": SECONDS[scale]}
    cases = [Case(f"{number} writers", {"writers": number, **arguments}, x=number) for number in numbers]
    return Plan(1, cases)


APPEND = Workload("append", "one process appends to one session", FIGURES, _single, run, has_floor=True)
WRITERS = Workload(
    "writers", "several processes append to one session", FIGURES, lambda scale: _several(scale, spread=False), run
)
SPREAD = Workload(
    "spread",
    "several processes append, each to a session of its own",
    FIGURES,
    lambda scale: _several(scale, spread=True),
    run,
)
