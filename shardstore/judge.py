"""Judging: everything a conditional append must know of the log before it creates anything.

Rule: only evidence is judged. `catch_up` reads on to the end as every reader does, so what it has judged is settled
for good and may be remembered; a verdict holds for the one slot right after it.
Strategy: what has been compacted is asked from the segments' footers (key hashes, kinds); everything
later was read record by record and is remembered as the seq of each key and the last turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from shardstore.errors import Unavailable, describe
from shardstore.forksafe import ForkSafeLock
from shardstore.log import LOOKS_MAX, SessionLog, Vanished
from shardstore.manifest import Manifest
from shardstore.reader import Reader
from shardstore.record import counts_as_turn
from shardstore.segment import TURN_FLAG

__all__ = ["Judge", "Verdict"]

_T = TypeVar("_T")


class Verdict(NamedTuple):
    """What the log 1..`end` says: where the key lies, and the last turn above `since` (0: none)."""

    end: int
    key_at: int | None
    turn_at: int


class _Known(NamedTuple):
    """What was judged: the seq of each key and the last turn, in `floor`+1..`reached` of the session `born`."""

    born: str
    floor: int
    reached: int
    keys: dict[str, int]
    last_turn: int


class Judge:
    """Judges one session; safe to share between threads and across fork."""

    def __init__(self, log: SessionLog, reader: Reader) -> None:
        self._log = log
        self._reader = reader
        self._guard = ForkSafeLock()
        self._known = _Known("", 0, 0, {}, 0)

    def verdict(self, key: str | None, since: int | None) -> Verdict:
        """Judge the log as it is now, up to its end. Raises Deleted, NotFound, Corrupt, Unavailable."""
        with self._guard.lock:
            known = self._known = self._catch_up(self._known)
        key_at = self._find(known, key) if key is not None else None
        turn_at = self._turn_above(known, since) if since is not None else 0
        return Verdict(known.reached, key_at, turn_at)

    def _catch_up(self, known: _Known) -> _Known:
        """Read on to the end. What has been compacted is asked from footers, so memory holds the tail alone."""
        manifest = self._log.look()
        watermark = manifest.watermark
        if manifest.birth != known.born:
            known = _Known(manifest.birth, watermark, watermark, {}, 0)
        elif watermark > known.floor:  # a new dict: another thread may be reading the old one
            tail = {key: seq for key, seq in known.keys.items() if seq > watermark}
            known = known._replace(floor=watermark, reached=max(known.reached, watermark), keys=tail)
        keys, reached, last_turn = known.keys, known.reached, known.last_turn
        for block in self._reader.blocks(reached + 1, holes=False):
            for record in block.records():
                if record.key is not None:
                    keys.setdefault(record.key, record.seq)
                if counts_as_turn(record.kind, record.source):
                    last_turn = record.seq
            reached = block.last
        return _Known(known.born, known.floor, reached, keys, last_turn)

    def _find(self, known: _Known, key: str) -> int | None:
        found = known.keys.get(key)
        if found is not None or known.floor == 0:
            return found if found is None or found <= known.reached else None
        return self._from_segments(lambda manifest: self._log.find_key(manifest, key))

    def _from_segments(self, ask: Callable[[Manifest], _T]) -> _T:
        manifest = self._log.look()
        for _ in range(LOOKS_MAX):
            try:
                return ask(manifest)
            except Vanished as gone:
                manifest = self._log.look_after_vanishing(gone.args[0])
        raise Unavailable(describe("segments kept vanishing", session=self._log.id))

    def _turn_above(self, known: _Known, since: int) -> int:
        if known.last_turn > since:
            return known.last_turn
        if since >= known.floor:
            return 0
        return self._from_segments(lambda manifest: self._turn_in_segments(manifest, since, known.floor))

    def _turn_in_segments(self, manifest: Manifest, since: int, upto: int) -> int:
        found = 0
        for segment in manifest.segments:
            seq, last = max(segment.first, since + 1), min(segment.last, upto)
            for entries in self._log.entries(segment, seq, last) if seq <= last else ():
                for entry in entries:
                    if entry[4] & TURN_FLAG:
                        found = seq
                    seq += 1
        return found
