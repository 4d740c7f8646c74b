"""Bars 1 and 2: one writer, against the very same system calls made bare; bar 10: what group commit brings.

Rule: the bare loop is what `strace` shows of an append, in that order. Durable: getrandom (the nonce),
openat(O_CREAT|O_EXCL), writev, fdatasync, linkat, pwrite (the hint), close, unlinkat, fsync (folder), newfstatat of
the manifest. Unsynced: getrandom, openat(O_TMPFILE), writev, linkat, pwrite, close, newfstatat.
Change it together with the engine. Both sides lie in one store and take turns in one process, a batch at a time, so
that whatever else the machine does falls on both.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import shardstore
from benchmarks import fresh
from benchmarks.report import Row
from benchmarks.workshop import Workshop, fresh_name, kib_line

__all__ = ["group_commit", "single_durable", "single_unsynced"]

THREADS = 16
_HINT = struct.Struct("<Q")
_NAMED = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Bare:
    """Appends beside the shards of a session that holds one record, with nothing but system calls.

    The folder lies in the session's own, so that ext4 places both sides' files in one block group.
    """

    def __init__(self, folder: str, *, durable: bool) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        os.mkdir(os.path.join(folder, "bare"), 0o700)
        self.folder = os.open(folder, flags)
        self.shards = os.open("bare", flags, dir_fd=self.folder)
        self.hint = os.open("bare-head", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.folder)
        self.durable = durable
        self.seq = 1
        self.temps = f".tmp-{os.getpid()}-{os.urandom(8).hex()}-"
        with open(os.path.join(folder, "shards", f"{1:020d}.shard"), "rb") as shard:
            self.header = shard.readline()

    def append(self, payload: bytes) -> None:
        """Make the system calls of an append."""
        seq, shards = self.seq + 1, self.shards
        os.urandom(16)
        name = f"{seq:020d}.shard"
        if self.durable:
            temp = f"{self.temps}{seq}"
            fd = os.open(temp, _NAMED, 0o600, dir_fd=shards)
        else:
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=shards)
        os.writev(fd, (self.header, payload))
        if self.durable:
            os.fdatasync(fd)
            os.link(temp, name, src_dir_fd=shards, dst_dir_fd=shards, follow_symlinks=False)
        else:
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=shards, dst_dir_fd=shards, follow_symlinks=True)
        os.pwrite(self.hint, _HINT.pack(seq), 0)
        os.close(fd)
        if self.durable:
            os.unlink(temp, dir_fd=shards)
            os.fsync(shards)
        os.stat("manifest.json", dir_fd=self.folder, follow_symlinks=False)
        self.seq = seq

    def payloads(self) -> list[bytes]:
        """Return what was appended."""
        out = []
        for seq in range(2, self.seq + 1):
            fd = os.open(f"{seq:020d}.shard", os.O_RDONLY, dir_fd=self.shards)
            out.append(os.read(fd, 1 << 16).partition(b"\n")[2])
            os.close(fd)
        return out


def turns(path: str, durability: shardstore.Durability, rounds: int, batch: int) -> dict[str, list[float]]:
    """Subject: append batches by the engine and bare, in turns; return microseconds an append, a batch each."""
    store = shardstore.open(path, durability=durability, compact_shards=None)
    session = store.session(fresh_name())
    session.append(kib_line(0))
    bare = _Bare(os.path.join(path, os.path.dirname(session.files()[0][0])), durable=durability == "sync")
    payloads = [kib_line(number) for number in range(rounds * batch)]
    took: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds):
        piece = payloads[number * batch : (number + 1) * batch]
        sides: list[tuple[str, Callable[[bytes], object]]] = [("ours", session.append), ("bare", bare.append)]
        for side, append in sides if number % 2 else reversed(sides):
            start = time.perf_counter_ns()
            for payload in piece:
                append(payload)
            took[side].append((time.perf_counter_ns() - start) / batch / 1e3)
    assert [record.payload for record in session.records()] == [kib_line(0), *payloads]
    assert bare.payloads() == payloads
    assert not [finding for finding in session.verify() if finding.severity == "damage"]
    return took


def _single(workshop: Workshop, bar: str, durability: str, bound: float, batch: int) -> list[Row]:
    took: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(workshop.many(8)):
        arguments = {"path": workshop.folder(), "durability": durability, "rounds": 40, "batch": batch}
        for side, samples in fresh.call(turns, **arguments).items():
            took[side] += samples
    what = f"1 KiB append, one writer, {durability}, against bare system calls"
    return [Row(bar=bar, what=what, unit="us", ours=took["ours"], other=took["bare"], bound=bound)]


def single_durable(workshop: Workshop) -> list[Row]:
    """Bar 1."""
    return _single(workshop, "single", "sync", 1.1, 10)


def single_unsynced(workshop: Workshop) -> list[Row]:
    """Bar 2."""
    return _single(workshop, "single-unsynced", "none", 1.5, 50)


def threads(path: str, rounds: int, each: int) -> dict[str, list[float]]:
    """Subject: append durably from one thread and from many, in turns; return microseconds an append."""
    session = shardstore.open(path, compact_shards=None).session(fresh_name())
    session.append(kib_line(0))
    took: dict[str, Any] = {"one": [], "many": []}
    payloads = [kib_line(number) for number in range(each * THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for number in range(rounds * 2):
            start = time.perf_counter_ns()
            piece = payloads if number % 2 else payloads[: each * 4]
            seqs = list(pool.map(session.append, piece) if number % 2 else map(session.append, piece))
            took["many" if number % 2 else "one"].append((time.perf_counter_ns() - start) / len(piece) / 1e3)
            found = {record.seq: record.payload for record in session.records(min(receipt.seq for receipt in seqs))}
            assert found == {receipt.seq: payload for receipt, payload in zip(seqs, piece, strict=True)}
    return took


def group_commit(workshop: Workshop) -> list[Row]:
    """Bar 10: durable appends of many threads of one process, as a gain over one thread."""
    took = fresh.call(threads, path=workshop.folder(), rounds=workshop.many(20), each=workshop.size(20, 8))
    what = f"durable 1 KiB appends of {THREADS} threads, as a gain over 1 thread"
    return [Row(bar="group-commit", what=what, unit="us", ours=took["many"], other=took["one"], rule=">=")]
