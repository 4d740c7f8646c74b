"""shardstore, through its public API, durable and unsynced."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import shardstore
from benchmarks.subjects.base import Handle, Refused, Subject
from shardstore.backends.filesystems import commits_in_order

__all__ = ["SUBJECTS"]


class Shardstore(Handle):
    """A store with its defaults: the background compactor is on."""

    following = "woken by Session.follow"

    def __init__(self, folder: str, **options: Any) -> None:
        self._folder, self._options = folder, options
        self._store = shardstore.open(folder, **options)
        self._held: dict[str, shardstore.Session] = {}

    def session(self, name: str) -> shardstore.Session:
        """Return the session's handle, the same for every call."""
        if name not in self._held:
            self._held[name] = self._store.session(name)
        return self._held[name]

    def append(self, session: str, line: bytes) -> None:
        """Append one record."""
        try:
            self.session(session).append(line)
        except shardstore.Unavailable as error:
            raise Refused(str(error)) from error

    def load(self, session: str) -> list[Any]:
        """Return all entries, checksums verified."""
        return list(self._store.session(session).entries())

    def last(self, session: str, count: int) -> list[Any]:
        """Return the entries of the last records."""
        opened = self.session(session)
        return list(opened.entries(max(1, opened.head() - count + 1)))

    def follow(self, session: str, stop: threading.Event) -> Iterator[Any]:
        """Yield the entries of what `Session.follow` delivers."""
        follower = self._store.session(session).follow(stop=stop)
        return (entry for record in follower for entry in record.entries())

    def sessions(self) -> list[str]:
        """Return all ids."""
        return self._store.ids()

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Import, as a migration does: segments from the beginning."""
        self._store.import_session(session, lines)

    def fill_many(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Import in batches that one flush makes durable, as `shardstore migrate` does."""
        for imported in self._store.import_sessions(sessions):
            if imported.error is not None:
                raise imported.error

    def compact(self, session: str) -> None:
        """Merge all shards into segments."""
        self.session(session).compact()

    def leave_upkeep(self) -> None:
        """Open the store again, without the background compactor."""
        self.close()
        self._store = shardstore.open(self._folder, **self._options, compact_shards=None)
        self._held.clear()

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def _commits_in_order(folder: str) -> str | None:
    return None if commits_in_order(folder) else "one flush is enough only on ext4 with a journal, and XFS"


_READS_ALIKE = (
    "follow",
    "compaction",
    "upkeep",
    "load",
    "last",
    "readback",
    "open-list",
    "import",
    "footprint",
    "growth",
)
SUBJECTS = (
    Subject("shardstore", "shardstore, durable", True, partial(Shardstore, durability="sync")),
    Subject(
        "shardstore-one-flush",
        "shardstore, sync_file_range",
        True,
        partial(Shardstore, durability="sync", sync_method="sync_file_range"),
        cannot=dict.fromkeys(_READS_ALIKE, "nearly as shardstore, durable"),
        place=_commits_in_order,
    ),
    Subject("shardstore-unsynced", "shardstore, unsynced", False, partial(Shardstore, durability="none")),
)
