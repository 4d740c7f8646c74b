"""The catalog: which file became which session, so that an import can go on, be checked, exported and undone.

Rule: it is a session of the store itself (`shardstore-migrate`, archived so that listings leave it out), one entry for
each change of what is known of a file; the latest entry of a path counts. It is written only after what it says was
proved and is durable. So a crash costs knowledge at most, never truth: what is in the store without an entry is
compared with its file by the next run, and taken over.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

import msgspec

import shardstore

__all__ = ["CATALOG_ID", "Catalog", "Entry", "Range", "path_of", "records_of", "text_of"]

CATALOG_ID = "shardstore-migrate"

State = Literal["imported", "replaced", "undone"]
Range = tuple[int, int]  # first and last seq


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one file.

    `path` is absolute (see `text_of`), `name` its part below the folder that was searched. `ranges` are the seqs of the
    session that hold the file's first `size` bytes, whose SHA-256 is `sha256`; between them lie what others appended.
    `lane` is what its labeller remembered at the end, `mode` and `mtime_ns` are the file's, `dev` and `ino` tell it by
    another name. `damage` counts lines by kind. `state`: `replaced` (the path holds another file by now), `undone`.
    `derived` are the sessions made from the file beside its own, with the seqs there that came from it; `expanded` is
    how many of the file's bytes were expanded into one of them, if it is compressed.
    """

    path: str
    name: str
    format: str
    agent: str
    session: str
    lane: str
    size: int
    lines: int
    sha256: str
    mtime_ns: int
    mode: int
    dev: int
    ino: int
    ranges: list[Range]
    damage: dict[str, int] = {}
    state: State = "imported"
    derived: dict[str, list[Range]] = {}
    expanded: int = 0

    @property
    def last(self) -> int:
        """The last seq that came from the file; 0 if it is empty."""
        return _last_of(self.ranges)


class Catalog:
    """Reads and extends the catalog of a store. Several processes may; the later entry of a path counts."""

    def __init__(self, store: shardstore.Store) -> None:
        self._session = store.session(CATALOG_ID)
        self._seen = 0
        self._is_archived = False
        self._entries: dict[str, Entry] = {}

    def refresh(self) -> None:
        """Read what was added since the last time. Raises Deleted, with what to do, if the catalog was deleted."""
        try:
            for record in self._session.records(self._seen + 1):
                for line in record.lines() if record.kind != "control" else ():
                    entry = _decode(line)
                    self._entries.pop(entry.session, None)
                    self._entries[entry.session] = entry  # the latest last
                self._seen = record.seq
        except shardstore.Deleted as error:
            what = "what knows this store's imports was deleted; export its sessions, import into another store"
            raise shardstore.Deleted(f"{what} session={CATALOG_ID}") from error
        except shardstore.NotFound:
            return

    def add(self, entries: Iterable[Entry], *, gone: Collection[str] = ()) -> None:
        """Add entries, durably, all or none. They keep what others told of derived sessions, but for those `gone`."""
        told = list(entries)
        if told:
            self.refresh()
            lines = [msgspec.json.encode(self._kept(entry, gone)) + b"\n" for entry in told]
            self._session.append(lines, kind="event", source=CATALOG_ID)
            if not self._is_archived:
                if not self._session.info().archived:
                    self._session.archive()
                self._is_archived = True
            self.refresh()

    def _kept(self, entry: Entry, gone: Collection[str]) -> Entry:
        before = self.latest(entry)
        derived = dict(entry.derived)
        for id_, ranges in before.derived.items():
            if id_ not in gone:
                derived[id_] = max(ranges, derived.get(id_, ranges), key=_last_of)
        expanded = entry.expanded if gone else max(entry.expanded, before.expanded)
        return msgspec.structs.replace(entry, derived=derived, expanded=expanded)

    def latest(self, entry: Entry) -> Entry:
        """Return what is known by now of the session of an entry."""
        return self._entries.get(entry.session, entry)

    def entries(self) -> list[Entry]:
        """Return the latest entry of each session that a file became, in the order in which they were made."""
        return list(self._entries.values())

    def taken(self) -> set[str]:
        """Return the ids of all sessions that files became, and of those that were made from files beside them."""
        return {id_ for entry in self._entries.values() for id_ in (entry.session, *entry.derived)}

    def current(self) -> dict[str, Entry]:
        """Return the entry of each path that is imported now."""
        return {entry.path: entry for entry in self._entries.values() if entry.state == "imported"}


def _last_of(ranges: list[Range]) -> int:
    return ranges[-1][1] if ranges else 0


_decoder = msgspec.json.Decoder(Entry)


def _decode(line: bytes) -> Entry:
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise shardstore.Corrupt(f"the catalog holds a line not its own session={CATALOG_ID!r} {error}") from error


def records_of(store: shardstore.Store, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """Yield (seq, bytes) of what came from the file, in order: together they are its first `size` bytes.

    A last line that had no newline when it was imported, and got one later, is followed by it. Raises NotFound,
    Deleted, Corrupt, Unavailable.
    """
    session = store.session(entry.session, create=False)
    session.head()  # NotFound and Deleted, for an empty file too
    last, size, ended = 0, 0, True
    for begin, end in entry.ranges:
        for record in session.records(begin, end, kind=("turn", "event")):
            if last and record.payload and not ended:
                yield last, b"\n"
                size += 1
            yield record.seq, record.payload
            last, ended = record.seq, record.payload.endswith(b"\n")
            size += len(record.payload)
    if last and not ended and size < entry.size:
        yield last, b"\n"


def text_of(path: str) -> str:
    """Return an absolute path as text that JSON carries; one that is no UTF-8 as `bytes:` and hex digits."""
    raw = os.fsencode(path)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + raw.hex()


def path_of(text: str) -> str:
    """Return the path that `text_of` made text of."""
    return os.fsdecode(bytes.fromhex(text[6:])) if text.startswith("bytes:") else text
