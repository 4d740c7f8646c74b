"""Group commit: many threads that made a name in one folder share one flush of it.

Rule: a flush covers only the links that returned before it started, and its failure is the failure of all of them.
Strategy: each caller takes a ticket and queues for the flush; whoever gets through first flushes for every ticket
drawn so far, and the others find theirs covered. A lone caller pays two uncontended locks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from shardstore.forksafe import ForkSafeLock

__all__ = ["GroupSync"]


class GroupSync:
    """Shares calls of `flush` between threads."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._queue = ForkSafeLock()
        self._tickets = count(1)
        self._drawn = 0  # a ticket that was drawn, not always the latest: a flush may cover more than it claims
        self._covered = 0
        self._failure: tuple[int | None, str] | None = None

    def sync(self) -> None:
        """Return once a flush that started after this call has ended; raise its OSError if it failed.

        After a failure nothing is flushed again and everybody who comes fails too: the kernel reports a lost write
        once, and a second flush of the same descriptor would succeed without having saved it.
        """
        ticket = self._drawn = next(self._tickets)
        with self._queue.lock:
            if self._covered >= ticket:
                return
            if self._failure is not None:
                raise OSError(*self._failure)
            upto = max(self._drawn, ticket)
            try:
                self._flush()
            except OSError as error:
                self._failure = (error.errno, str(error.strerror))
                raise
            if self._failure is not None:  # a signal handler flushed in between, and took the kernel's one report
                raise OSError(*self._failure)
            self._covered = max(self._covered, upto)
