"""One session shared by threads, by forked children, by spawned processes and by async tasks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from typing import Any

import pytest
from helpers import DEADLINE_S, Task, in_child, join_all, nonces, raw_session, together, wait_until
from stepping import Stepped

import shardstore
from shardstore.backends import syscalls
from shardstore.backends.groupsync import GroupSync
from shardstore.backends.local import LocalBackend

SHARDS = "sessions/s/shards"


def lone(path: str, **options: Any) -> shardstore.Session:
    return shardstore.open(path, compact_shards=None, **options).session("s")


# ------------------------------------------------------------------ threads


def test_threads_share_folder_flushes(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 threads x 50 durable appends on one session: all committed in each thread's order, with no more flushes."""
    session = lone(store_path)
    session.append({})
    flushes = []
    flush = syscalls.flush_folder
    monkeypatch.setattr(syscalls, "flush_folder", lambda fd: (flushes.append(fd), flush(fd)))

    def appends() -> list[str]:
        receipts = [session.append({"n": n}) for n in range(50)]
        assert sorted(r.seq for r in receipts) == [r.seq for r in receipts]
        return [r.nonce for r in receipts]

    acknowledged = [nonce for each in together([appends] * 8) for nonce in each]
    assert sorted(nonces(session)[1:]) == sorted(acknowledged)
    assert 0 < len(flushes) <= 400  # that they are shared is forced below, where it does not depend on the disk


def test_no_append_is_acknowledged_before_its_flush(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush covers only links that returned before it began: whoever links later waits for the next one."""
    session = lone(store_path)
    session.append({})
    entered, go = threading.Semaphore(0), threading.Semaphore(0)
    flush = syscalls.flush_folder

    def slowly(fd: int) -> None:
        entered.release()
        assert go.acquire(timeout=DEADLINE_S)
        flush(fd)

    monkeypatch.setattr(syscalls, "flush_folder", slowly)
    first = Task(lambda: session.append({"n": 1}))
    assert entered.acquire(timeout=DEADLINE_S)
    late = [Task(lambda: session.append({"n": 2})) for _ in range(3)]
    while session.head() < 5:
        assert all(task.is_alive() for task in late)
    go.release()
    first.result()
    assert entered.acquire(timeout=DEADLINE_S), "a second flush, for those who linked during the first"
    assert all(task.is_alive() for task in late)
    go.release()
    assert sorted(task.result().seq for task in late) == [3, 4, 5]
    assert not entered.acquire(blocking=False), "one flush was enough for all of them"


def test_no_flush_is_retried_on_a_descriptor_that_failed() -> None:
    """Once a flush has failed, every later ticket of that descriptor fails: the kernel reports a lost write once."""
    failures = [OSError(5, "Input/output error")]

    def flush() -> None:
        if failures:
            raise failures.pop()

    group = GroupSync(flush)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            group.sync()


def test_append_after_a_failed_flush_is_durable_again(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The append whose flush failed is OutcomeUnknown, with its seq and nonce; the next one succeeds."""
    session = lone(store_path)
    session.append({})
    flush = syscalls.flush_folder

    def fail(fd: int) -> None:
        monkeypatch.setattr(syscalls, "flush_folder", flush)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(syscalls, "flush_folder", fail)
    with pytest.raises(shardstore.OutcomeUnknown) as caught:
        session.append({"n": 1})
    assert caught.value.seq == 2
    assert session.append({"n": 2}).seq == 3
    assert next(session.records(2)).nonce == caught.value.nonce, "what was visible is never withdrawn"


def test_an_evicted_folder_is_not_pulled_from_under_a_delete(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one session is swept, other threads' folders come and go: nothing of another session is ever deleted."""
    store = shardstore.open(store_path, compact_shards=None)
    for name in ("a", "b"):
        for n in range(3):
            store.session(name).append({"n": n})
    backend = store._backend
    unlink, kept = os.unlink, []

    def paused(name: str, *, dir_fd: int) -> None:
        monkeypatch.setattr(os, "unlink", unlink)
        backend.close()  # as an eviction by another thread would
        kept.extend(os.open(f"{store_path}/sessions/b/shards", os.O_RDONLY) for _ in range(20))
        unlink(name, dir_fd=dir_fd)

    backend.close()
    monkeypatch.setattr(os, "unlink", paused)
    backend.delete("sessions/a/shards/00000000000000000002.shard")
    for fd in kept:
        os.close(fd)
    assert len(os.listdir(f"{store_path}/sessions/b/shards")) == 3
    assert sorted(os.listdir(f"{store_path}/sessions/a/shards"))[1].endswith("3.shard")


def test_many_sessions_and_few_descriptors(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sessions than held folders, from four threads: every append lands in its own session."""
    monkeypatch.setattr("shardstore.backends.folders.FOLDERS_MAX", 4)
    store = shardstore.open(store_path, compact_shards=3, durability="none")

    def work(thread: int) -> None:
        for n in range(60):
            name = f"s{(n * 7 + thread) % 12}"
            store.session(name).append({"session": name, "by": thread, "n": n})

    together([lambda n=n: work(n) for n in range(4)])  # type: ignore[misc]
    store.close()
    entries = [(info.id, entry) for info in store.sessions() for entry in store.session(info.id).entries()]
    assert all(entry["session"] == name for name, entry in entries)
    assert len({(entry["by"], entry["n"]) for _, entry in entries}) == len(entries) == 240
    assert store.verify() == []


def test_store_close_waits_for_background_compactions(store_path: str) -> None:
    """After `close` no compaction that this store began is at work, and what it did is all there."""
    with shardstore.open(store_path, compact_shards=5, durability="none") as store:
        for n in range(100):
            store.session("s").append({"n": n})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shardstore-compact")]
    info = lone(store_path).info()
    assert info.head == 100
    assert info.watermark > 0, "crossing the threshold compacted"


def test_one_handle_used_by_threads_for_everything(store_path: str) -> None:
    """Appending, reading, compacting and following one session object from many threads at once."""
    store = shardstore.open(store_path, compact_shards=10, durability="none")
    session = store.session("s")
    session.append({})

    def write() -> None:
        for n in range(100):
            session.append({"n": n}, key=f"{threading.get_ident()} {n}" if n % 10 == 0 else None)

    def read() -> None:
        seen: list[str] = []
        while len(seen) < 401:
            now = nonces(session)
            assert now[: len(seen)] == seen
            seen = now

    def follow() -> None:
        assert [record.seq for _, record in zip(range(401), session.follow(0), strict=False)] == list(range(1, 402))

    together([write] * 4 + [read, follow, lambda: [session.compact() for _ in range(20)]])
    store.close()
    assert not [finding for finding in session.verify() if finding.severity == "damage"]


def test_threads_share_one_follower(store_path: str) -> None:
    """Several threads that iterate over one follower divide the records between them: each goes to exactly one."""
    session = lone(store_path, durability="none")
    session.append({})
    stop = threading.Event()
    follower = session.follow(0, stop=stop, poll_ms=1, watch=False)
    taken: list[int] = []
    tasks = [Task(lambda: taken.extend(record.seq for record in follower)) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for n in range(300):
            session.append({"n": n})
    finally:
        sys.setswitchinterval(interval)
    wait_until(lambda: len(taken) == 301 or any(task.error for task in tasks), what="all records")
    stop.set()
    for task in tasks:
        task.result()
    assert sorted(taken) == list(range(1, 302))


# ------------------------------------------------------------------ processes


def append_some(path: str, count: int) -> None:
    session = shardstore.open(path).session("s")
    for n in range(count):
        session.append({"pid": os.getpid(), "n": n})


def test_fork_after_use(store_path: str) -> None:
    """A session used before a fork goes on in parent and children, which share nothing but the store."""
    session = lone(store_path)
    session.append({})
    seen = next(iter(session.records())).nonce

    def child() -> None:
        for n in range(20):
            session.append({"child": n}, key=f"{os.getpid()} {n}")
        session.compact()
        assert nonces(session)[0] == seen

    for _ in range(3):
        assert in_child(child) == 0
        session.append({"parent": 1})
    assert len(nonces(session)) == 64
    assert not [finding for finding in session.verify() if finding.severity == "damage"]


def test_fork_while_threads_are_in_the_middle(store_path: str) -> None:
    """Children forked while other threads append, judge and flush find no lock held by a thread they do not have."""
    session = lone(store_path)
    session.append({})
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            session.append({}, key=os.urandom(4).hex())

    def child() -> None:
        for n in range(3):
            session.append({"child": n}, key=f"{os.getpid()} {n}")
        session.head()
        session.compact()

    tasks = [Task(write) for _ in range(3)]
    codes = [in_child(child) for _ in range(8)]
    stop.set()
    for task in tasks:
        task.result()
    assert codes == [0] * 8
    assert sum(b"child" in record.payload for record in session.records()) == 24
    assert not [finding for finding in session.verify() if finding.severity == "damage"]


def test_spawned_processes_that_never_heard_of_each_other(store_path: str) -> None:
    """Fresh interpreters that only share a path: all their appends are there, also the store's birth is raced."""
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=append_some, args=(store_path, 25)) for _ in range(4)]
    for child in children:
        child.start()
    join_all(children)
    entries = list(lone(store_path).entries())
    assert len({(entry["pid"], entry["n"]) for entry in entries}) == len(entries) == 100


def test_two_backends_on_one_path_are_two_processes(store_path: str) -> None:
    """What the step tests stand on: two backends in one process exclude and see each other like two processes."""
    lone(store_path).append({})
    one, two = (raw_session(Stepped(LocalBackend(store_path))) for _ in range(2))
    assert one.append({}).seq == 2
    assert two.append({}).seq == 3
    assert one.append({}).seq == 4
    assert nonces(one) == nonces(two)
    assert two.compact().records == 4
    assert (one.append({}).seq, one.info().watermark) == (5, 4)
    assert len(os.listdir(os.path.join(store_path, SHARDS))) == 1
