"""How fresh a view on disk is: the time from an acknowledged append until a reader sees its line in the file.

One process follows the whole store (`shardstore view --follow`); this one appends to one session after another, at
moments of its own, and watches the file's size. Each line is compared with what was appended. Besides that, what the
follower costs while nothing happens: processor time, memory, descriptors.

    python -m benchmarks.freshness --dir /tmp [--sessions 1000] [--appends 500] [--durability sync]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing

import shardstore

__all__ = ["main", "measure"]

IDLE_S = 5.0
GIVE_UP_S = 30.0


def measure(path: str, *, sessions: int, appends: int, durability: shardstore.Durability) -> dict[str, object]:
    """Return the latencies in ms, and the follower's costs; `path` is an empty folder."""
    store_path, folder = os.path.join(path, "store"), os.path.join(path, "views")
    names = [f"agent/{number}" for number in range(sessions)]
    with shardstore.open(store_path, durability=durability) as store:
        for name in names:
            store.session(name).append(b'{"type":"session","version":3,"id":"%s"}\n' % name.encode())
        begun = time.perf_counter()
        words = [sys.executable, "-m", "shardstore", "--store", store_path, "view", "--follow", folder, "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as follower, closing(_Stopping(follower)):
            _await_up_to_date(follower, sessions)
            caught_up_s = time.perf_counter() - begun
            idle = _idle(follower.pid)
            latencies_ms = sorted(_latencies(store, folder, names, appends))
        for name in names:
            with open(os.path.join(folder, f"{name}.jsonl"), "rb") as file:
                assert file.read() == store.session(name).read_jsonl(), name
    return {
        "sessions": sessions,
        "appends": appends,
        "durability": durability,
        "median_ms": round(latencies_ms[len(latencies_ms) // 2], 1),
        "p90_ms": round(latencies_ms[len(latencies_ms) * 90 // 100], 1),
        "p99_ms": round(latencies_ms[len(latencies_ms) * 99 // 100], 1),
        "max_ms": round(latencies_ms[-1], 1),
        "caught_up_s": round(caught_up_s, 2),
        **idle,
    }


class _Stopping:
    """Ends the follower, whatever happened."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def _await_up_to_date(follower: subprocess.Popen[bytes], files: int) -> None:
    assert follower.stdout is not None
    for line in follower.stdout:
        told = json.loads(line)
        if told.get("state") == "up to date":
            assert told["files"] == files, told
            return
    raise RuntimeError("the follower ended before it had caught up")


def _idle(pid: int) -> dict[str, object]:
    """Return what a follower costs while nothing is appended; at first, files are too young to be left alone."""
    time.sleep(IDLE_S)
    before_s = _cpu_s(pid)
    time.sleep(IDLE_S)
    with open(f"/proc/{pid}/status") as status:
        rss_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    return {
        "idle_cpu_percent": round((_cpu_s(pid) - before_s) / IDLE_S * 100, 1),
        "rss_mib": rss_kib >> 10,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _latencies(store: shardstore.Store, folder: str, names: list[str], appends: int) -> list[float]:
    chance = random.Random(1)
    found = []
    for number in range(appends):
        name = chance.choice(names)
        path = os.path.join(folder, f"{name}.jsonl")
        time.sleep(chance.uniform(0, 0.03))
        line = b'{"n":%d,"text":"%s"}\n' % (number, b"x" * 700)
        wanted = os.stat(path).st_size + len(line)
        store.session(name).append(line)
        begun = time.perf_counter()
        while os.stat(path).st_size < wanted:
            if time.perf_counter() - begun > GIVE_UP_S:
                raise RuntimeError(f"an append never became visible: {name} {number}")
            time.sleep(0.0005)
        found.append((time.perf_counter() - begun) * 1000)
    return found


def main() -> None:
    """Measure once and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", default=tempfile.gettempdir())
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--appends", type=int, default=500)
    parser.add_argument("--durability", choices=("sync", "none"), default="sync")
    chosen = parser.parse_args()
    path = tempfile.mkdtemp(prefix="shardstore-freshness-", dir=chosen.dir)
    try:
        found = measure(path, sessions=chosen.sessions, appends=chosen.appends, durability=chosen.durability)
        print(json.dumps(found))
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
