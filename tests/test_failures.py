"""The failures that were reported from gateways, replayed: what threw away finished replies must go through here.

A model call is a pause of the controller between reading and appending; what lands in it is real, from other
processes. Nothing depends on how long anything takes: every pause ends when the thing it waits for has happened.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from functools import partial
from typing import Any

import orjson
import pytest
import workers
from helpers import DEADLINE_S, Task, fork, nonces, processes, raw_session, reap, together, wait_until
from stepping import Stepped

import shardstore
from shardstore.backends.local import LocalBackend

SESSION = workers.SESSION


def open_session(path: str) -> shardstore.Session:
    return workers.open_session(path)


def elsewhere(target: Any, *args: Any) -> None:
    """Run something in another process, to its end."""
    process = processes.Process(target=target, args=args, daemon=True)
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode == 0


def land(path: str, source: str, kind: str, count: int = 1) -> None:
    """Another program appends to the session."""
    session = open_session(path)
    for n in range(count):
        session.append({"from": source, "n": n}, kind=kind, source=source)  # type: ignore[arg-type]


def land_at_once(path: str, source: str, gate: Any) -> None:
    gate.wait(DEADLINE_S)
    land(path, source, "turn")


def sources(session: shardstore.Session) -> list[str]:
    return [record.source for record in session.records()]


# ------------------------------------------------------------------ 1, 2, 3: others append


def test_second_message_during_a_model_call(store_path: str) -> None:
    """A second message lands while the model thinks: both are kept and the reply is delivered after them."""
    session = open_session(store_path)
    session.append({"role": "user", "content": "first"}, source="user")
    context = [record.seq for record in session.records()]
    elsewhere(land, store_path, "user", "turn")
    reply = session.append({"role": "assistant", "content": "the reply"}, source="main")
    assert (reply.seq, reply.base) == (3, context[-1]), "delivered, and its base says what it had not seen"
    assert sources(session) == ["user", "user", "main"]
    assert [entry["content"] for entry in session.entries(source="main")] == ["the reply"]


def test_two_lanes_right_after_the_session_is_created(store_path: str) -> None:
    """Two lanes whose first appends race for the session's birth: both succeed, every time."""
    shardstore.open(store_path)
    for n in range(40):
        path = f"{store_path}/{n}"
        lanes = [shardstore.open(path).session("new") for _ in range(2)]
        seqs = together([partial(lane.append, {"lane": n}) for n, lane in enumerate(lanes)])
        assert sorted(receipt.seq for receipt in seqs) == [1, 2]
        assert {entry["lane"] for entry in lanes[0].entries()} == {0, 1}


def test_two_processes_right_after_the_session_is_created(store_path: str) -> None:
    """The same from two processes that never heard of each other."""
    for n in range(5):
        path = f"{store_path}{n}"
        gate = processes.Barrier(2)
        lanes = [processes.Process(target=land_at_once, args=(path, f"lane{i}", gate), daemon=True) for i in range(2)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join(DEADLINE_S)
        assert [lane.exitcode for lane in lanes] == [0, 0]
        assert sorted(sources(open_session(path))) == ["lane0", "lane1"]


def test_co_tenants_during_a_model_call_then_the_same_controller_goes_on(store_path: str) -> None:
    """Heartbeat, cron, hook and channel message land in a call: the reply is kept, and so is every later write."""
    session = open_session(store_path)
    session.append({"role": "user"}, source="user")
    for turn in range(5):
        known = session.last(1)[0].seq
        for source, kind in [("heartbeat", "event"), ("cron:daily", "event"), ("hook:post", "event"), ("tg", "turn")]:
            elsewhere(land, store_path, source, kind)
        reply = session.append({"role": "assistant", "turn": turn}, source="main")
        assert (reply.seq, reply.base) == (known + 5, known)
        assert session.append({"role": "tool", "turn": turn}, source="main").seq == known + 6, "nothing sticks"
    assert sources(session).count("main") == 10
    assert len(list(session.records(kind="event"))) == 15


# ------------------------------------------------------------------ 4: self-inflicted writes


def touch(path: str) -> None:
    os.utime(path)


def chmod(path: str) -> None:
    os.chmod(path, 0o640)


def copy_and_replace(path: str) -> None:
    """As a snapshot or sync tool does: same bytes, another inode."""
    shutil.copy2(path, path + ".snapshot")
    os.replace(path + ".snapshot", path)


def read_and_index(path: str) -> None:
    with open(path, "rb") as file:
        index = file.read().count(b"\n")
    with open(os.path.join(os.path.dirname(path), "index.sqlite"), "ab") as file:
        file.write(b"%d" % index)


@pytest.mark.parametrize("meddle", [touch, chmod, copy_and_replace, read_and_index])
def test_self_inflicted_writes(store_path: str, meddle: Any) -> None:
    """Indexer, snapshot, metadata, a mere touch of every file of the session during a call: the reply is kept."""
    session = open_session(store_path)
    for n in range(3):
        session.append({"n": n})
    session.compact()
    session.append({"n": 3})
    before = nonces(session)
    folder = os.path.join(store_path, "sessions", SESSION)
    for root, _, files in os.walk(folder):
        for name in files:
            meddle(os.path.join(root, name))
        os.utime(root)
    reply = session.append({"role": "assistant"})
    assert reply.seq == 5
    assert nonces(session) == [*before, reply.nonce]
    session.compact()
    assert session.append({}).seq == 6
    assert nonces(open_session(store_path))[:5] == [*before, reply.nonce]
    assert not [finding for finding in session.verify() if finding.severity == "damage"]


# ------------------------------------------------------------------ 5: maintenance that hangs


def compact_and_hang(path: str, moment: str, verb: str, part: str) -> None:
    """Compact, and stop this very process (SIGSTOP) in the middle of it."""
    view = Stepped(LocalBackend(path))

    def point(at: str, name: str, key: str) -> None:
        if at == moment and name == verb and part in key:
            view.point = None
            os.kill(os.getpid(), signal.SIGSTOP)

    view.point = point
    raw_session(view, SESSION).compact()
    os._exit(0)


def compact_in_a_child_and_die(path: str, *where: str) -> None:
    """Fork a child that compacts and hangs, and die without waiting for it; the pid is left in a file."""
    pid = fork()
    if pid == 0:
        compact_and_hang(path, *where)
    with open(f"{path}.pid", "w", encoding="ascii") as file:
        file.write(str(pid))
    os._exit(0)


def stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


POINTS = {
    "holding the lock": ("before", "list", "shards"),
    "reading shards": ("before", "read", "00000000000000000007.shard"),
    "before the segment": ("before", "create", "segments"),
    "after the segment": ("after", "create", "segments"),
    "before publishing": ("before", "replace", "manifest"),
    "after publishing": ("after", "replace", "manifest"),
    "sweeping": ("after", "delete", "00000000000000000005.shard"),
}


def hung_compactor(path: str, point: str, how: str) -> int:
    """Return the pid of a compactor that hangs at `point`: a child of ours, or an orphan."""
    target = compact_and_hang if how == "child" else compact_in_a_child_and_die
    pid = fork()
    if pid == 0:
        try:
            target(path, *POINTS[point])
        finally:
            os._exit(1)
    if how == "orphan":
        assert reap(pid) == 0
        with open(f"{path}.pid", encoding="ascii") as file:
            pid = int(file.read())
    wait_until(lambda: stopped(pid), what="a compactor that hangs")
    return pid


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="tells a stopped process by /proc")
@pytest.mark.parametrize("ending", ["goes on", "is killed"])
@pytest.mark.parametrize("how", ["child", "orphan"])
@pytest.mark.parametrize("point", POINTS)
def test_hung_compactor(store_path: str, point: str, how: str, ending: str) -> None:
    """A compactor hangs anywhere: writers and readers go on at once; when it is gone, compaction goes on too."""
    session = open_session(store_path)
    for n in range(10):
        session.append({"n": n})
    pid = hung_compactor(store_path, point, how)
    before = nonces(session)
    for n in range(5):
        session.append({"n": n}, key=f"k{n}", if_no_turn_since=10 + n)
    elsewhere(land, store_path, "heartbeat", "event", 3)
    assert nonces(session)[:10] == before
    assert session.head() == 18
    assert session.compact().skipped, "the hung one has the right to compact"
    os.kill(pid, signal.SIGKILL if ending == "is killed" else signal.SIGCONT)
    wait_until(lambda: gone(pid, how), what="the end of the compactor")
    truth = nonces(session)
    report = session.compact()
    assert not report.skipped
    assert report.watermark == 18
    assert nonces(session) == nonces(open_session(store_path)) == truth
    assert [session.append({"n": n}, key=f"k{n}").seq for n in range(5)] == [11, 12, 13, 14, 15]
    assert session.verify() == []


def gone(pid: int, how: str) -> bool:
    if how == "child":
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_archiving_and_deleting_beside_a_hung_compactor(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must replace the manifest says that a compactor stands in the way, changes nothing, and works later."""
    monkeypatch.setattr("shardstore.backends.local.LOCK_WAIT_S", 0.05)
    session = open_session(store_path)
    for n in range(10):
        session.append({"n": n})
    pid = hung_compactor(store_path, "before publishing", "child")
    for call in (session.archive, session.delete):
        with pytest.raises(shardstore.Unavailable) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
        assert session.append({}).seq == len(nonces(session))
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    session.archive()
    assert session.info().archived
    assert not session.compact().skipped
    assert len(nonces(session)) == 12
    session.delete()
    with pytest.raises(shardstore.Deleted):
        session.append({})


def test_fork_while_the_compactors_lock_is_held(store_path: str) -> None:
    """A child forked in the middle of a compaction does not keep its lock: the parent dies, compaction goes on."""
    session = open_session(store_path)
    for n in range(10):
        session.append({"n": n})
    before = nonces(session)
    parent = fork()
    if parent == 0:
        view = Stepped(LocalBackend(store_path))
        stop = view.stop("before", "replace", "manifest")
        Task(raw_session(view, SESSION).compact)
        stop.wait()
        child = fork()
        if child == 0:
            signal.pause()
        with open(f"{store_path}.pid", "w", encoding="ascii") as file:
            file.write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    assert reap(parent) == -signal.SIGKILL
    with open(f"{store_path}.pid", encoding="ascii") as file:
        child = int(file.read())
    try:
        wait_until(lambda: not session.compact().skipped, what="the child to close its copy, as soon as it runs")
        assert session.info().watermark == 10
        assert nonces(session) == before
    finally:
        os.kill(child, signal.SIGKILL)


def test_fork_inside_a_compaction(store_path: str) -> None:
    """Forked from within a compaction, by its own thread: both go on with it, and neither harms the session."""
    session = open_session(store_path)
    for n in range(10):
        session.append({"n": n})
    before = nonces(session)
    view = Stepped(LocalBackend(store_path))
    pids: list[int] = []

    def fork_once(at: str, verb: str, key: str) -> None:
        if (at, verb) == ("after", "create") and not pids:
            pids.append(fork())

    view.point = fork_once
    compactor = raw_session(view, SESSION)
    try:
        report = compactor.compact()
    finally:
        if pids and pids[0] == 0:
            os._exit(0)
    reap(pids[0])
    assert not report.skipped
    assert nonces(session) == nonces(open_session(store_path)) == before
    assert session.append({}).seq == 11
    session.compact()
    assert session.verify() == []
    assert [orjson.loads(line)["n"] for line in session.read_jsonl(1, 10).splitlines()] == list(range(10))
