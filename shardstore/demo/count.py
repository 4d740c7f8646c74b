"""What each side lost and kept, counted from the bytes that lie there when everybody is done.

The lanes report what they tried; whether it was kept is decided here by looking for its lines. A line that occurs
twice must be found twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shardstore.demo.lanes import Event
from shardstore.demo.schedule import Schedule

__all__ = ["Outcome", "Tenant", "count_outcome"]


@dataclass(frozen=True)
class Tenant:
    """What one co-tenant wrote, and what of it is there."""

    source: str
    written: int
    kept: int


@dataclass(frozen=True)
class Outcome:
    """One side's result. `finished` replies were paid for; tokens are None where the transcript names none."""

    side: str
    turns: int
    turns_kept: int
    replies: int
    replies_finished: int
    replies_kept: int
    tokens_finished: int | None
    tokens_lost: int | None
    model_s: float
    model_lost_s: float
    tenants: list[Tenant]
    refused_writes: int
    errors: dict[str, int]
    acknowledged_missing: int
    history_intact: bool
    slowest_write_ms: float
    elapsed_s: float
    compactions: int

    @property
    def turns_lost(self) -> int:
        """Return how many turns are not there whole."""
        return self.turns - self.turns_kept

    @property
    def replies_lost(self) -> int:
        """Return how many finished replies are not there whole."""
        return self.replies_finished - self.replies_kept


def count_outcome(
    side: str, schedule: Schedule, events: Sequence[Event], found: Sequence[bytes], elapsed_s: float
) -> Outcome:
    """Compare what was scheduled and tried with the lines that were found, in their order."""
    history = list(schedule.history)
    intact = list(found[: len(history)]) == history
    left = Counter(found[len(history) :] if intact else found)
    written = [event for event in events if event.lines]
    kept = [event for event in written if _take(left, event.lines)]
    replies = [event for event in written if event.what == "reply"]
    kept_replies = [event for event in kept if event.what == "reply"]
    lost = [event for event in replies if event not in kept_replies]
    turns, turns_kept = _count_turns(schedule, kept)
    errors = Counter(event.error for event in written if event.error is not None)
    return Outcome(
        side=side,
        turns=turns,
        turns_kept=turns_kept,
        replies=sum(len(timed.turn.replies) for lane in schedule.lanes for timed in lane.turns),
        replies_finished=len(replies),
        replies_kept=len(kept_replies),
        tokens_finished=_tokens(replies, replies),
        tokens_lost=_tokens(replies, lost),
        model_s=sum(event.model_s for event in replies),
        model_lost_s=sum(event.model_s for event in lost),
        tenants=_count_tenants(written, kept),
        refused_writes=sum(event.refused for event in written),
        errors=dict(errors),
        acknowledged_missing=sum(1 for event in written if not event.refused and event not in kept),
        history_intact=intact,
        slowest_write_ms=max((event.write_s for event in written), default=0.0) * 1000,
        elapsed_s=elapsed_s,
        compactions=sum(1 for event in events if event.what == "compacted"),
    )


def _take(left: Counter[bytes], lines: Sequence[bytes]) -> bool:
    """Take these lines out of `left`; all of them must be there."""
    wanted = Counter(lines)
    if any(left[line] < count for line, count in wanted.items()):
        return False
    left.subtract(wanted)
    return True


def _count_turns(schedule: Schedule, kept: Sequence[Event]) -> tuple[int, int]:
    """Count the scheduled turns, and those whose message and every reply were kept."""
    parts = Counter((event.source, event.turn) for event in kept if event.what in ("message", "reply"))
    needed = {
        (lane.source, number): 1 + len(timed.turn.replies)
        for lane in schedule.lanes
        for number, timed in enumerate(lane.turns)
    }
    return len(needed), sum(1 for turn, count in needed.items() if parts[turn] == count)


def _count_tenants(written: Sequence[Event], kept: Sequence[Event]) -> list[Tenant]:
    """Count each co-tenant's notes."""
    tried = Counter(event.source for event in written if event.what == "note")
    there = Counter(event.source for event in kept if event.what == "note")
    return [Tenant(source, count, there[source]) for source, count in sorted(tried.items())]


def _tokens(replies: Sequence[Event], some: Sequence[Event]) -> int | None:
    """Add up the tokens of some of the replies; None where no reply says what it cost."""
    if all(event.tokens is None for event in replies):
        return None
    return sum(event.tokens or 0 for event in some)
