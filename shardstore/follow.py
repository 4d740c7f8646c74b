"""Following a session: records as they are committed, to a blocking or an asynchronous consumer.

Rule: a follower delivers what a reader would deliver, in seq order, each record once, and in a `sync` session only what
a power loss can't take back; being woken is only a reason to
read. So a missed or spurious wake-up costs latency, never a record, and polling alone is enough to be correct.
The only door to watchfiles.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import anyio
import anyio.to_thread
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from shardstore.errors import InvalidRequest, describe
from shardstore.forksafe import ForkSafeLock
from shardstore.log import SessionLog
from shardstore.reader import Reader
from shardstore.record import Record

__all__ = ["Follower", "Watch"]

_DEBOUNCE_MS = 20  # how long events may gather before they wake anybody
_STEP_MS = 1  # how long a single event waits for company
_SLICE_MS = 200  # how often a waiting follower looks whether it should stop


class _Stops:
    """Any of several events, in the form that watchfiles and a plain wait understand."""

    def __init__(self, *events: threading.Event | None) -> None:
        self.events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        return any(event.is_set() for event in self.events)


class Watch:
    """Waits for changes in folders by the system's notifications, or merely for time to pass where there are none."""

    def __init__(self, paths: tuple[str, ...], *, use_notifications: bool, recursive: bool = False) -> None:
        self._notify = _notifier(paths, recursive=recursive) if use_notifications and paths else None
        self._waiting = ForkSafeLock()

    @property
    def notified(self) -> bool:
        """True if notifications wake this watch."""
        return self._notify is not None

    def wait(self, timeout_ms: int, stops: _Stops | threading.Event) -> set[str]:
        """Return once something may have changed, after `timeout_ms`, or soon after one of `stops` is set.

        The answer names the paths of which the system told; what has changed may be anything.
        """
        notify = self._notify
        deadline = time.monotonic() + timeout_ms / 1000
        while not stops.is_set() and (left := deadline - time.monotonic()) > 0:
            slice_ms = max(1, min(int(left * 1000), _SLICE_MS))
            if notify is None:
                time.sleep(slice_ms / 1000)
                continue
            if not self._waiting.lock.acquire(timeout=slice_ms / 1000):
                continue  # two threads in `watch` can freeze each other: the one waits on its mutex with the GIL held
            try:
                answer = notify.watch(_DEBOUNCE_MS, _STEP_MS, slice_ms, stops)
            finally:
                self._waiting.lock.release()
            if answer == "signal":
                raise KeyboardInterrupt
            if isinstance(answer, set):
                return {path for _, path in answer}
        return set()

    def close(self) -> None:
        """Stop watching; a wait that is under way ends by itself."""
        self._notify = None


def _notifier(paths: tuple[str, ...], *, recursive: bool) -> RustNotify | None:
    """Return a started watcher; None where the system has none left to give (its limit of watches is reached)."""
    try:
        return RustNotify(list(paths), False, False, 0, recursive, False)
    except (OSError, WatchfilesRustInternalError):
        return None


class Follower:
    """An iterator, and an async iterator, over the records after a cursor; it ends only when stopped or closed.

    `cursor` is the (seq, nonce) of the last record delivered. `watching` says whether notifications wake it.
    Several threads or tasks may share one: each record goes to one of them.
    Raises what reading raises: Deleted when the session is deleted, Corrupt, Unavailable.
    """

    def __init__(
        self,
        log: SessionLog,
        reader: Reader,
        after: int | None,
        *,
        poll_ms: int,
        watch: bool,
        stop: threading.Event | None,
        delivered: Callable[[int], None],
    ) -> None:
        if poll_ms <= 0 or (after is not None and after < 0):
            raise InvalidRequest(describe("poll_ms must be positive and after a seq", poll_ms=poll_ms, after=after))
        self._log = log
        self._reader = reader
        self._poll_ms = poll_ms
        self._closed = threading.Event()
        self._stops = _Stops(self._closed, stop)
        self._fetching = ForkSafeLock()
        self._delivered = delivered
        self._ready: deque[Record] = deque()
        self._watch = Watch(log.backend.watch_paths(log.keys.folder), use_notifications=watch)
        self._next = (reader.head() if after is None else after) + 1
        self.cursor: tuple[int, str] = (self._next - 1, "")

    @property
    def watching(self) -> bool:
        """True if the system's notifications wake this follower, False if it polls."""
        return self._watch.notified

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> Record:
        while self._await_ready(self._stops):
            record = self._take()
            if record is not None:
                return record
        raise StopIteration

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Record:
        """Cancelled, it loses nothing: records are taken by the event loop's thread alone.

        It waits in a thread of its own, not in one of those that anyio has for all calls of the process.
        """
        while await self._ready_or_cancelled():
            record = self._take()
            if record is not None:
                return record
        raise StopAsyncIteration

    async def _ready_or_cancelled(self) -> bool:
        cancelled = threading.Event()
        stops = _Stops(*self._stops.events, cancelled)
        limiter = anyio.CapacityLimiter(1)
        try:
            return await anyio.to_thread.run_sync(self._await_ready, stops, abandon_on_cancel=True, limiter=limiter)
        finally:
            cancelled.set()

    def _await_ready(self, stops: _Stops) -> bool:
        """Wait for a record to be ready; False if one of `stops` was set first."""
        while not stops.is_set():
            with self._fetching.lock:
                if self._ready or self._fetch():
                    return True
            self._watch.wait(self._poll_ms, stops)
        return False

    def _fetch(self) -> bool:
        """Read one block of what is new; say whether there was any. It is durable before anybody sees it."""
        for block in self._reader.blocks(self._next):
            if self._log.look().durability == "sync":
                self._log.backend.settle(self._log.keys.shards)
            self._ready.extend(block.records())
            self._next = block.last + 1
            return True
        return False

    def _take(self) -> Record | None:
        """Hand out the next record; None if another consumer of this follower was quicker."""
        try:
            record = self._ready.popleft()
        except IndexError:
            return None
        self.cursor = (record.seq, record.nonce)
        self._delivered(record.seq)
        return record

    def close(self) -> None:
        """End the iteration, now or soon in whichever thread waits in it."""
        self._closed.set()
        self._watch.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
