"""The bar of the mount: what an unsynced append costs through it, against a passthrough that knows no sessions.

Rule: both are mounts by the same library with the same options, over folders of one filesystem, each served by a
process of its own; one program appends to both in turns, a batch at a time. The passthrough is the plain folder that
lies beneath every mount, mounted as it is. Afterwards both hold every line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import shardstore
from benchmarks import fresh
from benchmarks.report import Row
from benchmarks.workshop import Workshop, fresh_name, kib_line

__all__ = ["mount", "turns"]

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
READY = b"ready\n"


def serve(kind: str, beneath: str, folder: str) -> None:
    """Serve a mount until it is unmounted: `ours` over a new store, or `plain`."""
    from shardstore.mount.filesystem import Filesystem
    from shardstore.mount.handles import Sessions
    from shardstore.mount.library import Fuse, caller
    from shardstore.mount.plain import PlainFolder

    def ready() -> None:
        os.write(1, READY)

    class Plain(PlainFolder):
        def init_with_config(self, connection: object, config: object) -> None:
            super().init_with_config(connection, config)
            ready()

    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if kind == "ours":
        sessions = Sessions(shardstore.open(beneath, durability="none", compact_shards=None))
        Fuse(Filesystem(held, sessions, caller=caller, ready=ready), folder, default_permissions=True)
    else:
        Fuse(Plain(held), folder, default_permissions=True)


@contextmanager
def _mounted(kind: str, home: str) -> Iterator[str]:
    folder, beneath = os.path.join(home, kind), os.path.join(home, f"{kind}-store")
    os.mkdir(folder)
    words = [sys.executable, "-m", "benchmarks.mount", kind, beneath, folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if server.stdout.readline() != READY:
            raise RuntimeError(f"could not mount: {words}")
        try:
            yield folder
        finally:
            subprocess.run(["fusermount3", "-u", folder], check=True)


@contextmanager
def _whole(path: str) -> Iterator[Callable[[bytes], object]]:
    """Yield how most programs append: open, write, close."""

    def append(line: bytes) -> None:
        file = os.open(path, APPEND, 0o600)
        os.write(file, line)
        os.close(file)

    yield append


@contextmanager
def _held(path: str) -> Iterator[Callable[[bytes], object]]:
    """Yield how a program appends that keeps its file open."""
    file = os.open(path, APPEND, 0o600)
    try:
        yield lambda line: os.write(file, line)
    finally:
        os.close(file)


def turns(path: str, how: str, rounds: int, batch: int) -> dict[str, list[float]]:
    """Subject: append batches through both mounts, in turns; return microseconds an append, a batch each."""
    took: dict[str, list[float]] = {"ours": [], "plain": []}
    lines = [kib_line(number) for number in range(rounds * batch)]
    name = f"{fresh_name()}.jsonl"
    way = _held if how == "held" else _whole
    with _mounted("ours", path) as ours, _mounted("plain", path) as plain:
        paths = {"ours": os.path.join(ours, name), "plain": os.path.join(plain, name)}
        with way(paths["ours"]) as our_append, way(paths["plain"]) as plain_append:
            sides = [("ours", our_append), ("plain", plain_append)]
            for number in range(rounds):
                piece = lines[number * batch : (number + 1) * batch]
                for side, append in sides if number % 2 else reversed(sides):
                    start = time.perf_counter_ns()
                    for line in piece:
                        append(line)
                    took[side].append((time.perf_counter_ns() - start) / batch / 1e3)
        for where in paths.values():
            with open(where, "rb") as file:
                assert file.readlines() == lines
    return took


def mount(workshop: Workshop) -> list[Row]:
    """Bar of the mount: unsynced appends of 1 KiB, against a bare passthrough by the same library."""
    rows = []
    for how, what in (("whole", "open, write, close"), ("held", "write to an open file")):
        took: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(workshop.many(4)):
            found = fresh.call(turns, path=workshop.folder(), how=how, rounds=30, batch=50)
            for side, samples in found.items():
                took[side] += samples
        row_what = f"1 KiB append through a mount, unsynced: {what}, against a passthrough"
        rows.append(Row(bar="mount", what=row_what, unit="us", ours=took["ours"], other=took["plain"], bound=1.5))
    return rows


if __name__ == "__main__":
    serve(*sys.argv[1:4])
