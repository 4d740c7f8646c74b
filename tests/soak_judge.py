"""The judge of a soak: compares what the store holds with what the workers noted that they were told.

Rule: notes are read before the store and again after it, so that the judgement is right while work goes on: what was
acknowledged by the first reading must be there, and whatever is there must have been asked for by the second one.
Strategy: session by session; every kind of wrong is counted by itself, and the first few are told in words.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from soak_notes import call_of, lines_of, now_ns

import shardstore
from shardstore import Deleted, NotFound, Record, Store

WORDS_MAX = 20  # wrongs told in words
NEVER_NS = 1 << 62
WRONGS = (
    *("lost", "duplicated", "out of order", "invented", "unjustified", "misread"),
    *("damaged", "left over", "leaks", "violations"),
)


class Ack(NamedTuple):
    """One acknowledged append."""

    call: str
    began: int
    ended: int
    seq: int
    nonce: str
    duplicate: bool
    since: int


@dataclass
class Told:
    """What the notes say about one session."""

    began: dict[str, int] = field(default_factory=dict)  # the earliest invocation of each call
    acks: list[Ack] = field(default_factory=list)
    conflicts: list[tuple[int, list[int]]] = field(default_factory=list)
    stolen: list[tuple[str, int]] = field(default_factory=list)
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)
    imported: dict[str, int] = field(default_factory=dict)
    deleting: int = NEVER_NS
    deleted: int = NEVER_NS
    compactions: int = 0


@dataclass
class Report:
    """What a judgement came to; reports of several chapters add up."""

    acknowledged: int = 0
    records: int = 0
    sessions: int = 0
    compactions: int = 0
    deletions: int = 0
    reads: int = 0
    wrongs: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)
    elders: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """True if nothing is wrong."""
        return not self.wrongs.total()

    def wrong(self, kind: str, words: str, times: int = 1) -> None:
        """Count something that must not be."""
        assert kind in WRONGS
        self.wrongs[kind] += times
        if len(self.words) < WORDS_MAX:
            self.words.append(f"{kind}: {words}")

    def add(self, other: dict[str, Any]) -> None:
        """Add another report, as `as_dict` gives it."""
        for name in ("acknowledged", "records", "sessions", "compactions", "deletions", "reads"):
            setattr(self, name, getattr(self, name) + other[name])
        self.wrongs.update(other["wrongs"])
        self.words = (self.words + other["words"])[:WORDS_MAX]

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON can carry."""
        return {**vars(self), "wrongs": dict(self.wrongs)}


def told(folder: Path, chapter: int) -> tuple[dict[str, Told], list[str]]:
    """Read a chapter's notes; also return the violations among them."""
    sessions: dict[str, Told] = {}
    violations = []
    for what, name, *facts in lines_of(folder, chapter):
        if what == "V":
            violations.append(" ".join([name, *facts]).strip())
            continue
        _note(sessions.setdefault(name.strip(), Told()), what, [fact.strip() for fact in facts])
    return sessions, violations


def _note(one: Told, what: str, facts: list[str]) -> None:
    if what == "I":
        one.began[facts[0]] = min(int(facts[1]), one.began.get(facts[0], NEVER_NS))
    elif what == "A":
        call, began, ended, seq, nonce, duplicate, since = facts
        one.acks.append(Ack(call, int(began), int(ended), int(seq), nonce, duplicate == "1", int(since)))
    elif what == "C":
        one.conflicts.append((int(facts[1]), [int(seq) for seq in facts[2].split(",") if seq]))
    elif what == "K":
        one.stolen.append((facts[0], int(facts[1])))
    elif what == "R":
        one.reads.append((int(facts[0]), int(facts[1]), int(facts[2])))
    elif what == "B":
        one.imports[facts[0]] = int(facts[1])
    elif what == "M":
        one.imported[facts[0]] = int(facts[1])
    elif what == "D":
        one.deleting = min(one.deleting, int(facts[0]))
    elif what == "E":
        one.deleted = min(one.deleted, int(facts[0]))
    elif what == "X":
        one.compactions += 1


def judge(folder: Path, store: Store, chapter: int) -> Report:
    """Judge the sessions of a chapter, while work goes on or after it."""
    report = Report()
    before, _ = told(folder, chapter)
    held = {name: _read(store, name) for name in before}
    after, violations = told(folder, chapter)
    for violation in violations:
        report.wrong("violations", violation)
    for name, one in before.items():
        _judge(report, name, one, after[name], held[name])
    return report


def _read(store: Store, name: str) -> list[Record] | str | None:
    """Return the records; None if the session was deleted, or why it can't be read."""
    try:
        return list(store.session(name).records())
    except Deleted:
        return None
    except NotFound:
        return []
    except shardstore.ShardstoreError as error:
        return f"{type(error).__name__} {error}"


def _judge(report: Report, name: str, before: Told, after: Told, held: list[Record] | str | None) -> None:
    report.sessions += 1
    report.acknowledged += len(before.acks)
    report.compactions += before.compactions
    report.reads += len(before.reads)
    if isinstance(held, str):
        report.wrong("damaged", f"{name}: {held}")
        return
    if held is None:
        report.deletions += 1
        if after.deleting == NEVER_NS:
            report.wrong("lost", f"{name} is deleted, and nobody asked for it", max(len(before.acks), 1))
        ghosts = [ack for ack in after.acks if ack.began > after.deleted]
        for ack in ghosts:
            report.wrong("unjustified", f"{name}: {ack.call} was acknowledged after the deletion")
        _order(report, name, after, [])
        return
    report.records += len(held)
    _acknowledged(report, name, before, held)
    _once(report, name, after, held)
    _order(report, name, after, held)
    _conditions(report, name, before, held)
    _prefixes(report, name, before, after, held)


def _acknowledged(report: Report, name: str, before: Told, held: list[Record]) -> None:
    """Everything acknowledged is there, at its seq, with its bytes."""
    for place, record in enumerate(held, 1):
        if record.seq != place:
            report.wrong("lost", f"{name}: there is a gap at {place}")
            break
    for ack in before.acks:
        record = held[ack.seq - 1] if ack.seq <= len(held) else None
        if record is None or record.nonce != ack.nonce or call_of(record.payload) != ack.call:
            report.wrong("lost", f"{name}: {ack.call} was acknowledged at {ack.seq} and is not there")
    for call, count in before.imported.items():
        if [call_of(record.payload) for record in held[:count]] != [f"{call}:{number}" for number in range(count)]:
            report.wrong("lost", f"{name}: the import {call} was acknowledged and is not there")


def _once(report: Report, name: str, after: Told, held: list[Record]) -> None:
    """Nothing is there twice, nothing that nobody asked for, nothing changed."""
    calls: Counter[str] = Counter()
    for record in held:
        call = call_of(record.payload)
        calls[call] += bool(call)
        asked = call in after.began or call.rpartition(":")[0] in after.imports
        if not asked:
            what = call or f"a record of kind {record.kind} from {record.source}"
            report.wrong("invented", f"{name}: {what} at {record.seq} was never asked for")
    for call, times in calls.items():
        if times > 1:
            report.wrong("duplicated", f"{name}: {call} is there {times} times", times - 1)


def _order(report: Report, name: str, after: Told, held: list[Record]) -> None:
    """What was acknowledged before another append began has a smaller seq; and each seq is acknowledged once."""
    calls = {ack.seq: (ack.began, ack.ended, ack.nonce) for ack in after.acks if not ack.duplicate}
    for ack in after.acks:
        if calls.get(ack.seq, (0, 0, ack.nonce))[2] != ack.nonce:
            report.wrong("duplicated", f"{name}: seq {ack.seq} was acknowledged for two records")
    for record in held:
        began = after.began.get(call_of(record.payload))
        if began is not None:
            calls.setdefault(record.seq, (began, NEVER_NS, record.nonce))
    earliest, culprit = NEVER_NS + 1, 0
    for seq in sorted(calls, reverse=True):
        began, ended, _ = calls[seq]
        if earliest < began:
            report.wrong("out of order", f"{name}: {culprit} was acknowledged before {seq} began")
        if ended < earliest:
            earliest, culprit = ended, seq


def _conditions(report: Report, name: str, before: Told, held: list[Record]) -> None:
    """A condition held where it was acknowledged; a conflict names turns that came between; keys lie where they do."""
    turns = [record.seq for record in held if record.kind == "turn"]
    known = set(turns)
    for ack in before.acks:
        if ack.since >= 0 and any(seq in known for seq in range(ack.since + 1, ack.seq)):
            report.wrong("unjustified", f"{name}: {ack.call} at {ack.seq} although a turn lies above {ack.since}")
    for since, seqs in before.conflicts:
        if not seqs or any(seq <= since or seq not in known for seq in seqs):
            report.wrong("unjustified", f"{name}: a conflict above {since} names {seqs}")
    for key, seq in before.stolen:
        if seq > len(held) or held[seq - 1].key != key:
            report.wrong("unjustified", f"{name}: the key {key} was said to lie at {seq}")


def _prefixes(report: Report, name: str, before: Told, after: Told, held: list[Record]) -> None:
    """What readers and followers saw is a prefix, and holds all that was acknowledged before they began."""
    crcs = [0]
    for record in held:
        crcs.append(zlib.crc32(record.nonce.encode(), crcs[-1]))
    highest, top = [], 0
    for ack in sorted(after.acks, key=lambda ack: ack.ended):
        top = max(top, ack.seq)
        highest.append((ack.ended, top))
    for began, reached, crc in before.reads:
        if reached >= len(crcs) or crcs[reached] != crc:
            report.wrong("misread", f"{name}: what a reader saw up to {reached} is no prefix")
        if _known_at(highest, began) > reached:
            report.wrong("misread", f"{name}: a reader that began later missed an acknowledged record above {reached}")


def _known_at(highest: list[tuple[int, int]], moment: int) -> int:
    """Return the highest seq acknowledged before a moment."""
    low, high = 0, len(highest)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if highest[middle][0] < moment else (low, middle)
    return highest[low - 1][1] if low else 0


def delete_all(folder: Path, store: Store, chapter: int, note: Any) -> None:
    """Delete every session of a chapter, whether or not somebody began to, and note it."""
    for name in told(folder, chapter)[0]:
        note(chapter, "D", name, now_ns())
        try:
            store.session(name).delete()
        except NotFound:
            continue
        note(chapter, "E", name, now_ns())


def verify_all(store: Store, report: Report, names: Iterable[str] | None = None) -> None:
    """Verify sessions, all by default; count what is damaged."""
    findings = store.verify() if names is None else [f for name in names for f in store.session(name).verify()]
    for finding in findings:
        if finding.severity == "damage":
            report.wrong("damaged", f"{finding.session}: {finding.what} at {finding.where}")
