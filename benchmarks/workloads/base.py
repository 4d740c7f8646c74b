"""What a workload is: its cases, and one round of a subject in one of them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from benchmarks import fresh
from benchmarks.checking import Check, Written, check_session
from benchmarks.results import Figure
from benchmarks.subjects import Handle, Refused, Subject

__all__ = ["MIX", "Case", "Outcome", "Plan", "Scale", "Workload", "Writing", "checked", "write_for"]

Scale = Literal["quick", "usual", "full"]
MIX = "openclaw"  # whose sizes the lines have, unless a case says otherwise


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of a workload: what it is called, its arguments, and its place on a curve."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    x: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round yields: see `results.Row`."""

    figures: dict[str, float]
    check: Check | None = None
    quantiles_us: list[float] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often to do what."""

    rounds: int
    cases: Sequence[Case]


@dataclass(frozen=True, slots=True)
class Workload:
    """A thing that users do with a transcript store.

    `plan` says what to do at a scale; `run` does one round of a subject in one case, in an empty folder that
    nobody else uses, in fresh processes. The first of `figures` is what subjects are compared by. `takes` says which
    subjects take part: None, or the reason why not. `has_floor`: so do the floors.
    """

    name: str
    label: str
    figures: Sequence[Figure]
    plan: Callable[[Scale], Plan]
    run: Callable[[Subject, Case, str], Outcome]
    takes: Callable[[Subject], str | None] = lambda subject: None  # noqa: ARG005
    has_floor: bool = False

    def why_not(self, subject: Subject) -> str | None:
        """Return why a subject takes no part, None if it does."""
        if subject.is_floor and not self.has_floor:
            return "a floor only appends"
        if subject.only not in ("", self.name):
            return f"it is there for {subject.only}"
        return subject.cannot.get(self.name) or self.takes(subject)


@dataclass(slots=True)
class Writing:
    """What one writer has written in one go, and how long each append took."""

    start_ns: int = 0
    end_ns: int = 0
    took_ns: array[int] = field(default_factory=lambda: array("q"))
    refused: list[int] = field(default_factory=list)
    first: int = 0

    def answer(self) -> dict[str, Any]:
        """Return it as JSON has it: `count` lines from 0 on were tried, `took_us` a sample each of those timed."""
        count = self.first + len(self.took_ns)
        took_us = [round(took / 1e3, 1) for took in self.took_ns]
        return {"start": self.start_ns, "end": self.end_ns, "took_us": took_us, "count": count, "refused": self.refused}


def write_for(
    handle: Handle, session: str, lines: Iterator[bytes], seconds: float, most: int, *, first: int = 0
) -> Writing:
    """Append lines until `seconds` have passed or `most` were tried; `first` is the number of the first one."""
    writing = Writing(first=first)
    append, clock, took = handle.append, time.monotonic_ns, writing.took_ns
    writing.start_ns = last = clock()
    end = last + int(seconds * 1e9)
    while last < end and len(took) < most:
        line = next(lines)
        begun = clock()
        try:
            append(session, line)
        except Refused:
            writing.refused.append(first + len(took))
        last = clock()
        took.append(last - begun)
    writing.end_ns = last
    return writing


def checked(subject: Subject, folder: str, session: str, mix: str, answers: Sequence[dict[str, Any]]) -> Check:
    """Read a session back in a fresh process; writer n is the one that gave answer n."""
    written = {str(number): Written(one["count"], one["refused"]) for number, one in enumerate(answers)}
    arguments = {"subject": subject.name, "folder": folder, "session": session, "mix": mix}
    answer = fresh.call(check_session, **arguments, written=msgspec.to_builtins(written))
    return msgspec.convert(answer, Check)
