"""Bar 11, a report: what `chattr +T` on the folder of sessions does for file creation on ext4.

ext4 skips inodes that were deleted within the last minutes, one by one, whenever it looks for a free one in a block
group. Folders below one marked with +T are spread over block groups, so that a session's compactions slow down the
creations of no other session. The store sets the flag when it is made; one side of this comparison takes it off again.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

import shardstore
from benchmarks import fresh
from benchmarks.report import Row, quantile
from benchmarks.workshop import Workshop, fresh_name, kib_line

__all__ = ["topdir"]

CYCLES = 12
_GET_FLAGS, _SET_FLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000


def _mark(folder: str, *, on: bool) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    flags = struct.unpack("<I", fcntl.ioctl(fd, _GET_FLAGS, b"\0" * 8)[:4])[0]
    fcntl.ioctl(fd, _SET_FLAGS, struct.pack("<Q", flags | _TOPDIR if on else flags & ~_TOPDIR))
    os.close(fd)


def cycles(path: str, spread: bool, count: int) -> list[float]:
    """Subject: append and compact, a new session each cycle; return microseconds of every append."""
    store = shardstore.open(path, durability="none", compact_shards=None)
    store.create("first")
    _mark(os.path.join(path, "sessions"), on=spread)
    payload = kib_line(0)
    took = []
    for _ in range(CYCLES):
        session = store.session(fresh_name())
        for _ in range(count):
            start = time.perf_counter_ns()
            session.append(payload)
            took.append((time.perf_counter_ns() - start) / 1e3)
        assert session.compact().records == count
    return took


def topdir(workshop: Workshop) -> list[Row]:
    """Compare creation with the flag and without, in turns."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(workshop.many(3)):
        for spread in took:
            samples = fresh.call(cycles, path=workshop.folder(), spread=spread, count=workshop.size(2_000, 500))
            took[spread].append(quantile(samples, 0.5))
    what = f"median append over {CYCLES} append/compact cycles with chattr +T, against without"
    return [Row(bar="topdir", what=what, unit="us", ours=took[True], other=took[False])]
