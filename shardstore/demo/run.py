"""Runs the demo: lays out both sides, starts every lane as a process of its own, gathers what they report, counts.

Both sides run at the same time on the same clock, which halves the time and gives both the same weather. A process
that dies fails the demo: a result with a lane missing would be a lie.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from shardstore import Conflict, Finding, Unavailable
from shardstore import open as open_store
from shardstore.demo.count import Outcome, count_outcome
from shardstore.demo.generate import generate_transcript
from shardstore.demo.lanes import READY, Event, run_lane
from shardstore.demo.schedule import Lane, Schedule, Timing, make_schedule
from shardstore.demo.sides import FENCE, SESSION, SHARDSTORE
from shardstore.demo.transcript import read_transcript

__all__ = ["Options", "Report", "Watcher", "run_demo"]

READY_DEADLINE_S = 120.0
STOP_DEADLINE_S = 30.0
LEAD_S = 0.05
HISTORY_TURNS = 12
COMPACTOR = Lane("compactor")


@dataclass(frozen=True)
class Options:
    """What to run: a transcript's path (None: make one from `seed`), a folder to work in (None: a temporary one)."""

    transcript: str | None = None
    folder: str | None = None
    seed: int = 0
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Report:
    """What came of it, and where it lies."""

    folder: str
    fence_file: str
    store_path: str
    session: str
    history_lines: int
    fence: Outcome
    shardstore: Outcome
    findings: list[Finding]
    files: list[tuple[str, int]]


class Watcher:
    """Somebody who looks on while the demo runs; this one sees nothing."""

    def on_start(self, schedule: Schedule) -> None:
        """All is laid out; the processes start now."""

    def on_event(self, event: Event) -> None:
        """A lane did something."""

    def on_tick(self, elapsed_s: float) -> None:
        """A moment has passed."""


@dataclass
class _Member:
    """A process that runs a lane."""

    side: str
    lane: Lane
    process: SpawnProcess
    pipe: Connection


def run_demo(
    options: Options,
    *,
    watcher: Watcher | None = None,
) -> Report:
    """Run the schedule on both sides and return what each lost and kept.

    The folder stays, for looking at; it goes again if the demo does not come to its end. Raises InvalidRequest for a
    transcript in which no conversation is found, Conflict for a folder that holds something.
    """
    watcher = watcher or Watcher()
    lines = (
        generate_transcript(turns=HISTORY_TURNS + options.timing.turns + 1, seed=options.seed)
        if options.transcript is None
        else read_transcript(options.transcript)
    )
    schedule = make_schedule(lines, options.timing)
    with _folder(options.folder) as folder:
        paths = {FENCE: os.path.join(folder, f"{SESSION}.jsonl"), SHARDSTORE: os.path.join(folder, "store")}
        _lay_out(paths, schedule)
        watcher.on_start(schedule)
        events, elapsed_s = _live(paths, schedule, watcher)
        return _report(folder, paths, schedule, events, elapsed_s)


@contextmanager
def _folder(chosen: str | None) -> Iterator[str]:
    """Yield the folder to work in, empty; remove it again if the block fails."""
    if chosen is None:
        folder = tempfile.mkdtemp(prefix="shardstore-demo-")
    else:
        folder = os.path.abspath(chosen)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.listdir(folder):
            raise Conflict(f"the demo wants an empty folder dir={chosen!r}")
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise


def _lay_out(paths: dict[str, str], schedule: Schedule) -> None:
    """Put the history where both sides begin."""
    with open(paths[FENCE], "xb") as file:
        file.writelines(line + b"\n" for line in schedule.history)
    with open_store(paths[SHARDSTORE]) as store:
        store.import_session(SESSION, (line + b"\n" for line in schedule.history))


def _live(
    paths: dict[str, str],
    schedule: Schedule,
    watcher: Watcher,
) -> tuple[list[Event], dict[str, float]]:
    """Start all lanes, wait for their ends; return everything they reported, and how long each side took."""
    members = [
        _start(side, paths[side], lane, schedule.timing.call_s)
        for side in (FENCE, SHARDSTORE)
        for lane in schedule.lanes
    ]
    members.append(_start(SHARDSTORE, paths[SHARDSTORE], COMPACTOR, schedule.timing.call_s))
    try:
        for member in members:
            _await_ready(member)
        start = time.monotonic() + LEAD_S
        for member in members:
            member.pipe.send(start)
        return _gather(members, start, watcher)
    finally:
        for member in members:
            if member.process.is_alive():
                member.process.terminate()
            member.process.join()
            member.pipe.close()


def _start(side: str, path: str, lane: Lane, call_s: float) -> _Member:
    """Start one lane as a process. It never sees Ctrl-C: this process ends it, without eleven tracebacks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=run_lane, args=(side, path, lane, call_s, theirs), name=f"{side} {lane.source}", daemon=True
    )
    resource_tracker.ensure_running()  # beforehand: its own start ends with SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits the mask
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Member(side, lane, process, ours)


def _await_ready(member: _Member) -> None:
    """Wait until a lane has opened its side."""
    if not member.pipe.poll(READY_DEADLINE_S):
        raise Unavailable(f"a process of the demo did not start lane={member.process.name!r}")
    try:
        word = member.pipe.recv()
    except EOFError:
        raise _died(member) from None
    assert word == READY


def _gather(members: list[_Member], start: float, watcher: Watcher) -> tuple[list[Event], dict[str, float]]:
    """Receive until every lane has ended; the compactor is told to stop when the others have."""
    running = {member.pipe: member for member in members}
    compactor = members[-1]
    events: list[Event] = []
    elapsed_s: dict[str, float] = {}
    while running:
        for pipe in wait(list(running), timeout=0.1):
            assert isinstance(pipe, Connection)
            member = running[pipe]
            try:
                event: Event = pipe.recv()
            except EOFError:
                del running[pipe]
                _check_ended(member)
                if member is not compactor:
                    elapsed_s[member.side] = time.monotonic() - start
                if list(running.values()) == [compactor]:
                    compactor.pipe.send("stop")
                continue
            events.append(event)
            watcher.on_event(event)
        watcher.on_tick(time.monotonic() - start)
    return events, elapsed_s


def _check_ended(member: _Member) -> None:
    """A lane has closed its pipe: it must have come to its end."""
    member.process.join(STOP_DEADLINE_S)
    if member.process.exitcode != 0:
        raise _died(member)


def _died(member: _Member) -> Unavailable:
    member.process.join(STOP_DEADLINE_S)
    return Unavailable(f"a process of the demo died lane={member.process.name!r} exit_code={member.process.exitcode}")


def _report(
    folder: str, paths: dict[str, str], schedule: Schedule, events: list[Event], elapsed_s: dict[str, float]
) -> Report:
    """Read both sides and count."""
    with open(paths[FENCE], "rb") as file:
        fence_lines = _split(file.read())
    with open_store(paths[SHARDSTORE], create=False, compact_shards=None) as store:
        session = store.session(SESSION, create=False)
        shard_lines = _split(session.read_jsonl())
        findings = store.verify()
        files = session.files()
    found = {FENCE: fence_lines, SHARDSTORE: shard_lines}
    outcomes = {
        side: count_outcome(side, schedule, [event for event in events if event.side == side], lines, elapsed_s[side])
        for side, lines in found.items()
    }
    return Report(
        folder=folder,
        fence_file=paths[FENCE],
        store_path=paths[SHARDSTORE],
        session=SESSION,
        history_lines=len(schedule.history),
        fence=outcomes[FENCE],
        shardstore=outcomes[SHARDSTORE],
        findings=findings,
        files=files,
    )


def _split(view: bytes) -> list[bytes]:
    r"""Return the lines of a `.jsonl`, split at \n and nowhere else."""
    return view.removesuffix(b"\n").split(b"\n") if view else []
