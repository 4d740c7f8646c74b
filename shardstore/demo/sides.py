"""The two places to write to, behind one interface, so that one lane's code runs on both.

An attempt is one turn of one lane: its message, then a reply for each model call. Each side writes as its kind does:
a gateway appends entry by entry to its file, shardstore commits a message or a reply as one record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import shardstore
from shardstore.demo.fence import EmbeddedAttemptSessionTakeoverError, FencedAttempt, append_locked

__all__ = ["FENCE", "SESSION", "SHARDSTORE", "Attempt", "Delivery", "FenceSide", "ShardSide", "Side", "open_side"]

FENCE = "fence"
SHARDSTORE = "shardstore"
SESSION = "demo"
CONTEXT_RECORDS = 20
CONTEXT_BYTES = 64 << 10


@dataclass(frozen=True)
class Delivery:
    """What became of some lines: how many were refused, and the first refusal's words."""

    refused: int = 0
    error: str | None = None


class Attempt(Protocol):
    """One turn's right to write."""

    def write(self, lines: Sequence[bytes]) -> Delivery:
        """Write lines; a refusal is reported, not raised."""

    def context(self) -> list[bytes]:
        """Read what the model is to be told: the last lines of the session."""

    def release_for_prompt(self) -> None:
        """The model is about to think: let the others in."""

    def close(self) -> None:
        """The turn is over, well or not."""


class Side(Protocol):
    """A session, as the lanes see it."""

    def attempt(self, source: str) -> Attempt:
        """Begin a turn."""

    def note(self, source: str, lines: Sequence[bytes]) -> Delivery:
        """Write lines from outside of any turn."""

    def compact(self) -> int:
        """Compact once; return how many records that took in."""


class FenceSide:
    """A `.jsonl` with a lock file and a fingerprint."""

    def __init__(self, path: str) -> None:
        self._path = path

    def attempt(self, source: str) -> Attempt:
        """Begin a turn with the lock taken; the file knows nothing of `source`."""
        del source
        return _FenceAttempt(FencedAttempt(self._path), self._path)

    def note(self, source: str, lines: Sequence[bytes]) -> Delivery:
        """Append lines under the lock."""
        del source
        append_locked(self._path, lines)
        return Delivery()

    def compact(self) -> int:
        """Do nothing: a plain file has no such thing."""
        return 0


class _FenceAttempt:
    def __init__(self, fenced: FencedAttempt, path: str) -> None:
        self._fenced = fenced
        self._path = path

    def write(self, lines: Sequence[bytes]) -> Delivery:
        """Append entry by entry; go on after a refusal, as the gateway's later writes do, to the same end."""
        refused = 0
        first: str | None = None
        for line in lines:
            try:
                self._fenced.write(line)
            except EmbeddedAttemptSessionTakeoverError as error:
                refused += 1
                first = first or f"{type(error).__name__}: {error}"
        return Delivery(refused, first)

    def context(self) -> list[bytes]:
        with open(self._path, "rb") as file:
            file.seek(max(0, os.path.getsize(self._path) - CONTEXT_BYTES))
            return file.read().splitlines()[-CONTEXT_RECORDS:]

    def release_for_prompt(self) -> None:
        self._fenced.release_for_prompt()

    def close(self) -> None:
        self._fenced.close()


class ShardSide:
    """A session of shardstore."""

    def __init__(self, path: str) -> None:
        # The demo runs a compactor of its own, as a process: the writers' background compaction is switched off.
        self._store = shardstore.open(path, create=False, compact_shards=None)
        self._session = self._store.session(SESSION, create=False)

    def attempt(self, source: str) -> Attempt:
        """Begin a turn; there is nothing to take."""
        return _ShardAttempt(self._session, source)

    def note(self, source: str, lines: Sequence[bytes]) -> Delivery:
        """Commit the lines as one event."""
        return _commit(self._session, lines, kind="event", source=source)

    def compact(self) -> int:
        """Compact the session once."""
        return self._session.compact().records


class _ShardAttempt:
    def __init__(self, session: shardstore.Session, source: str) -> None:
        self._session = session
        self._source = source

    def write(self, lines: Sequence[bytes]) -> Delivery:
        return _commit(self._session, lines, kind="turn", source=self._source)

    def context(self) -> list[bytes]:
        """Read the last records. What is delivered here is what the reply's record names as its base."""
        return [record.payload for record in self._session.last(CONTEXT_RECORDS)]

    def release_for_prompt(self) -> None:
        """Nothing to release: no lock was taken."""

    def close(self) -> None:
        """Nothing to let go of."""


def _commit(session: shardstore.Session, lines: Sequence[bytes], *, kind: shardstore.Kind, source: str) -> Delivery:
    """Append lines as one record; all of them are in or none is."""
    try:
        session.append(b"".join(line + b"\n" for line in lines), kind=kind, source=source)
    except shardstore.ShardstoreError as error:
        return Delivery(len(lines), f"{type(error).__name__}: {error}")
    return Delivery()


def open_side(name: str, path: str) -> Side:
    """Open one of the two sides by name."""
    return FenceSide(path) if name == FENCE else ShardSide(path)
