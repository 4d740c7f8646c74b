"""Sixteen writers, four co-tenants, a compactor and five readers on one session; then the same with SIGKILL.

Every acknowledged record is there exactly once at its seq, without gaps; what was acknowledged before another append
was invoked has the smaller seq; readers see growing prefixes that hold what was acknowledged before they began.
`SHARDSTORE_SIXTEEN` scales the number of appends each writer makes (500 by default).
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import orjson
import workers
from helpers import DEADLINE_S, assert_real_time, join_all, processes, wait_until
from workers import Call, read_calls, read_report

APPENDS = int(os.environ.get("SHARDSTORE_SIXTEEN", "500"))
WRITERS = 16
CO_TENANTS = 4
READERS = ("whole", "tail", "last", "backwards", "follow")


@dataclass
class Scene:
    """Paths, and the processes that read and compact throughout."""

    path: str
    logs: str
    reports: str
    stop: str

    @staticmethod
    def at(folder: Any) -> Scene:
        scene = Scene(*(str(folder / name) for name in ("store", "logs", "reports", "stop")))
        os.mkdir(scene.logs)
        os.mkdir(scene.reports)
        return scene

    def writer(self, name: str, appends: int, source: str = "main", compact_shards: int | None = None) -> BaseProcess:
        log = os.path.join(self.logs, name)
        return start(workers.write, self.path, log, name, appends, source, compact_shards)

    def readers(self) -> list[BaseProcess]:
        started = []
        for how in READERS:
            out = os.path.join(self.reports, how)
            if how == "follow":
                started.append(start(workers.follow_until, self.path, self.stop, out))
            else:
                started.append(start(workers.read_until, self.path, self.stop, how, out))
        return started

    def compactor(self) -> BaseProcess:
        return start(workers.compact_until, self.path, self.stop)

    def end(self) -> None:
        with open(self.stop, "w", encoding="ascii"):
            pass


def start(target: Any, *args: Any) -> BaseProcess:
    process = processes.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def check(scene: Scene) -> tuple[dict[str, Call], int]:
    """Compare the finished log with every writer's calls and every reader's reports."""
    session = workers.open_session(scene.path)
    calls = read_calls(scene.logs)
    records = list(session.records())
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    found = [orjson.loads(record.payload)["id"] for record in records]
    assert len(set(found)) == len(found), "a record is there twice"
    assert set(found) <= set(calls), "a record is there that nobody wrote"
    acknowledged = {name: call for name, call in calls.items() if call.seq}
    assert {call.seq: name for name, call in acknowledged.items()} == {
        call.seq: found[call.seq - 1] for call in acknowledged.values()
    }
    assert_real_time([(call.seq, call.invoked, call.acknowledged) for call in acknowledged.values()])
    check_readers(scene, [record.nonce for record in records], acknowledged)
    session.compact()
    assert [record.nonce for record in session.records()] == [record.nonce for record in records]
    assert session.verify() == []
    return calls, len(records)


def check_readers(scene: Scene, nonces: list[str], acknowledged: dict[str, Call]) -> None:
    """Each reader saw prefixes of the final log, with all that was acknowledged before the read began."""
    by_time = sorted((call.acknowledged, call.seq) for call in acknowledged.values())
    for how in READERS:
        seen, observations = read_report(os.path.join(scene.reports, how))
        assert seen == nonces, f"{how} ended with something else than the log"
        assert how == "follow" or len(observations) > 1
        at, known = 0, 0
        for began, head in observations:
            while at < len(by_time) and by_time[at][0] < began:
                known = max(known, by_time[at][1])
                at += 1
            assert head >= known, f"{how} missed a record that was acknowledged before it looked"


def test_sixteen_writers(tmp_path: Any) -> None:
    """16 x 500 durable appends and four event writers, a compactor in a loop, five readers throughout."""
    scene = Scene.at(tmp_path)
    background = [scene.compactor(), *scene.readers()]
    writers = [scene.writer(f"w{n}", APPENDS) for n in range(WRITERS)]
    co_tenants = [scene.writer(f"e{n}", APPENDS // 4, f"heartbeat:{n}", compact_shards=8) for n in range(CO_TENANTS)]
    join_all(writers + co_tenants)
    scene.end()
    join_all(background)
    calls, total = check(scene)
    assert total == len(calls) == WRITERS * APPENDS + CO_TENANTS * (APPENDS // 4)
    assert all(call.seq for call in calls.values())


def test_sixteen_writers_killed_at_random(tmp_path: Any) -> None:
    """The same while writers and the compactor are killed and started again: what was acknowledged is there, once."""
    scene = Scene.at(tmp_path)
    chance = random.Random(20)
    readers = scene.readers()
    lives: dict[str, BaseProcess] = {}
    compactor = scene.compactor()
    started, quota = 0, WRITERS * 4
    killed = 0

    def begin(slot: str) -> None:
        nonlocal started
        started += 1
        source = "main" if slot.startswith("w") else f"heartbeat:{slot}"
        lives[slot] = scene.writer(f"{slot}.{started}", APPENDS // 2, source)

    slots = [f"w{n}" for n in range(WRITERS)] + [f"e{n}" for n in range(CO_TENANTS)]
    for slot in slots:
        begin(slot)
    while lives:
        slot = chance.choice(sorted(lives))
        if started < quota and lives[slot].is_alive():
            wait_for_some_calls(scene, chance.randrange(1, 120))
            lives[slot].kill()
            killed += 1
            if chance.random() < 0.5:
                compactor.kill()
                compactor.join()
                compactor = scene.compactor()
        ended = lives.pop(slot)
        ended.join(DEADLINE_S)
        assert ended.exitcode in (0, -signal.SIGKILL), "a writer failed; see its traceback"
        if started < quota:
            begin(slot)
    scene.end()
    join_all([compactor, *readers])
    calls, total = check(scene)
    assert killed
    assert total >= sum(1 for call in calls.values() if call.seq)


def wait_for_some_calls(scene: Scene, count: int) -> None:
    """Let the writers make about `count` more calls, so that kills fall anywhere in their work."""
    size = log_bytes(scene)
    wait_until(lambda: log_bytes(scene) > size + 25 * count, what="more appends", deadline_s=5.0, must=False)


def log_bytes(scene: Scene) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(scene.logs))
