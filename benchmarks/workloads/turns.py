"""Overlapping turns: agents answer in a session while co-tenants write to it.

A turn: the user's message is appended, the model is called, its reply is committed. Meanwhile others land appends in
the same session: a heartbeat, a cron job, a hook, another agent's turn. Each of them is a process.

Rule: a schedule says beforehand who begins what at which moment, how long each model call takes and how many tokens its
reply is worth; it is drawn from a seed, so that every subject meets the same one. Who is late does not move what comes
after it: it is waited for, and that is counted. A turn is kept only if its reply is there, whole, when the session is
read at the end; its tokens are thrown away if it was refused, and also if it was acknowledged and is not there.
Strategy: a model call is a sleep of some ten ms, where real ones take as many seconds or more. Subjects that give up
after a time have that time shortened likewise, and say so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import orjson

from benchmarks import fresh
from benchmarks.checking import Check, check_session
from benchmarks.lines import bodies, line_of
from benchmarks.results import Figure, quantiles
from benchmarks.subjects import Handle, Refused, Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload

__all__ = ["TURNS", "Turn", "Voice", "judged", "landings", "turns_of"]

FIGURES = (
    Figure("turns_kept", "%", "more"),
    Figure("turns_lost", "turns", "less"),
    Figure("turns_failed", "turns", "less"),
    Figure("tokens_wasted", "tokens", "less"),
    Figure("waited_p50", "ms", "less"),
    Figure("waited_p99", "ms", "less"),
    Figure("waited_max", "ms", "less"),
    Figure("appends_refused", "appends", "less"),
    Figure("appends_p99", "ms", "less"),
)
MODEL_S = 0.02, 0.08
PAUSE_S = 0.005, 0.025  # from a reply that came in time to the next message
LANDING_S = 0.1  # between two appends of a co-tenant, on average
TOKENS = 6.0, 1.0  # log-normal: a median of 400 for a reply
BETWEEN_S = MODEL_S[1] + 0.1  # from the last moment of a schedule to the next one
SCHEDULES: dict[Scale, tuple[int, float]] = {"quick": (1, 0.5), "usual": (2, 0.6), "full": (1, 0.8)}
CASES: dict[Scale, tuple[tuple[int, int, int], ...]] = {  # agents, co-tenants, appends of a burst
    "quick": ((1, 2, 1),),
    "usual": ((1, 2, 1), (4, 4, 1)),
    "full": ((1, 2, 1), (4, 4, 1), (8, 8, 1)),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message that arrives so long after the schedule's beginning, and what the model makes of it."""

    at_s: float
    model_s: float
    tokens: int


def turns_of(seed: str, member: int, seconds: float) -> Iterator[Turn]:
    """Yield an agent's turns: the next message comes when a reply that nothing delays has been read."""
    rng = random.Random(f"{seed}, agent {member}")
    at_s = rng.uniform(*PAUSE_S)
    while at_s < seconds:
        turn = Turn(at_s, rng.uniform(*MODEL_S), 1 + round(rng.lognormvariate(*TOKENS)))
        yield turn
        at_s += turn.model_s + rng.uniform(*PAUSE_S)


def landings(seed: str, member: int, seconds: float, burst: int) -> Iterator[float]:
    """Yield the moments (s) at which a co-tenant appends; 1 to `burst` times at each of them, as rare as that makes it.

    All co-tenants of a seed share the moments if `burst` is more than one.
    """
    rng = random.Random(f"{seed}, co-tenant {member if burst == 1 else 'all'}")
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(1 / (LANDING_S * (1 + burst) / 2))) < seconds:
        yield from [at_s] * rng.randint(1, burst)


@dataclass(slots=True)
class Voice:
    """One writer's lines in a session: `count` were tried; of agents, also the turns, of co-tenants how long each took.

    Both are waited for from the moment at which they were due. `why` says why the first line was refused.
    """

    handle: Handle
    session: str
    writer: int
    count: int = 0
    refused: list[int] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    landed_us: list[float] = field(default_factory=list)
    why: str = ""

    def say(self, put: Callable[[bytes], None]) -> int | None:
        """Commit the next line by `put`; return its number, None if it was refused."""
        number, self.count = self.count, self.count + 1
        try:
            put(line_of(MIX, self.writer, number))
        except Refused as error:
            self.refused.append(number)
            self.why = self.why or f"{type(error).__name__}: {error}"
            return None
        return number

    def append(self) -> int | None:
        """Append the next line."""
        return self.say(lambda line: self.handle.append(self.session, line))

    def land(self, moment: float) -> None:
        """Append the next line at a moment, as a co-tenant, and note how long after it that was done."""
        _sleep_until(moment)
        self.append()
        self.landed_us.append(_us_since(moment))

    def _ask(self) -> Any:
        """Append the user's message and begin the turn. Raises Refused."""
        if self.append() is None:
            raise Refused("the user's message")
        return self.handle.begin(self.session)

    def take(self, turn: Turn, start: float) -> None:
        """Take a turn of a schedule that began at `start`, and note what became of it."""
        _sleep_until(start + turn.at_s)
        reply, tokens, model_s = None, 0, 0.0
        try:
            begun = self._ask()
        except Refused as error:
            self.say(partial(_unsaid, error))
        else:
            called = time.monotonic()
            time.sleep(turn.model_s)
            tokens, model_s = turn.tokens, time.monotonic() - called
            reply = self.say(lambda line: self.handle.finish(self.session, begun, line))
        waited_us = _us_since(start + turn.at_s + model_s)
        self.turns.append({"reply": reply, "tokens": tokens, "waited_us": waited_us})

    def answer(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "count": self.count,
            "refused": self.refused,
            "turns": self.turns,
            "landed_us": self.landed_us,
            "why": self.why,
        }


def _unsaid(error: Refused, line: bytes) -> None:  # noqa: ARG001
    """Leave out the reply of a turn that was refused before it: a writer's lines are a user's and its by turns."""
    raise error


def _us_since(moment: float) -> float:
    return round((time.monotonic() - moment) * 1e6, 1)


def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


def member(
    member: int, subject: str, folder: str, seed: str, agents: int, schedules: int, seconds: float, burst: int
) -> list[dict[str, Any]]:
    """Subject: an agent or a co-tenant, in one schedule after the other, each in a session of its own."""
    bodies(MIX)
    handle = subject_of(subject).open(folder)
    voices = [Voice(handle, f"s{number}", member) for number in range(schedules)]
    for voice in voices:
        voice.append()
    fresh.gate()
    start = time.monotonic()
    for number, voice in enumerate(voices):
        own = f"{seed}, schedule {number}"
        if member < agents:
            for turn in turns_of(own, member, seconds):
                voice.take(turn, start)
        else:
            for at_s in landings(own, member, seconds, burst):
                voice.land(start + at_s)
        start += seconds + BETWEEN_S
    handle.close()
    return [voice.answer() for voice in voices]


def judged(subject: str, folder: str, spoken: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Subject: check each session, and name the replies that were acknowledged and are not there, as [writer, number].

    `spoken` has by session one dict a writer: `count`, `refused`, and `replies`, the numbers of those acknowledged.
    """
    checks, lost = [], {}
    for session, voices in spoken.items():
        written = {str(writer): voice for writer, voice in enumerate(voices)}
        checks.append(check_session(subject, folder, session, MIX, written))
        held = _held(subject, folder, session) if not checks[-1]["error"] else {}
        replies = [(writer, number) for writer, voice in enumerate(voices) for number in voice["replies"]]
        lost[session] = [one for one in replies if held.get("{}-{}".format(*one)) != orjson.loads(line_of(MIX, *one))]
    return {"checks": checks, "lost": lost}


def _held(subject: str, folder: str, session: str) -> dict[str, Any]:
    handle = subject_of(subject).open(folder)
    entries = handle.load(session)
    handle.close()
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def run(subject: Subject, case: Case, folder: str) -> Outcome:
    """Play a case's schedules, then look what has become of each turn."""
    arguments = dict(case.arguments)
    members, agents = arguments["agents"] + arguments.pop("cotenants"), arguments["agents"]
    if members > subject.writers_max:
        return Outcome({}, note=f"left out beyond {subject.writers_max} writers: importing it takes too long")
    answers = fresh.crew(member, members, subject=subject.name, folder=folder, **arguments)
    spoken = {
        f"s{number}": [_told(voice) for voice in voices] for number, voices in enumerate(zip(*answers, strict=True))
    }
    found = fresh.call(judged, subject=subject.name, folder=folder, spoken=spoken)
    turns = [
        turn | {"lost": [writer, turn["reply"]] in found["lost"][f"s{number}"]}
        for writer, voices in enumerate(answers)
        for number, voice in enumerate(voices)
        for turn in voice["turns"]
    ]
    landed = [voice for voices in answers[agents:] for voice in voices]
    waited_us = sorted(turn["waited_us"] for turn in turns)
    why = next((f"; {voice['why']}" for voices in answers for voice in voices if voice["why"]), "")
    return Outcome(
        figures=_figures(turns, waited_us)
        | {
            "appends_refused": sum(len(voice["refused"]) for voice in landed),
            "appends_p99": _at(sorted(took for voice in landed for took in voice["landed_us"]), 0.99),
        },
        quantiles_us=quantiles(waited_us),
        check=sum(msgspec.convert(found["checks"], list[Check]), Check()),
        note=f"turns: {len(turns)}, schedules: {arguments['schedules']}{why.replace(folder + '/', '')}",
    )


def _told(voice: dict[str, Any]) -> dict[str, Any]:
    replies = [turn["reply"] for turn in voice["turns"] if turn["reply"] is not None]
    return {"count": voice["count"], "refused": voice["refused"], "replies": replies}


def _at(ordered_us: list[float], share: float) -> float:
    """Return what a share of the samples does not exceed, in ms; 0 if there are none."""
    return ordered_us[int(len(ordered_us) * share)] / 1e3 if ordered_us else 0.0


def _figures(turns: list[dict[str, Any]], waited_us: list[float]) -> dict[str, float]:
    failed = [turn for turn in turns if turn["reply"] is None]
    lost = [turn for turn in turns if turn["lost"]]
    return {
        "turns_kept": 100 * (len(turns) - len(failed) - len(lost)) / len(turns),
        "turns_lost": len(lost),
        "turns_failed": len(failed),
        "tokens_wasted": sum(turn["tokens"] for turn in failed + lost),
        "waited_p50": _at(waited_us, 0.5),
        "waited_p99": _at(waited_us, 0.99),
        "waited_max": waited_us[-1] / 1e3,
    }


def _plan(scale: Scale) -> Plan:
    schedules, seconds = SCHEDULES[scale]
    cases = []
    for agents, cotenants, burst in CASES[scale]:
        name = f"{agents} agent{'s' * (agents > 1)}, {cotenants} co-tenants" + ", in bursts" * (burst > 1)
        arguments = {"agents": agents, "cotenants": cotenants, "burst": burst, "seed": name}
        place = agents + cotenants if burst == 1 else None
        cases.append(Case(name, arguments | {"schedules": schedules, "seconds": seconds}, place))
    return Plan(1, cases)


TURNS = Workload("turns", "turns of agents in a session that others write to", FIGURES, _plan, run)
