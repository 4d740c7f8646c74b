"""The asynchronous face of a session: the same calls, each in a worker thread.

Rule: cancelling a call never leaves the store in doubt. A call that may write runs to its end even if nobody waits
for the answer any more. Where the cancellation does not wait for it (asyncio's own, which anyio can't shield from), the
record may be committed a moment after it was delivered: give it a `key` to find out. Following is cancelled without
losing a record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import anyio.to_thread

from shardstore.compact import CompactReport
from shardstore.follow import Follower
from shardstore.record import Receipt, Record
from shardstore.session import Session

__all__ = ["AsyncSession"]

_BATCH = 64
_T = TypeVar("_T")


class AsyncSession:
    """Wraps a `Session`; keyword arguments, guarantees and errors are those of the method of the same name."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def append(self, entries: object, **options: Any) -> Receipt:
        """Commit `entries` as one record. Cancelled, the append still runs to its end."""
        return await _run(lambda: self.session.append(entries, **options))

    async def event(self, entries: object, **options: Any) -> Receipt:
        """Commit `entries` as one event. Cancelled, the append still runs to its end."""
        return await _run(lambda: self.session.event(entries, **options))

    async def last(self, k: int, **options: Any) -> list[Record]:
        """Return the last `k` records."""
        return await _run(lambda: self.session.last(k, **options))

    async def head(self) -> int:
        """Return the last seq."""
        return await _run(self.session.head)

    async def read_jsonl(self, **options: Any) -> bytes:
        """Return the view's bytes."""
        return await _run(lambda: self.session.read_jsonl(**options))

    async def compact(self) -> CompactReport:
        """Merge the shards into segments now."""
        return await _run(self.session.compact)

    async def delete(self) -> None:
        """Delete the session."""
        await _run(self.session.delete)

    async def records(self, first: int = 1, last: int | None = None, **options: Any) -> AsyncIterator[Record]:
        """Yield records, read in batches by a worker thread."""
        walk = self.session.records(first, last, **options)
        while batch := await _run(lambda: _take(walk)):
            for record in batch:
                yield record

    def follow(self, after: int | None = None, **options: Any) -> Follower:
        """Return an async iterator over the records after seq `after`."""
        return self.session.follow(after, **options)


async def _run(call: Callable[[], _T]) -> _T:
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=False)


def _take(walk: Iterator[Record]) -> list[Record]:
    return [record for _, record in zip(range(_BATCH), walk, strict=False)]
