"""Following: how long after its acknowledgement another process has an append, decoded, by what the subject offers.

Rule: one process appends at moments drawn from a seed, another follows; both look at the machine's monotonic clock. A
latency ends when the follower holds the decoded entry; one that it had before the append was acknowledged counts as 0,
and the note says how many there were. What the follower was given is checked like what the session holds.
Strategy: the follower watches in a thread of its own, and costs what its process takes from the processor in the time
before the first append, when there is nothing to follow. The session has some lines beforehand, as one in use has.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from benchmarks import fresh
from benchmarks.checking import Written, check
from benchmarks.lines import bodies, line_of
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Refused, Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload, checked

__all__ = ["FOLLOW"]

FIGURES = (
    Figure("p50", "us", "less"),
    Figure("p99", "us", "less"),
    Figure("max", "us", "less"),
    Figure("idle_processor", "%", "less"),
)
SESSION = "s"
HISTORY, WRITER = 0, 1  # who wrote what was there before, and who writes what is followed
BEFORE = 200  # lines
PACE_S = 0.005, 0.020  # between two appends
GIVE_UP_S = 3.0  # after the last append


def fill(subject: str, folder: str, count: int) -> None:
    """Subject: make a session of some lines."""
    handle = subject_of(subject).open(folder)
    handle.fill(SESSION, [line_of(MIX, HISTORY, number) for number in range(count)])
    handle.close()


def member(member: int, subject: str, folder: str, count: int, idle_s: float) -> dict[str, Any]:
    """Subject: member 0 appends, member 1 follows."""
    bodies(MIX)
    return (_follow if member else _write)(subject, folder, count, idle_s)


def _write(subject: str, folder: str, count: int, idle_s: float) -> dict[str, Any]:
    handle = subject_of(subject).open(folder)
    rng = random.Random(1)
    acknowledged_ns, refused = [], []
    fresh.gate()
    time.sleep(idle_s)
    for number in range(count):
        time.sleep(rng.uniform(*PACE_S))
        try:
            handle.append(SESSION, line_of(MIX, WRITER, number))
        except Refused:
            refused.append(number)
        acknowledged_ns.append(time.monotonic_ns())
    handle.close()
    return {"acknowledged_ns": acknowledged_ns, "count": count, "refused": refused}


class _Follower(threading.Thread):
    """Follows until it has been given `count` entries, or is told to stop; `given` has them with their moments."""

    def __init__(self, subject: str, folder: str, count: int) -> None:
        super().__init__()
        self._subject, self._folder, self._count = subject, folder, count
        self.given: list[tuple[int, Any]] = []
        self.following = ""
        self.ready, self.stop, self.done = threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        """Open, follow, close."""
        try:
            handle = subject_of(self._subject).open(self._folder)
            self.following = handle.following
            entries = handle.follow(SESSION, self.stop)
            self.ready.set()
            for entry in entries:
                self.given.append((time.monotonic_ns(), entry))
                if len(self.given) == self._count:
                    self.done.set()
            handle.close()
        finally:
            self.ready.set()
            self.done.set()


def _follow(subject: str, folder: str, count: int, idle_s: float) -> dict[str, Any]:
    follower = _Follower(subject, folder, count)
    follower.start()
    follower.ready.wait()
    fresh.gate()
    used_s = time.process_time()
    time.sleep(idle_s)
    used_s = time.process_time() - used_s
    follower.done.wait(count * sum(PACE_S) + GIVE_UP_S)
    follower.stop.set()
    follower.join()
    return {
        "given": follower.given,
        "idle_processor": 100 * used_s / idle_s,
        "following": follower.following,
    }


def _latencies_us(wrote: dict[str, Any], given: list[tuple[int, Any]]) -> list[float]:
    """Return how long after its acknowledgement each line was given for the first time; negative: before."""
    first_ns = {entry["id"]: at_ns for at_ns, entry in reversed(given) if isinstance(entry, dict) and "id" in entry}
    return [
        (first_ns[key] - at_ns) / 1e3
        for number, at_ns in enumerate(wrote["acknowledged_ns"])
        if number not in wrote["refused"] and (key := f"{WRITER}-{number}") in first_ns
    ]


def run(subject: Subject, case: Case, folder: str) -> Outcome:
    """Let one process append and another follow, then check what the follower was given and what the session holds."""
    fresh.call(fill, subject=subject.name, folder=folder, count=BEFORE)
    wrote, followed = fresh.crew(member, 2, subject=subject.name, folder=folder, **case.arguments)
    written = Written(wrote["count"], wrote["refused"])
    given = check([entry for _, entry in followed["given"]], MIX, {WRITER: written})
    raw_us = _latencies_us(wrote, followed["given"])
    latencies_us = sorted(max(0.0, one) for one in raw_us)
    if not latencies_us:
        raise RuntimeError(f"the follower was given nothing of what was appended: {given}")
    return Outcome(
        figures={
            "p50": latencies_us[len(latencies_us) // 2],
            "p99": latencies_us[int(len(latencies_us) * 0.99)],
            "max": latencies_us[-1],
            "idle_processor": followed["idle_processor"],
        },
        quantiles_us=quantiles(latencies_us),
        check=given + checked(subject, folder, SESSION, MIX, [{"count": BEFORE, "refused": []}, wrote]),
        note=f"{followed['following']}; {sum(one < 0 for one in raw_us)} of {len(raw_us)} before the acknowledgement",
    )


def _plan(scale: Scale) -> Plan:
    count, idle_s = {"quick": (30, 0.2), "usual": (60, 0.3), "full": (60, 0.5)}[scale]
    case = Case("appends 5-20 ms apart", {"count": count, "idle_s": idle_s})
    return Plan(1, [case])


FOLLOW = Workload("follow", "from an append's acknowledgement until a follower has it", FIGURES, _plan, run)
