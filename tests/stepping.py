"""A backend whose every verb can be stopped before or after it, and a scheduler that steps several actors.

Rule: the engine under test is the real one on a real backend; only the moments between its backend calls are chosen.
`Stepped` gives one actor (a writer, a reader, a compactor) its own view of a shared backend. A test either arms named
stops on it (`stop`), pauses it before its n-th call (`stop_at`), or leaves the order of all calls of all actors to a
`Schedule`, which lets exactly one actor run at a time and picks the next one by a seeded random choice. A `World` is
one session with any number of such actors, and the judge of what they left.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from helpers import DEADLINE_S, Task, nonces, raw_session

from shardstore import Receipt, Session
from shardstore.backends.base import Backend, Draft, Seen
from shardstore.backends.local import LocalBackend, make_root
from shardstore.backends.memory import MemoryBackend
from shardstore.layout import parse_shard_name

SHARDS = "sessions/s/shards"

Point = Callable[[str, str, str], None]  # (moment, verb, key)


class Stop:
    """One moment at which one call halts, once, until it is released."""

    def __init__(self, matches: Callable[[str, str, str], bool]) -> None:
        self.matches = matches
        self.armed = True
        self._reached = threading.Event()
        self._released = threading.Event()

    def halt(self) -> None:
        """Called by the actor: wait here."""
        self._reached.set()
        assert self._released.wait(DEADLINE_S), "nobody released a stop"

    def wait(self, actor: Task | None = None) -> bool:
        """Wait until the actor halts here; False if `actor` ended without coming by."""
        for _ in range(int(DEADLINE_S * 100)):
            if self._reached.wait(0.01):
                return True
            if actor is not None and not actor.is_alive():
                return self._reached.is_set()
        raise AssertionError("nobody reached a stop")

    def release(self) -> None:
        """Let the actor go on."""
        self._released.set()


class Stepped:
    """One actor's view of `inner`: all verbs, with a point before and after each.

    `free` takes the right to compact for granted, as on an object store, where compare-and-swap alone decides.
    """

    def __init__(self, inner: Backend, *, free: bool = False) -> None:
        self.inner = inner
        self.calls = 0
        self.trace: list[str] = []
        self.point: Point | None = None
        self._free = free
        self._stops: list[Stop] = []
        self._lock = threading.Lock()

    # -------------------------------------------------------------- stops

    def stop(self, moment: str, verb: str, part: str = "") -> Stop:
        """Stop the next call of `verb` whose key contains `part`, `before` or `after` it is made."""
        return self._arm(lambda at, name, key: at == moment and name == verb and part in key)

    def stop_at(self, number: int) -> Stop:
        """Stop before the backend call with this number (1 is the next one)."""
        last = self.calls + number
        return self._arm(lambda at, _verb, _key: at == "before" and self.calls == last)

    def _arm(self, matches: Callable[[str, str, str], bool]) -> Stop:
        stop = Stop(matches)
        self._stops.append(stop)
        return stop

    def _at(self, moment: str, verb: str, key: str) -> None:
        halting = None
        with self._lock:
            if moment == "before":
                self.calls += 1
                self.trace.append(f"{verb} {key}")
            for stop in self._stops:
                if stop.armed and stop.matches(moment, verb, key):
                    stop.armed = False
                    halting = stop
                    break
        if halting is not None:
            halting.halt()
        if self.point is not None:
            self.point(moment, verb, key)

    def _call(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
        self._at("before", verb, key)
        answer = call()
        self._at("after", verb, key)
        return answer

    # -------------------------------------------------------------- verbs

    def create(self, key: str, draft: Draft, *, sync: bool) -> bool:
        """See Backend."""
        return self._call("create", key, lambda: self.inner.create(key, draft, sync=sync))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See Backend."""
        return self._call("read", key, lambda: self.inner.read(key, start=start, length=length))

    def look(self, key: str, seen: Seen | None) -> Seen | None:
        """See Backend."""
        return self._call("look", key, lambda: self.inner.look(key, seen))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See Backend."""
        return self._call("list", prefix, lambda: self.inner.list(prefix, after))

    def delete(self, key: str) -> None:
        """See Backend."""
        self._call("delete", key, lambda: self.inner.delete(key))

    def replace(self, key: str, data: bytes, expected: Seen) -> bool:
        """See Backend."""
        return self._call("replace", key, lambda: self.inner.replace(key, data, expected))

    @contextmanager
    def exclusive(self, prefix: str, *, wait_s: float = 0.0) -> Iterator[bool]:
        """See Backend."""
        if self._free:
            yield True
            return
        with self.inner.exclusive(prefix, wait_s=wait_s) as held:
            yield held

    def __getattr__(self, name: str) -> Any:
        """Services that no test stops."""
        return getattr(self.inner, name)


class World:
    """One session on one backend, and actors that each see it through a view of their own."""

    def __init__(self, view: Callable[[], Backend]) -> None:
        self._view = view
        self.session = raw_session(view())
        self._number = count()
        self.acknowledged: dict[int, str] = {}

    def actor(self, *, free: bool = False) -> tuple[Stepped, Session]:
        """Return a fresh actor's view and session."""
        stepped = Stepped(self._view(), free=free)
        return stepped, raw_session(stepped)

    def append(self, records: int = 1, **options: Any) -> None:
        """Append through the session of the world itself."""
        for _ in range(records):
            self.note(self.session.append({"by": "others", "n": next(self._number)}, **options))

    def note(self, receipt: Receipt) -> Receipt:
        """Keep an acknowledgement; every seq is acknowledged once."""
        assert self.acknowledged.setdefault(receipt.seq, receipt.nonce) == receipt.nonce
        return receipt

    def shards(self) -> list[int]:
        """Return the seqs that have a shard."""
        return sorted(seq for name in self._view().list(SHARDS) if (seq := parse_shard_name(name)) is not None)

    def check(self, *, total: int | None = None) -> list[str]:
        """Every acknowledged record lies at its seq, once, and every other way of reading agrees."""
        found = nonces(self.session)
        assert len(set(found)) == len(found)
        assert {seq: found[seq - 1] for seq in self.acknowledged} == self.acknowledged
        assert total is None or len(found) == total
        fresh = raw_session(self._view())
        assert nonces(fresh) == found
        assert [record.nonce for record in fresh.records(reverse=True)] == found[::-1]
        assert fresh.head() == len(found)
        self.session.compact()
        assert nonces(fresh) == nonces(self.session) == found
        assert self.shards() == []
        return found


def make_world(kind: str, store_path: str) -> World:
    """Return a fresh world on a memory backend, or on a local one at `store_path`."""
    if kind == "memory":
        shared = MemoryBackend()
        return World(lambda: shared)
    make_root(store_path)
    return World(lambda: LocalBackend(store_path))


class Schedule:
    """Runs actors in threads, exactly one at a time; who makes the next backend call is a seeded choice."""

    def __init__(self, seed: int, *, stickiness: float = 0.5) -> None:
        self._random = random.Random(seed)
        self._stickiness = stickiness
        self._gates: dict[int, threading.Semaphore] = {}
        self._main = threading.Semaphore(0)
        self._tasks: dict[int, Task] = {}
        self._ended: set[int] = set()
        self._local = threading.local()
        self.clock = 0

    def view(self, inner: Backend, *, free: bool = False) -> Stepped:
        """Return a view of `inner` whose every call waits for its turn."""
        stepped = Stepped(inner, free=free)
        stepped.point = lambda moment, _verb, _key: self._yield() if moment == "before" else None
        return stepped

    def actor(self, call: Callable[[], Any]) -> None:
        """Add an actor; it starts when `run` says so."""
        number = len(self._tasks)
        self._gates[number] = threading.Semaphore(0)

        def run() -> Any:
            self._local.number = number
            self._gates[number].acquire()
            try:
                return call()
            finally:
                self._local.number = None
                self._ended.add(number)
                self._main.release()

        self._tasks[number] = Task(run)

    def tick(self) -> int:
        """Return the next moment of the logical clock."""
        self.clock += 1
        return self.clock

    def _yield(self) -> None:
        number = getattr(self._local, "number", None)
        if number is not None:  # the test itself is not scheduled
            self._main.release()
            self._gates[number].acquire()

    def run(self) -> list[Any]:
        """Step the actors to their ends; return their results in order."""
        alive = set(self._tasks)
        current = None
        while alive:
            if current not in alive or self._random.random() > self._stickiness:
                current = self._random.choice(sorted(alive))
            self._gates[current].release()
            assert self._main.acquire(timeout=DEADLINE_S), "an actor hangs"
            alive -= self._ended
        return [task.result() for task in self._tasks.values()]
