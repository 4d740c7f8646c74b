"""Following: blocking and async, by notification and by polling, cancelled and closed; no record is missed or repeated.

Waiting is told apart from timing: where notifications must do it, the poll interval is an hour; where polling must do
it, there are no notifications at all.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from typing import Any

import pytest
from helpers import DEADLINE_S, Task, raw_session, wait_until

import shardstore
from shardstore import AsyncSession, Deleted, Follower, InvalidRequest, Session
from shardstore.backends.memory import MemoryBackend
from shardstore.follow import Watch

HOUR_MS = 3_600_000


@pytest.fixture
def session(store_path: str) -> Session:
    """A session with three records, the first two compacted."""
    session = open_session(store_path)
    session.append({"n": 1})
    session.append({"n": 2})
    session.compact()
    session.append({"n": 3})
    return session


def open_session(path: str) -> Session:
    return shardstore.open(path, compact_shards=None).session("s")


class Consumer:
    """Follows in a thread and keeps the seqs that were delivered."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.seqs: list[int] = []
        self.task = Task(self._consume)

    def _consume(self) -> None:
        for record in self.follower:
            self.seqs.append(record.seq)

    def await_seqs(self, last: int, first: int = 1) -> None:
        wait_until(lambda: len(self.seqs) > last - first or not self.task.is_alive(), what=f"{self.seqs} up to {last}")
        assert self.seqs == list(range(first, last + 1))

    def close(self) -> None:
        self.follower.close()
        self.task.result()


# ------------------------------------------------------------------ blocking


def test_follow_from_now_and_from_a_seq(session: Session) -> None:
    """`after=None` begins with what comes from now on, `after=n` with n + 1, out of segments and shards alike."""
    later, some, everything = (Consumer(session.follow(after)) for after in (None, 1, 0))
    session.append({"n": 4})
    later.await_seqs(4, first=4)
    some.await_seqs(4, first=2)
    everything.await_seqs(4)
    for consumer in (later, some, everything):
        assert consumer.follower.cursor == (4, session.last(1)[0].nonce)
        consumer.close()


def test_notifications_wake_a_follower(store_path: str, session: Session) -> None:
    """With an hour between polls, what another program appends arrives all the same, again and again."""
    consumer = Consumer(session.follow(0, poll_ms=HOUR_MS))
    assert consumer.follower.watching
    other = open_session(store_path)
    for n in range(4, 30):
        consumer.await_seqs(n - 1)
        other.append({"n": n})
        if n % 5 == 0:
            other.compact()
    consumer.await_seqs(29)
    consumer.close()


def test_notifications_wake_a_follower_of_a_session_without_shards(store_path: str) -> None:
    """A session that was imported has no folder of shards yet; its first one is announced too."""
    store = shardstore.open(store_path, compact_shards=None)
    store.import_session("s", [b"{}\n"] * 3)
    consumer = Consumer(store.session("s").follow(0, poll_ms=HOUR_MS))
    consumer.await_seqs(3)
    other = open_session(store_path)
    for n in range(4, 8):
        other.append({})
        consumer.await_seqs(n)
    consumer.close()


@pytest.mark.parametrize("why", ["not asked for", "no watches left", "memory"])
def test_polling_delivers_without_notifications(
    why: str, store_path: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing notifies (not wanted, the system's limit is reached, no files at all), polling alone delivers."""
    if why == "memory":
        session = raw_session(MemoryBackend())
        for n in range(3):
            session.append({"n": n})
    if why == "no watches left":
        monkeypatch.setattr("shardstore.follow.RustNotify", _no_watches_left)
    consumer = Consumer(session.follow(0, poll_ms=5, watch=why != "not asked for"))
    assert not consumer.follower.watching
    other = session if why == "memory" else open_session(store_path)
    for n in range(4, 15):
        consumer.await_seqs(n - 1)
        other.append({"n": n})
    consumer.await_seqs(14)
    other.compact()
    other.append({})
    consumer.await_seqs(15)
    consumer.close()


def _no_watches_left(*_: Any) -> None:
    raise OSError(28, "No space left on device (os error 28)")


def test_polling_goes_on_beside_silent_notifications(session: Session) -> None:
    """A watch that never fires (some filesystems do not notify) costs latency up to `poll_ms`, no record."""
    follower = session.follow(0, poll_ms=20)
    empty = os.path.join(os.path.dirname(session._log.backend.root), "elsewhere")  # type: ignore[attr-defined]
    os.mkdir(empty)
    follower._watch = Watch((empty,), use_notifications=True)
    consumer = Consumer(follower)
    consumer.await_seqs(3)
    for n in range(4, 8):
        session.append({"n": n})
        consumer.await_seqs(n)
    consumer.close()


def test_follow_across_compaction_and_merges(store_path: str, session: Session) -> None:
    """Records that are compacted and merged away before they were delivered are delivered once, in order."""
    consumer = Consumer(session.follow(0))
    other = open_session(store_path)
    chance = random.Random(3)
    for n in range(4, 204):
        other.append({"n": n}, kind=chance.choice(["turn", "event"]))
        if chance.random() < 0.3:
            other.compact()
    consumer.await_seqs(203)
    consumer.close()


@pytest.mark.parametrize("end", ["close", "stop"])
@pytest.mark.parametrize("poll_ms", [10, HOUR_MS])
@pytest.mark.parametrize("watch", [True, False])
def test_stop_and_close_end_a_waiting_follower(session: Session, end: str, poll_ms: int, watch: bool) -> None:
    """Closing, or setting `stop`, ends the iteration of a thread that waits, however long its poll interval is."""
    stop = threading.Event()
    consumer = Consumer(session.follow(0, poll_ms=poll_ms, watch=watch, stop=stop))
    consumer.await_seqs(3)
    if end == "stop":
        stop.set()
    else:
        consumer.follower.close()
    consumer.task.result()
    session.append({})
    assert next(consumer.follower, None) is None, "it stays ended"
    assert consumer.seqs == [1, 2, 3]


def test_follow_of_a_deleted_session_ends_with_deleted(store_path: str, session: Session) -> None:
    """Deletion wakes a waiting follower with `Deleted`, and following a tombstone says the same."""
    consumer = Consumer(session.follow(0, poll_ms=HOUR_MS))
    consumer.await_seqs(3)
    open_session(store_path).delete()
    with pytest.raises(Deleted):
        consumer.task.result()
    with pytest.raises(Deleted):
        next(session.follow(0))


def test_follow_refuses_impossible_options(session: Session) -> None:
    """A poll interval that is not positive, or a negative seq, is an invalid request at once."""
    for options in ({"poll_ms": 0}, {"after": -1}):
        with pytest.raises(InvalidRequest):
            session.follow(**options)  # type: ignore[arg-type]


def test_what_was_followed_becomes_the_base(store_path: str, session: Session) -> None:
    """`base` of an append is the last record that following delivered, not the head."""
    session = open_session(store_path)
    with session.follow(0) as follower:
        next(follower)
        assert session.append({}).base == 1
        next(follower)
        assert session.append({}).base == 2


# ------------------------------------------------------------------ async


def run(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await main

    return asyncio.run(bounded())


@pytest.mark.parametrize("watch", [True, False])
def test_async_follow(session: Session, watch: bool) -> None:
    """An async consumer gets what a blocking one gets, while the event loop goes on appending."""

    async def main() -> list[int]:
        shared, seqs = AsyncSession(session), []
        follower = shared.follow(0, poll_ms=HOUR_MS if watch else 5, watch=watch)
        async for record in follower:
            seqs.append(record.seq)
            if record.seq == 40:
                break
            if record.seq >= 3:
                await shared.append({"n": record.seq + 1})
        follower.close()
        return seqs

    assert run(main()) == list(range(1, 41))


def test_cancelled_async_follow_loses_nothing(session: Session) -> None:
    """Each wait is cancelled at a random moment, again and again; every record is delivered once, in order."""

    async def main() -> list[int]:
        shared, seqs, chance = AsyncSession(session), [], random.Random(5)
        follower = shared.follow(0, poll_ms=5)

        async def append() -> None:
            for n in range(60):
                await shared.append({"n": n})

        appending = asyncio.create_task(append())
        while len(seqs) < 63:
            try:
                async with asyncio.timeout(chance.choice([0, 0.0005, 0.002, 0.01, 0.05])):
                    seqs.append((await anext(follower)).seq)
            except TimeoutError:
                continue
        await appending
        follower.close()
        return seqs

    assert run(main()) == list(range(1, 64))


def test_cancelled_async_append_runs_to_its_end(session: Session) -> None:
    """A cancelled append either never began or is committed whole; its key finds it, and it is there once."""

    async def main() -> None:
        shared, chance = AsyncSession(session), random.Random(7)
        for n in range(60):
            task = asyncio.create_task(shared.append({"n": n}, key=f"k{n}"))
            await asyncio.sleep(chance.choice([0, 0, 0.0003, 0.001]))
            task.cancel()
            await asyncio.wait([task])
            receipt = await shared.append({"n": n}, key=f"k{n}")
            assert receipt.seq == session.head()

    run(main())
    keys = [record.key for record in session.records() if record.key]
    assert keys == [f"k{n}" for n in range(60)]
    assert session.verify() == []


def test_append_cancelled_as_its_loop_ends(session: Session) -> None:
    """A loop that ends right after cancelling an append leaves a correct log, with that record whole or not at all."""

    async def main(n: int) -> None:
        task = asyncio.create_task(AsyncSession(session).append({"n": n}, key=f"k{n}"))
        await asyncio.sleep(0.0002 * (n % 4))
        task.cancel()

    for n in range(20):
        asyncio.run(main(n))
        assert session.append({"n": n}, key=f"k{n}").seq == session.head()
    assert [record.key for record in session.records(4)] == [f"k{n}" for n in range(20)]


def test_closing_ends_an_async_wait(session: Session) -> None:
    """`close` and `stop` end `async for` too."""

    async def main() -> list[int]:
        stop = threading.Event()
        for end in (stop.set, None):
            follower = session.follow(None, poll_ms=HOUR_MS, stop=stop if end else None)
            waiting = asyncio.ensure_future(anext(follower, None))
            await asyncio.sleep(0)
            (end or follower.close)()
            assert await waiting is None
        return []

    run(main())


def test_many_async_followers_do_not_starve_appends(session: Session) -> None:
    """More waiting followers than the loop has worker threads: an append still gets through, and wakes them all."""

    async def main() -> None:
        shared = AsyncSession(session)
        followers = [shared.follow(None, poll_ms=50, watch=False) for _ in range(60)]
        waiting = [asyncio.ensure_future(anext(follower)) for follower in followers]
        await asyncio.sleep(0)
        receipt = await shared.append({})
        assert {record.seq for record in await asyncio.gather(*waiting)} == {receipt.seq}
        for follower in followers:
            follower.close()

    run(main())
