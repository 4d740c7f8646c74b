"""Fuzz targets over whole stores: one object of a store is replaced, then everything public is asked of it.

Rule: a reader gets the record that was written, or Corrupt, or UnsupportedFormat; nothing is answered that is neither.
Repair keeps every record that still reads back. Only where the fuzzer forged a right checksum may a record differ, for
then no checksum can tell; every other promise holds there too: typed errors, bounded work, bounded memory.
Strategy: the store is always the same (its random numbers and times are fixed), so a crash can be played again.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fuzzing import PURE, Choices, bounded, edited, sealed_line, sealed_page, sealed_shard
from mishaps import ID, build, damages, fresh

import shardstore
from shardstore import Conflict, Corrupt, NotFound, OutcomeUnknown, Record, Session, UnsupportedFormat
from shardstore.manifest import SegmentRef, decode_manifest
from shardstore.record import decode_shard
from shardstore.segment import TRAILER_BYTES, index_page_range, key_page_range, segment_size

__all__ = ["STORES", "Play", "memory_folder", "playground", "targets", "trial"]

RECORDS, COMPACTED = 14, (9, 11)
DURABILITIES = ("sync", "none")
HOLES_MAX = 64
SEGMENT_SUFFIX = ".segment"
READ_ERRORS = (Corrupt, UnsupportedFormat, NotFound)
WRITE_ERRORS = (*READ_ERRORS, Conflict, OutcomeUnknown)
GROWTH_BYTES_MAX = 1 << 20  # what repairing and appending may add to a store of some kilobytes
VOUCHED_BYTES = 1 << 20  # a manifest with a right checksum vouches for records; repair writes `lost` for those missing


class Template(NamedTuple):
    """A store as it was: its files, and what it holds."""

    files: dict[str, bytes]
    records: list[Record]


@contextmanager
def _always_the_same() -> Iterator[None]:
    """Let random numbers and times be the same in every process, so that a crash found in one plays in another."""
    numbers, clock = random.Random(7), itertools.count(1_700_000_000_000_000_000, 1_000_000_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", numbers.randbytes)
        patch.setattr(time, "time_ns", lambda: next(clock))
        yield


def template(durability: str) -> Template:
    """Return a store with two segments (1..9, 10..11), shards 12..14, and a key at every third record."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder, _always_the_same():
        records = build(folder, RECORDS, compact_at=COMPACTED, durability=durability)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    return Template(files, records)


def memory_folder() -> str | None:
    """Return a folder in memory where this machine has one: a fuzzer makes thousands of stores."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Play:
    """A place for stores, one after another, and what they are made from."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store"
        self.templates = [template(durability) for durability in DURABILITIES]

    def lay(self, files: dict[str, bytes]) -> None:
        """Write a store's files, and nothing else."""
        shutil.rmtree(self.path, ignore_errors=True)
        for name, data in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)


@contextmanager
def playground() -> Iterator[Play]:
    """Return a place for stores that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="shardstore-fuzz-", dir=memory_folder()) as folder:
        yield Play(Path(folder))


# ------------------------------------------------------------------ what is asked of each store


class Trial:
    """Asks everything of one store; raises AssertionError for a promise that is broken."""

    def __init__(self, play: Play, before: list[Record], *, forged: bool) -> None:
        self.before = {record.seq: record for record in before}
        self.forged = forged
        self.path = play.path
        self.mended = False

    def run(self) -> None:
        """Read, write, repair, and all of it again."""
        try:
            store, session = fresh(self.path)
        except (Corrupt, UnsupportedFormat):
            if shardstore_repaired(self.path):
                store, session = fresh(self.path)
            else:
                return
        with store:
            self.read(session)
            store.verify()
            self.write(session)
            self.read(session)
            self.mend(store, session)

    def attempt(self, call: Callable[[], Any], *errors: type[Exception]) -> Any:
        """Make a call that may raise some typed errors; None then."""
        try:
            return call()
        except (*READ_ERRORS, *errors):
            return None

    def read(self, session: Session) -> None:
        """Every way of reading gives records as they were, or says that they are damaged."""
        self.attempt(lambda: self.check(session.records()))
        self.attempt(lambda: self.check(session.records(reverse=True), step=-1))
        self.attempt(lambda: self.check(session.last(3)))
        for seq in (1, 9, 10, 12, 14):
            self.attempt(lambda seq=seq: self.check(session.records(seq, seq)))
        self.attempt(lambda: self.check_view(session.read_jsonl()))
        self.attempt(lambda: list(session.entries(invalid="raw")))
        self.attempt(lambda: list(session.entries(kind="event", invalid="raw")))
        for call in (session.head, session.info, session.describe, session.files, session.verify):
            self.attempt(call)

    def check(self, records: Any, step: int = 1) -> None:
        """Records come in order; each is the one that was written, unless a checksum was forged."""
        last = None
        for record in records:
            assert last is None or record.seq == last + step, "a gap"
            last = record.seq
            assert self.forged or self.same(record), f"a wrong record {record}"

    def same(self, record: Record) -> bool:
        """Say whether a record is as it was written, or says that it is lost."""
        lost = (record.kind, record.source, record.payload) == ("control", "lost", b"")
        if lost or record.payload.startswith(b"new ") or record == self.before.get(record.seq):
            return True
        old = self.before.get(record.seq)  # repair keeps a payload whose header alone was hurt
        return self.mended and old is not None and (record.kind, record.payload) == (old.kind, old.payload)

    def check_view(self, view: bytes) -> None:
        """A view holds the lines that were written, in order."""
        wanted = iter([line for record in self.before.values() for line in record.lines()])
        for line in view.splitlines(keepends=True):
            assert self.forged or line.startswith(b"new ") or line in wanted, f"a wrong line {line!r}"

    def write(self, session: Session) -> None:
        """Every way of writing is acknowledged or refused with a typed error; what was acknowledged is there."""
        keys = [{"key": key} for key in ("key-3", "key-6", "key-9", "key-12", "fresh")]
        for options in ({}, *keys, {"if_no_turn_since": 5}, {"if_no_turn_since": 14}):
            payload = b"new %r\n" % len(options)
            receipt = self.attempt(lambda p=payload, o=options: session.append(p, **o), *WRITE_ERRORS)  # type: ignore[misc]
            if receipt is not None and not receipt.duplicate and not self.forged:
                (record,) = session.records(receipt.seq, receipt.seq)
                assert (record.nonce, record.payload) == (receipt.nonce, payload)
        self.attempt(session.compact, *WRITE_ERRORS)

    def mend(self, store: shardstore.Store, session: Session) -> None:
        """Repair keeps what read back before it, and leaves a store that reads, verifies, appends and compacts."""
        readable = self.readable(session)
        found = store.repair()
        self.mended = True
        if not self.forged and "newer-format" not in {finding.what for finding in found}:
            assert damages(store.verify()) == [], "repair left damage"
            after = self.readable(fresh(self.path)[1])
            assert all(after.get(seq) == record for seq, record in readable.items()), "repair lost a record"
        self.read(session)
        self.write(session)
        self.attempt(session.archive, *WRITE_ERRORS)
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        assert self.forged or size < GROWTH_BYTES_MAX, "a small store grew without measure"
        self.attempt(session.delete, *WRITE_ERRORS)

    def readable(self, session: Session) -> dict[int, Record]:
        """Return every record that reads back by itself."""
        head = self.attempt(session.head) or 0
        found: dict[int, Record] = {}
        for seq in range(1, min(head, RECORDS * 2) + 1):
            for record in self.attempt(lambda seq=seq: list(session.records(seq, seq))) or ():
                found[seq] = record
        return found


def shardstore_repaired(path: Path) -> bool:
    """Say whether a store file that could not be read is whole again."""
    try:
        shardstore.repair_store(path)
    except (UnsupportedFormat, NotFound):
        return False
    return True


# ------------------------------------------------------------------ what is done to each store


def _named(files: dict[str, bytes], choices: Choices, suffix: str) -> str:
    chosen = sorted(name for name in files if name.endswith(suffix))
    return chosen[choices.number(len(chosen))]


def any_bytes(files: dict[str, bytes], choices: Choices) -> bool:
    """Replace any object by any bytes."""
    name = sorted(files)[choices.number(len(files))]
    whole = files[name]
    files[name] = choices.rest()
    return name.endswith(".shard") and files[name] != whole and _opens(files[name])


def _opens(data: bytes) -> bool:
    """Say whether these bytes are a whole shard, so that no checksum tells that it is another one."""
    try:
        decode_shard(data, what="fuzz")
    except (Corrupt, UnsupportedFormat):
        return False
    return True


def any_edits(files: dict[str, bytes], choices: Choices) -> bool:
    """Edit any object, as a disk or a person would."""
    name = sorted(files)[choices.number(len(files))]
    files[name] = edited(files[name], choices)
    return False


def forged_shard(files: dict[str, bytes], choices: Choices) -> bool:
    """Edit a shard and close it with a right checksum."""
    name = _named(files, choices, ".shard")
    files[name] = sealed_shard(edited(files[name], choices))
    return True


def forged_lines(files: dict[str, bytes], choices: Choices) -> bool:
    """Edit the manifest or the store's file and close it with a right checksum."""
    name = _named(files, choices, ".json")
    files[name] = sealed_line(edited(files[name], choices))
    return True


def forged_manifest(files: dict[str, bytes], choices: Choices) -> bool:
    """Change facts of the manifest to numbers at the edge of things; the files may follow their new names."""
    name = _named(files, choices, "manifest.json")
    document = json.loads(files[name])
    document.pop("crc32")
    follow = choices.number(2)
    for _ in range(choices.number(3) + 1):
        segment = document["segments"][choices.number(2)]
        pick = choices.number(len(document) + 2 * len(segment))
        if pick < len(document):
            document[sorted(document)[pick]] = _fact(choices)
            if not isinstance(document["segments"], list) or len(document["segments"]) < 2:
                break
        else:
            field = sorted(segment)[pick % len(segment)]
            segment[field] = choices.integer() if choices.number(8) else _fact(choices)
    files[name] = sealed_line(json.dumps(document, separators=(",", ":")).encode()[:-1] + b" " * 21)
    if follow:
        _follow_names(files, document)
    return True


def _fact(choices: Choices) -> object:
    values = ("deleted", "closing", "none", True, None, [], "x" * 40, 1.5, {})
    pick = choices.number(len(values) + 8)
    return values[pick] if pick < len(values) else choices.integer()


def _follow_names(files: dict[str, bytes], document: dict[str, Any]) -> None:
    """Rename the segments to what the manifest calls them, where that is a name at all."""
    old = sorted(name for name in files if name.endswith(SEGMENT_SUFFIX))
    listed = document["segments"] if isinstance(document["segments"], list) else []
    for name, facts in zip(old, listed, strict=False):
        numbers = [facts[field] for field in ("first", "last", "base")]
        if all(type(number) is int and number >= 0 for number in numbers) and isinstance(facts["nonce"], str):
            first, last, base = numbers
            new = f"{first:020d}-{last:020d}-{base}-{facts['nonce']}{SEGMENT_SUFFIX}"
            files[f"{os.path.dirname(name)}/{new[:250]}"] = files.pop(name)


def forged_segment(files: dict[str, bytes], choices: Choices) -> bool:
    """Change numbers in a segment's footer and close each page with a right checksum."""
    value = decode_manifest(files[f"sessions/{ID}/manifest.json"], what="template")
    number = choices.number(2)
    segment = value.segments[number]
    name = sorted(name for name in files if name.endswith(SEGMENT_SUFFIX))[number]
    data = bytearray(files[name])
    pages = [index_page_range(segment, 0)] + ([key_page_range(segment, 0)] if segment.keys else [])
    pages.append((segment.size - TRAILER_BYTES, TRAILER_BYTES))
    for _ in range(choices.number(4) + 1):
        start, length = pages[choices.number(len(pages))]
        at, width = start + choices.number(length - 4) // 4 * 4, (4, 8)[choices.number(2)]
        at = min(at, start + length - 4 - width)
        data[at : at + width] = (choices.integer() % 2 ** (8 * width)).to_bytes(width, "little")
        data[start : start + length] = sealed_page(bytes(data[start : start + length - 4]))
    files[name] = bytes(data)
    return True


def forged_facts(files: dict[str, bytes], choices: Choices) -> bool:
    """Change the footer and the manifest, so that they agree on something that can't be."""
    forged_segment(files, choices)
    name = f"sessions/{ID}/manifest.json"
    value = decode_manifest(files[name], what="template")
    at = choices.number(2)
    old = value.segments[at]
    numeric = [field.name for field in fields(SegmentRef) if field.name in ("data", "keys", "size", "last")]
    changed = replace(old, **{numeric[choices.number(len(numeric))]: choices.integer()})
    if choices.number(2):  # a size that agrees with the rest
        changed = replace(changed, size=segment_size(changed.data, changed.last - changed.first + 1, changed.keys))
    segments = (*value.segments[:at], changed, *value.segments[at + 1 :])
    document = {field.name: getattr(value, field.name) for field in fields(value)}
    document["watermark"] = segments[-1].last
    document["segments"] = [{field.name: getattr(one, field.name) for field in fields(one)} for one in segments]
    files[name] = sealed_line(json.dumps(document, separators=(",", ":")).encode()[:-1] + b" " * 21)
    _follow_names(files, document)
    return True


STORES: dict[str, Callable[[dict[str, bytes], Choices], bool]] = {
    "any_bytes": any_bytes,
    "any_edits": any_edits,
    "forged_shard": forged_shard,
    "forged_lines": forged_lines,
    "forged_manifest": forged_manifest,
    "forged_segment": forged_segment,
    "forged_facts": forged_facts,
}


@contextmanager
def _narrow_holes() -> Iterator[None]:
    """Let the widest gap that is filled be a narrow one: filling 65,536 slots is right, and takes too long here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("log", "writer", "verify", "repair"):
            patch.setattr(f"shardstore.{module}.HOLES_MAX", HOLES_MAX)
        yield


def trial(play: Play, name: str, data: bytes, *, memory: bool = False) -> None:
    """Hurt a store as `data` says, and ask everything of it."""
    choices = Choices(data)
    chosen = play.templates[choices.number(len(play.templates))]
    files = dict(chosen.files)
    forged = STORES[name](files, choices)
    play.lay(files)
    size = sum(map(len, files.values())) + (VOUCHED_BYTES if forged else 0)
    with bounded(size, memory=memory), _narrow_holes():
        Trial(play, chosen.records, forged=forged).run()


def seeds_of_stores(play: Play, name: str) -> list[bytes]:
    """Return inputs that reach every object; for `any_bytes` they leave the store as it is."""
    chosen = play.templates[0].files
    if name == "any_bytes":
        return [bytes((0, number)) + chosen[file] for number, file in enumerate(sorted(chosen))]
    return [
        bytes((durability, number)) + bytes(range(number, number + 40)) for durability in (0, 1) for number in range(12)
    ]


def targets(play: Play) -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Return every target by name, of objects and of stores, with its seeds."""
    found = {name: (run, seeds()) for name, (run, seeds) in PURE.items()}
    for name in STORES:
        found[name] = (partial(trial, play, name), seeds_of_stores(play, name))
    return found
