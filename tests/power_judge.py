"""The judge of what a power cut left: opens it with the real engine, uses it, and compares it with what was promised.

Purpose: decide whether one crash image refutes "an acknowledged record is never lost, and no reader sees a wrong one".
Rule: `examine` looks at an image alone: it must open, read as one order without gaps or strangers, verify clean (but
for the hole above everything acknowledged that FORMAT.md describes), take an append with a fresh larger seq, answer a
known key with its old seq, compact, and read the same to everybody all the while. `compare` then holds the outcome
against what had been promised at that moment. So one look at an image serves all moments that could have left it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from mishaps import damages
from power_disk import Effect, Mark

import shardstore
from shardstore import Corrupt, Deleted, InvalidRequest, NotFound, Record, Session, Store
from shardstore.backends import syscalls

Label = tuple[str, str]  # a store's folder, a session's id
AFTERWARDS = b"after the power cut\n"
KEYS_ASKED_MAX = 2


class Violation(AssertionError):  # noqa: N818
    """An image that the promises forbid."""


@dataclass
class Owed:
    """What had been promised of one session at one moment, and what had been asked for."""

    durability: str = "sync"
    born: bool = False
    records: dict[int, tuple[str, bytes]] = field(default_factory=dict)  # must be there
    told: dict[int, tuple[str, bytes]] = field(default_factory=dict)  # must be there or be lost
    begun: set[bytes] = field(default_factory=set)
    deleting: bool = False
    deleted: bool = False
    archived: set[bool] = field(default_factory=lambda: {False})

    def take(self, what: str, *fact: Any) -> None:
        """Take the next fact that a scenario noted about this session."""
        getattr(self, f"_{what}")(*fact)

    def _begun(self, *payloads: bytes) -> None:
        self.begun |= set(payloads)

    def _born(self) -> None:
        self.born = True

    def _acknowledged(self, seq: int, nonce: str, payload: bytes) -> None:
        self.born = self.born or self.durability == "sync"
        (self.records if self.durability == "sync" else self.told)[seq] = (nonce, payload)

    def _kept(self, seq: int, nonce: str, payload: bytes) -> None:
        self.born = True
        self.records[seq] = (nonce, payload)

    def _unsynced(self) -> None:
        self.durability = "none"

    def _deleting(self) -> None:
        self.deleting = True

    def _deleted(self) -> None:
        self.deleted = True

    def _archiving(self, flag: bool) -> None:
        self.archived.add(flag)

    def _archived(self, flag: bool) -> None:
        self.archived = {flag}
        self.born = True


def owe(owed: dict[Label, Owed], effect: Effect) -> None:
    """Take a mark's fact into what is owed; anything else changes nothing."""
    if isinstance(effect, Mark):
        label, *fact = effect.fact  # type: ignore[misc]
        owed.setdefault(label, Owed()).take(effect.what, *fact)


# ------------------------------------------------------------------ an image alone


@dataclass
class Outcome:
    """What one session of an image was: its state, its records before anything was written, the flag, its keys."""

    state: str  # absent, open, deleted, broken
    records: list[tuple[int, str, bytes]] = field(default_factory=list)
    archived: bool = False
    hole: bool = False
    why: str = ""


@contextmanager
def unflushed() -> Iterator[None]:
    """Spare the flushes while images are judged: each lies on a RAM disk and is thrown away."""
    with patch.object(syscalls, "flush_data", _ignored), patch.object(syscalls, "flush_folder", _ignored):
        yield


def _ignored(_: int) -> None:
    return


def examine(path: str, labels: Iterable[Label], *, repair: bool = False) -> dict[Label, Outcome]:
    """Open an image and use it; return what each session was. Raises Violation."""
    outcomes = {}
    for store_name in sorted({store for store, _ in labels}):
        root = os.path.join(path, store_name)
        for label in sorted(label for label in labels if label[0] == store_name):
            try:
                outcomes[label] = _examine(root, label[1], repair=repair)
            except Violation as violation:
                raise Violation(f"{label}: {violation}") from violation
            except (shardstore.ShardstoreError, AssertionError) as error:
                raise Violation(f"{label}: {type(error).__name__}: {error}") from error
    return outcomes


def _open(root: str, *, create: bool = False) -> Store:
    return shardstore.open(root, create=create, compact_shards=None)


def _examine(root: str, session_id: str, *, repair: bool) -> Outcome:
    try:
        store = _open(root)
    except NotFound:
        with _open(root, create=True) as born:
            _require(born.session(session_id).append(AFTERWARDS).seq == 1, "a store that was never there has records")
        return Outcome("absent")
    except (Corrupt, InvalidRequest) as error:
        shardstore.repair_store(root)
        with _open(root) as mended:
            mended.session(session_id).append(AFTERWARDS)
        return Outcome("broken", why=str(error))
    with store:
        if repair:
            with suppress(NotFound):
                store.session(session_id).repair()
        return _session(store, root, session_id)


def _session(store: Store, root: str, session_id: str) -> Outcome:
    reader = store.session(session_id, create=False)
    outcome = _read(reader, root)
    if outcome.state == "absent":
        _require(store.session(session_id).append(AFTERWARDS).seq == 1, "a session that was never there has records")
        return outcome
    if outcome.state == "deleted":
        _stays_deleted(store, session_id)
        return outcome
    _verified(reader, hole=outcome.hole)
    _goes_on(reader, root, session_id, outcome)
    return outcome


def _read(reader: Session, root: str) -> Outcome:
    """Read what is there as a program would that writes nothing."""
    records: list[Record] = []
    hole = False
    try:
        for record in reader.records():
            records.append(record)  # noqa: PERF402
        info = reader.info()
    except Deleted:
        return Outcome("deleted")
    except NotFound:
        return Outcome("absent")
    except Corrupt as error:
        missing = len(records) + 1
        shard = os.path.join(root, "sessions", reader.id, "shards", f"{missing:020d}.shard")
        _require(error.seq == missing and not os.path.exists(shard), f"unreadable at {missing}: {error}")
        hole, info = True, reader.info()
    _in_order(records)
    return Outcome("open", [(r.seq, r.nonce, r.payload) for r in records], info.archived, hole)


def _in_order(records: list[Record]) -> None:
    _require([record.seq for record in records] == list(range(1, len(records) + 1)), "the seqs have a gap")
    payloads = [record.payload for record in records if record.kind != "control"]
    _require(len(set(payloads)) == len(payloads), "a record is there twice")
    for record in records:
        known = record.kind != "control" or record.source in ("lost", "delete")
        _require(known and (record.kind == "control") == (not record.payload), f"a strange record: {record}")


def _verified(reader: Session, *, hole: bool) -> None:
    found = {(finding.what, finding.where) for finding in damages(reader.verify())}
    _require({what for what, _ in found} <= ({"missing-shard"} if hole else set()), f"verify names damage: {found}")


def _goes_on(reader: Session, root: str, session_id: str, outcome: Outcome) -> None:
    """Append, ask for known keys, compact; nobody may see anything else change."""
    with _open(root) as other:
        writer = other.session(session_id, create=False)
        receipt = writer.append(AFTERWARDS)
        after = list(reader.records())
        _in_order(after)
        _require([(r.seq, r.nonce, r.payload) for r in after][: len(outcome.records)] == outcome.records, "changed")
        _require((after[-1].seq, after[-1].nonce) == (receipt.seq, receipt.nonce), "an append is not the last record")
        for record in [record for record in after if record.key is not None][:KEYS_ASKED_MAX]:
            again = writer.append(record.payload, key=record.key)
            _require(again.duplicate and again.seq == record.seq, f"key {record.key!r} was committed twice")
        reader.compact()
        _require(_spent(list(writer.records())) == _spent(after), "compaction changed a record")
        left = os.listdir(os.path.join(root, "sessions", session_id, "shards"))
        _require(not [name for name in left if name.endswith(".shard")], f"compaction left shards: {left}")
    with _open(root) as fresh:
        _require(_spent(list(fresh.session(session_id).records())) == _spent(after), "a later reader sees another log")
        found = damages(fresh.session(session_id).verify())
        _require(not found, f"verify names damage after a compaction: {found}")


def _spent(records: list[Record]) -> list[tuple[Any, ...]]:
    """Return records for comparison; what reads as lost gets a header only when it is compacted."""
    return [(r.seq, r.kind, r.source, r.payload, "" if r.source == "lost" else r.nonce) for r in records]


def _stays_deleted(store: Store, session_id: str) -> None:
    session = store.session(session_id)
    try:
        session.append(AFTERWARDS)
    except Deleted:
        session.delete()
        _require(session.info().state == "deleted", "a repeated deletion does not end")
        _require(not damages(session.verify()), "verify names damage in a deleted session")
        return
    raise Violation("a deleted session took an append")


def _require(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


# ------------------------------------------------------------------ against the promises


def compare(outcomes: dict[Label, Outcome], owed: dict[Label, Owed]) -> int:
    """Hold what was found against what was owed; return how many promises were compared. Raises Violation."""
    compared = 0
    for label, debt in owed.items():
        outcome = outcomes[label]
        try:
            compared += _compare(outcome, debt)
        except Violation as violation:
            raise Violation(f"{label}: {violation}") from violation
    return compared


def _compare(outcome: Outcome, debt: Owed) -> int:
    if debt.deleted:
        _require(outcome.state == "deleted", f"a deleted session is {outcome.state}")
        return 1
    if outcome.state == "deleted":
        _require(debt.deleting, "a session is deleted that nobody deletes")
        return 1
    if outcome.state in ("absent", "broken"):
        _require(
            not debt.born and not debt.records,
            f"a session is {outcome.state} with {len(debt.records)} records {outcome.why}",
        )
        return 0
    found = {seq: (nonce, payload) for seq, nonce, payload in outcome.records}
    missing = sorted(seq for seq, record in debt.records.items() if found.get(seq) != record)
    _require(not missing, f"acknowledged records are lost: {missing} of {len(debt.records)}")
    wrong = [seq for seq, record in debt.told.items() if found.get(seq, ("", b""))[1] not in (b"", record[1])]
    _require(not wrong, f"acknowledged records are others now: {wrong}")
    strangers = [payload for _, payload in found.values() if payload and payload not in debt.begun]
    _require(not strangers, f"nobody wrote this: {strangers[:3]}")
    _require(outcome.archived in debt.archived, f"the archive flag is {outcome.archived}")
    return len(debt.records) + len(debt.told) + (debt.archived == {True})
