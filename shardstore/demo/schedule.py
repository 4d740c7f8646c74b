"""Who does what when. Made once, then lived through on both sides by the same lanes.

The main lane answers a message after another. Meanwhile, each in the middle of some model call: a delivery mirror, a
heartbeat, a cron job, a hook, and a second message on another channel that wants an answer of its own. The last turn
is left in peace. What a gateway meets in a day is pressed into seconds; the model calls are shortened alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, starmap

from shardstore.demo.generate import generate_transcript
from shardstore.demo.transcript import Reply, Script, Turn, cut, output_tokens

__all__ = ["Lane", "Note", "Schedule", "TimedTurn", "Timing", "make_schedule"]

SECOND_MESSAGE = (3, 0.4)
NOTES: tuple[tuple[str, tuple[tuple[int, float], ...]], ...] = (
    ("mirror", ((0, 0.5),)),
    ("heartbeat", ((1, 0.5), (4, 1.5))),
    ("cron:daily-report", ((2, 1.5),)),
    ("hook:post-tool", ((4, 0.5),)),
)  # who, and when: in which turn, how many model calls into it


@dataclass(frozen=True)
class Timing:
    """How long the demo's day is: `turns` turns of at most `calls` model calls of `call_s` seconds."""

    turns: int = 6
    calls: int = 2
    call_s: float = 1.5
    gap_s: float = 0.2

    def turn_s(self, turn: Turn) -> float:
        """Return the time from a turn's begin to the next one's."""
        return len(turn.replies) * self.call_s + self.gap_s


@dataclass(frozen=True)
class TimedTurn:
    """A turn, and when its message comes in."""

    at_s: float
    turn: Turn


@dataclass(frozen=True)
class Note:
    """A line of somebody who is not in the conversation, and when it is written."""

    at_s: float
    line: bytes


@dataclass(frozen=True)
class Lane:
    """What one process does: answer turns with a slow model, or write notes, or (with neither) compact."""

    source: str
    turns: tuple[TimedTurn, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Everything that will happen, and what lay there before."""

    history: tuple[bytes, ...]
    lanes: tuple[Lane, ...]
    timing: Timing

    @property
    def end_s(self) -> float:
        """Return when the last model call will have ended, if all goes well."""
        return max(timed.at_s + self.timing.turn_s(timed.turn) for lane in self.lanes for timed in lane.turns)


def make_schedule(lines: Sequence[bytes], timing: Timing) -> Schedule:
    """Lay a transcript's last turns out in time, with everything that lands meanwhile."""
    script = cut(lines, turns=timing.turns + 1, calls=timing.calls)
    main, second = _share(script)
    last = len(main) - 1
    begins = list(accumulate((timing.turn_s(turn) for turn in main), initial=0.0))

    def moment(turn: int, calls_in: float) -> float:
        turn = min(turn, last)
        calls_in = min(calls_in, len(main[turn].replies) - 0.5)  # somewhere in a model call, also of a short turn
        return begins[turn] + calls_in * timing.call_s

    main_lane = Lane("main", turns=tuple(starmap(TimedTurn, zip(begins, main, strict=False))))
    channel = Lane("channel:second", turns=(TimedTurn(moment(*SECOND_MESSAGE), second),))
    notes = [
        Lane(source, notes=tuple(Note(moment(*when), _note_line(source, place)) for place, when in enumerate(times)))
        for source, times in NOTES
    ]
    return Schedule(history=script.history, lanes=(main_lane, channel, *notes), timing=timing)


def _share(script: Script) -> tuple[tuple[Turn, ...], Turn]:
    """Give the last turn, as a single model call, to the second message; make one up if there is but one."""
    turns = script.turns
    if len(turns) == 1:
        turns = (*turns, *cut(generate_transcript(turns=1, seed=1), turns=1, calls=1).turns)
    second = turns[-1]
    lines = tuple(line for reply in second.replies for line in reply.lines)
    return turns[:-1], Turn(message=second.message, replies=(Reply(lines, output_tokens(lines)),))


def _note_line(source: str, number: int) -> bytes:
    """Return the line that a co-tenant writes: a mirror repeats what was delivered, the others leave a mark."""
    entry: dict[str, object] = {"type": "custom_message", "id": f"{source}-{number}", "customType": source}
    if source == "mirror":
        content = [{"type": "text", "text": "(delivered to the chat)"}]
        message = {"role": "assistant", "content": content, "model": "delivery-mirror"}
        entry = {"type": "message", "id": f"{source}-{number}", "message": message}
    else:
        entry["content"] = f"{source} was here"
    return json.dumps(entry, separators=(",", ":")).encode("ascii")
