"""Judging: everything a conditional append must know of the log before it creates anything.

Rule: only evidence is judged. `catch_up` reads on to the end as every reader does, so what it has judged is settled
for good and may be remembered; a verdict holds for the one slot right after it.
Strategy: what was compacted when judging began is asked from the segments' footers (key hashes, kinds); everything
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
KEYS_MAX = 65_536  # remembered keys; beyond that the judge starts anew from the footers


class Verdict(NamedTuple):
    """What the log 1..`end` says: where the key lies, and the last turn above `since` (0: none)."""

    end: int
    key_at: int | None
    turn_at: int


class Judge:
    """Judges one session; safe to share between threads and across fork."""

    def __init__(self, log: SessionLog, reader: Reader) -> None:
        self._log = log
        self._reader = reader
        self._lock = ForkSafeLock()
        self._born = ""  # which session all of this is about: the id may have been removed and born again
        self._floor = 0  # records up to here are asked from footers
        self._reached = 0
        self._keys: dict[str, int] = {}
        self._last_turn = 0

    def verdict(self, key: str | None, since: int | None) -> Verdict:
        """Judge the log as it is now, up to its end. Raises Deleted, NotFound, Corrupt, Unavailable."""
        with self._lock.lock:
            self._catch_up()
            key_at = self._find(key) if key is not None else None
            turn_at = self._turn_above(since) if since is not None else 0
            return Verdict(self._reached, key_at, turn_at)

    def _catch_up(self) -> None:
        manifest = self._log.look()
        if manifest.birth != self._born or len(self._keys) > KEYS_MAX:
            self._born = manifest.birth
            self._keys.clear()
            self._last_turn = 0
            self._floor = self._reached = manifest.watermark
        for block in self._reader.blocks(self._reached + 1, holes=False):
            for record in block.records():
                if record.key is not None:
                    self._keys.setdefault(record.key, record.seq)
                if counts_as_turn(record.kind, record.source):
                    self._last_turn = record.seq
            self._reached = block.last

    def _find(self, key: str) -> int | None:
        found = self._keys.get(key)
        if found is not None or self._floor == 0:
            return found
        return self._from_segments(lambda manifest: self._log.find_key(manifest, key))

    def _from_segments(self, ask: Callable[[Manifest], _T]) -> _T:
        manifest = self._log.look()
        for _ in range(LOOKS_MAX):
            try:
                return ask(manifest)
            except Vanished as gone:
                manifest = self._log.look_after_vanishing(gone.args[0])
        raise Unavailable(describe("segments kept vanishing", session=self._log.id))

    def _turn_above(self, since: int) -> int:
        if self._last_turn > since or since >= self._floor:
            return self._last_turn if self._last_turn > since else 0
        return self._from_segments(lambda manifest: self._turn_in_segments(manifest, since))

    def _turn_in_segments(self, manifest: Manifest, since: int) -> int:
        found = 0
        for segment in manifest.segments:
            seq = max(segment.first, since + 1)
            if seq > min(segment.last, self._floor):
                continue
            for entries in self._log.entries(segment, seq, min(segment.last, self._floor)):
                for entry in entries:
                    if entry[4] & TURN_FLAG:
                        found = seq
                    seq += 1
        return found
