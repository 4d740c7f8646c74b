"""diskcache: a Deque for each session, each in a folder of its own.

Rule: a Deque is its documentation's sequence that outlives a process (grantjenks.com/docs/diskcache/tutorial.html). It
is made of a Cache so that settings can be given: nothing is evicted or culled, whatever its size. `sqlite_synchronous`
is 1 (NORMAL) by default, which a power loss may rob of the last entries; 2 (FULL) makes the database below durable.
Entries of more than 32 KiB would by default become files, which diskcache never flushes; they stay in the database.
Strategy: `append` retries until it has the write lock, so nothing is ever refused. What is imported goes in within one
`transact`, as the documentation advises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS"]

UNLIMITED_BYTES = 1 << 60
FILE_BYTES_MIN = 1 << 30
TIMEOUT_S = 60
NORMAL, FULL = 1, 2


class DiskCache(Handle):
    """One Deque a session."""

    def __init__(self, folder: str, *, synchronous: int) -> None:
        import diskcache

        self._folder = folder
        self._diskcache: Any = diskcache
        self._settings = {
            "eviction_policy": "none", "cull_limit": 0, "size_limit": UNLIMITED_BYTES, "timeout": TIMEOUT_S,
            "disk_min_file_size": FILE_BYTES_MIN, "sqlite_synchronous": synchronous,
        }  # fmt: skip
        self._deques: dict[str, Any] = {}

    def _open(self, session: str) -> Any:
        cache = self._diskcache.Cache(os.path.join(self._folder, session), **self._settings)
        return self._diskcache.Deque.fromcache(cache)

    def _deque(self, session: str) -> Any:
        if session not in self._deques:
            self._deques[session] = self._open(session)
        return self._deques[session]

    def append(self, session: str, line: bytes) -> None:
        """Append to the deque."""
        self._deque(session).append(line)

    def load(self, session: str) -> list[Any]:
        """Iterate over the deque."""
        return decoded(self._deque(session))

    def since(self, session: str, seen: int) -> list[Any]:
        """Iterate backwards over what is new; in a transaction, lest an append comes between length and iteration."""
        deque = self._deque(session)
        if len(deque) == seen:
            return []
        with deque.transact():
            return self.last(session, len(deque) - seen)

    def last(self, session: str, count: int) -> list[Any]:
        """Iterate backwards."""
        return decoded(islice(reversed(self._deque(session)), count))[::-1]

    def sessions(self) -> list[str]:
        """List the folder."""
        return os.listdir(self._folder)

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Extend the deque in one transaction, and close it: thousands of them don't stay open."""
        deque = self._open(session)
        with deque.transact():
            deque.extend(lines)
        deque.cache.close()

    def close(self) -> None:
        """Close all deques."""
        while self._deques:
            self._deques.popitem()[1].cache.close()


_MODULES = ("diskcache",)
SUBJECTS = (
    Subject("diskcache", "diskcache Deque, synchronous=FULL", True, partial(DiskCache, synchronous=FULL), _MODULES),
    Subject(
        "diskcache-unsynced",
        "diskcache Deque, synchronous=NORMAL",
        False,
        partial(DiskCache, synchronous=NORMAL),
        _MODULES,
    ),
)
