"""Random schedules: several actors on one backend, stepped one backend call at a time in a seeded order.

What must hold in the end is the contract: every acknowledged record once and at its seq, no gaps, real-time order,
readers that saw prefixes with everything acknowledged before they began, one winner per condition and per key.
A failure names its seed; the same seed gives the same schedule.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from helpers import assert_real_time, nonces, raw_session
from stepping import Schedule

from shardstore import Conflict, Deleted, NotFound, Receipt, Session
from shardstore.backends.base import Backend
from shardstore.backends.local import LocalBackend, make_root
from shardstore.backends.memory import MemoryBackend

SEEDS = int(os.environ.get("SHARDSTORE_SCHEDULES", "400"))


class Read(NamedTuple):
    began: int
    nonces: list[str]


def unborn(call: Callable[[], Any], otherwise: Any = None) -> Any:
    """Make a call that finds no session if nobody has appended yet."""
    try:
        return call()
    except Deleted:
        raise
    except NotFound:
        return otherwise


class Play:
    """One schedule: the actors' sessions, and what each of them was told."""

    def __init__(self, seed: int, view: Callable[[], Backend], *, quiet: bool = False) -> None:
        self.schedule = Schedule(seed, stickiness=(0.0, 0.5, 0.8, 0.95)[seed % 4])
        self.random = random.Random(seed)
        self.view = view
        self.calls: list[tuple[Receipt, int, int]] = []
        self.reads: list[Read] = []
        self.conditions: list[tuple[int, Receipt | Conflict]] = []
        self.truth = raw_session(view())
        for _ in range(0 if quiet else self.random.randrange(4)):
            self.append(self.truth)
        if not quiet and self.random.random() < 0.5:
            unborn(self.truth.compact)

    def session(self, *, free: bool = False) -> Session:
        session = raw_session(self.schedule.view(self.view(), free=free))
        if self.random.random() < 0.5:
            unborn(session.head)
        return session

    def append(self, session: Session, **options: Any) -> Receipt:
        invoked = self.schedule.tick()
        receipt = session.append({"n": invoked}, **options)
        self.calls.append((receipt, invoked, self.schedule.tick()))
        return receipt

    # -------------------------------------------------------------- actors

    def writer(self) -> None:
        session = self.session()
        for n in range(3):
            self.append(session, kind="event" if n == 1 else "turn")

    def judge(self) -> None:
        session = self.session()
        for _ in range(3):
            since = unborn(session.head, 0)
            try:
                self.conditions.append((since, self.append(session, if_no_turn_since=since)))
            except Conflict as conflict:
                self.conditions.append((since, conflict))

    def keyed(self) -> None:
        session = self.session()
        for key in ("k1", "k2"):
            invoked = self.schedule.tick()
            receipt = session.append({"key": key}, key=key)
            if not receipt.duplicate:
                self.calls.append((receipt, invoked, self.schedule.tick()))
            again = session.append({"key": key}, key=key)
            assert (again.seq, again.nonce, again.duplicate) == (receipt.seq, receipt.nonce, True)

    def compactor(self) -> None:
        session = self.session()
        for _ in range(2):
            unborn(session.compact)

    def free_compactor(self) -> None:
        session = self.session(free=True)
        for _ in range(2):
            unborn(session.compact)

    def reader(self) -> None:
        session = self.session()
        for n in range(3):
            began = self.schedule.tick()
            if n == 1:
                records = unborn(lambda: list(session.records(reverse=True)), [])
                self.reads.append(Read(began, [record.nonce for record in records][::-1]))
            else:
                self.reads.append(Read(began, unborn(lambda: nonces(session), [])))

    def archivist(self) -> None:
        session = self.session()
        unborn(session.archive)
        unborn(session.unarchive)

    def deleter(self) -> None:
        session = self.session()
        session.delete()

    def run(self, *cast: Callable[[], None]) -> None:
        for role in cast:
            self.schedule.actor(role)
        self.schedule.run()

    # -------------------------------------------------------------- judgement

    def check(self) -> None:
        truth = nonces(self.truth)
        assert len(set(truth)) == len(truth)
        assert sorted(receipt.nonce for receipt, _, _ in self.calls) == sorted(truth)
        for receipt, _, _ in self.calls:
            assert truth[receipt.seq - 1] == receipt.nonce
        assert_real_time([(receipt.seq, invoked, ended) for receipt, invoked, ended in self.calls])
        for read in self.reads:
            assert read.nonces == truth[: len(read.nonces)]
            known = [receipt.seq for receipt, _, ended in self.calls if ended < read.began]
            assert len(read.nonces) >= max(known, default=0)
        self._check_conditions()
        self.truth.compact()
        assert nonces(self.truth) == truth
        assert self.truth.files()[1:] == [] or all("/segments/" in path for path, _ in self.truth.files()[1:])
        assert self.truth.verify() == []

    def _check_conditions(self) -> None:
        turns = {record.seq for record in self.truth.records(kind="turn")}
        for since, outcome in self.conditions:
            if isinstance(outcome, Conflict):
                assert outcome.seqs
                assert set(outcome.seqs) <= {seq for seq in turns if seq > since}
            else:
                assert not {seq for seq in turns if since < seq < outcome.seq}
        keys = [record.key for record in self.truth.records() if record.key]
        assert len(set(keys)) == len(keys)


def play(seed: int, *cast: str, view: Callable[[], Backend] | None = None) -> Play:
    shared = MemoryBackend()
    made = Play(seed, view or (lambda: shared))
    made.run(*[getattr(made, role) for role in cast])
    return made


CASTS = {
    "writers": ("writer", "writer", "writer", "compactor", "compactor", "reader"),
    "judges": ("judge", "judge", "writer", "compactor", "reader"),
    "keys": ("keyed", "keyed", "keyed", "compactor", "reader"),
    "free compactors": ("writer", "writer", "keyed", "judge", "free_compactor", "free_compactor", "reader"),
    "archivist": ("writer", "writer", "free_compactor", "archivist", "reader", "reader"),
}


@pytest.mark.parametrize("cast", CASTS)
def test_every_schedule_keeps_the_contract(cast: str) -> None:
    """Whatever the order of backend calls, the whole contract holds."""
    for seed in range(SEEDS):
        try:
            play(seed, *CASTS[cast]).check()
        except BaseException as error:
            error.add_note(f"seed={seed} cast={cast}")
            raise


def test_schedules_on_files(store_path: str) -> None:
    """The same on the local backend, each actor with its own handles."""
    for seed in range(SEEDS // 10):
        path = f"{store_path}{seed}"
        make_root(path)
        cast = CASTS["free compactors" if seed % 2 else "writers"]
        try:
            play(seed, *cast, view=lambda path=path: LocalBackend(path)).check()  # type: ignore[misc]
        except BaseException as error:
            error.add_note(f"seed={seed}")
            raise


def test_deletion_in_every_schedule() -> None:
    """Deletion meanwhile: each append is acknowledged before it or answers Deleted; nothing is left over."""
    for seed in range(SEEDS):
        made = Play(seed, lambda shared=MemoryBackend(): shared)  # type: ignore[misc]  # noqa: B008
        made.append(made.truth)

        def surviving(role: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                with suppress(Deleted):
                    role()

            return run

        cast = [made.writer, made.writer, made.keyed, made.compactor, made.free_compactor, made.reader, made.deleter]
        cast += [made.deleter] if seed % 2 else []
        try:
            made.run(*[surviving(role) for role in cast])
            with pytest.raises(Deleted):
                made.append(made.truth)
            made.truth.compact()
            backend = made.view()
            assert [list(backend.list(f"sessions/s/{part}")) for part in ("shards", "segments")] == [[], []]
            assert_real_time([(receipt.seq, invoked, ended) for receipt, invoked, ended in made.calls])
            assert len({receipt.seq for receipt, _, _ in made.calls}) == len(made.calls)
            assert made.truth.info().state == "deleted"
        except BaseException as error:
            error.add_note(f"seed={seed}")
            raise


def test_hole_after_a_power_loss_in_every_schedule() -> None:
    """Unsynced shards are gone below one that survived: whoever appends first spends them as `lost`, once for all."""
    for seed in range(SEEDS):
        shared = MemoryBackend()
        born = raw_session(shared)
        before = [born.append({"n": n}).nonce for n in range(6)]
        gone = random.Random(seed).sample(range(1, 6), 1 + seed % 3)
        for seq in gone:
            shared.delete(born._log.keys.shard(seq))
        made = Play(seed, lambda shared=shared: shared, quiet=True)  # type: ignore[misc]
        try:
            made.run(made.writer, made.writer, made.compactor, made.free_compactor, made.keyed)
            records = list(made.truth.records())
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            lost = [record.seq for record in records if (record.kind, record.source) == ("control", "lost")]
            assert lost == sorted(gone)
            assert [r.nonce for r in records[:6] if r.seq not in gone] == [
                nonce for seq, nonce in enumerate(before, 1) if seq not in gone
            ]
            fresh = {receipt.seq: receipt.nonce for receipt, _, _ in made.calls}
            assert {record.seq: record.nonce for record in records[6:]} == fresh
        except BaseException as error:
            error.add_note(f"seed={seed} gone={gone}")
            raise
