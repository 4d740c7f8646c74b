"""The processes of the demo. Each runs one lane on one side and reports over a pipe what it tried and what it was told.

A lane waits for the common start, then follows its part of the schedule by the clock. The model is a slow function
that streams the transcript's lines. A turn whose write is refused is over, as it is in a gateway: its remaining model
calls are not made. The compactor goes on until it is told to stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shardstore.demo.schedule import Lane, TimedTurn
from shardstore.demo.sides import Side, open_side
from shardstore.demo.transcript import Reply

__all__ = ["READY", "Event", "model", "run_lane"]

READY = "ready"
COMPACT_EVERY_CALLS = 0.4  # the compactor rests for this part of a model call


@dataclass(frozen=True)
class Event:
    """One thing that a lane did: wrote a message, a reply or a note, or compacted (`records` of them)."""

    side: str
    source: str
    what: str
    at_s: float
    turn: int = 0
    call: int = 0
    lines: tuple[bytes, ...] = ()
    tokens: int | None = None
    model_s: float = 0.0
    write_s: float = 0.0
    refused: int = 0
    error: str | None = None
    records: int = 0


def run_lane(side_name: str, path: str, lane: Lane, call_s: float, pipe: Connection) -> None:
    """Run one lane to its end; the process's whole life."""
    try:
        _live(side_name, path, lane, call_s, pipe)
    except (BrokenPipeError, EOFError):  # the parent is gone: nobody is there to be told
        return
    pipe.close()


def _live(side_name: str, path: str, lane: Lane, call_s: float, pipe: Connection) -> None:
    """Open the side, wait for the start, do the lane's part."""
    side = open_side(side_name, path)
    pipe.send(READY)
    start: float = pipe.recv()
    worker = _Worker(side_name, side, lane.source, start, call_s, pipe)
    for number, timed in enumerate(lane.turns):
        worker.answer(number, timed)
    for number, note in enumerate(lane.notes):
        worker.sleep_until(note.at_s)
        worker.note(number, note.line)
    if not lane.turns and not lane.notes:
        worker.compact_until_told()


class _Worker:
    """One lane at work."""

    def __init__(self, side_name: str, side: Side, source: str, start: float, call_s: float, pipe: Connection) -> None:
        self._side_name = side_name
        self._side = side
        self._source = source
        self._start = start
        self._call_s = call_s
        self._pipe = pipe

    def answer(self, number: int, timed: TimedTurn) -> None:
        """Live through one turn: its message, then model calls until one's reply is refused."""
        self.sleep_until(timed.at_s)
        attempt = self._side.attempt(self._source)
        try:
            began = time.monotonic()
            delivery = attempt.write(timed.turn.message)
            self._report("message", began, turn=number, lines=timed.turn.message, refused=delivery.refused,
                         error=delivery.error)  # fmt: skip
            for call, reply in enumerate(timed.turn.replies):
                if delivery.refused:
                    return
                told = attempt.context()
                attempt.release_for_prompt()
                called = time.monotonic()
                lines = tuple(model(told, reply, self._call_s))
                began = time.monotonic()
                delivery = attempt.write(lines)
                self._report("reply", began, turn=number, call=call, lines=lines, tokens=reply.tokens,
                             model_s=began - called, refused=delivery.refused, error=delivery.error)  # fmt: skip
        finally:
            attempt.close()

    def note(self, number: int, line: bytes) -> None:
        """Write one line from outside of any turn."""
        began = time.monotonic()
        delivery = self._side.note(self._source, [line])
        self._report("note", began, turn=number, lines=(line,), refused=delivery.refused, error=delivery.error)

    def compact_until_told(self) -> None:
        """Compact again and again until the parent says stop."""
        while not self._pipe.poll(self._call_s * COMPACT_EVERY_CALLS):
            began = time.monotonic()
            records = self._side.compact()
            if records:
                self._report("compacted", began, records=records)
        self._pipe.recv()  # a message left unread would reach the parent as a reset of the connection

    def sleep_until(self, at_s: float) -> None:
        """Wait for a moment of the schedule."""
        time.sleep(max(0.0, self._start + at_s - time.monotonic()))

    def _report(self, what: str, began: float, *, turn: int = 0, call: int = 0, lines: tuple[bytes, ...] = (),
                tokens: int | None = None, model_s: float = 0.0, refused: int = 0, error: str | None = None,
                records: int = 0) -> None:  # fmt: skip
        """Tell the parent what was done since `began`."""
        now = time.monotonic()
        self._pipe.send(
            Event(
                self._side_name, self._source, what, now - self._start, turn, call, lines, tokens, model_s,
                now - began, refused, error, records,
            )
        )  # fmt: skip


def model(told: Sequence[bytes], reply: Reply, call_s: float) -> Iterator[bytes]:
    """Stream a reply's lines over `call_s` seconds, as a provider would; what it was told does not move this one."""
    del told
    for line in reply.lines:
        time.sleep(call_s / len(reply.lines))
        yield line
