"""Salvaging: the whole entries that can be cut out of damaged lines, into a session beside the file's own.

Rule: the file's session stays the file, byte for byte; what was rescued lies in `<session>.salvaged`, under keys that
name where each entry came from, so that it may be repeated. The catalog is told once all of it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec

import shardstore

from .catalog import Catalog, Entry, Range, path_of
from .damage import Inspector
from .finding import fitted
from .importing import IDS_MAX, Outcome
from .lines import SourceFile
from .salvage import LINE_BYTES_MAX, rescued, rescued_file
from .sources import format_of
from .unpacking import is_packed

__all__ = ["salvaged"]

KEY = "salvage:"


def salvaged(store: shardstore.Store, catalog: Catalog, outcome: Outcome) -> Outcome:
    """Rescue what the damaged lines of a file hold; return its outcome, with what hindered that as its error."""
    entry = outcome.entry
    if entry is None or not entry.damage or is_packed(entry.name):
        return outcome
    try:
        return replace(outcome, entry=_salvage(store, catalog, entry))
    except (OSError, shardstore.ShardstoreError) as error:
        return replace(outcome, error=error)


def _salvage(store: shardstore.Store, catalog: Catalog, entry: Entry) -> Entry:
    catalog.refresh()
    entry = catalog.latest(entry)  # another run may have made the session meanwhile
    labeller = format_of(entry.format).labeller(entry.lane)
    session: shardstore.Session | None = None
    seqs: list[int] = []
    for place, found in _rescued(entry):
        session = session or _session_for(store, catalog, entry)
        kind, lane, at_ms = labeller.label(found)
        seqs.append(session.append(found, kind=kind, source=lane, key=KEY + place, at_ms=at_ms).seq)
    if session is None:
        return entry
    told = msgspec.structs.replace(entry, derived={**entry.derived, session.id: _ranges(seqs)})
    if told != entry:
        catalog.add([told])
    return told


def _rescued(entry: Entry) -> Iterator[tuple[str, bytes]]:
    """Yield what can be cut out of the lines of a file, and where each piece comes from. Raises OSError."""
    with SourceFile(path_of(entry.path)) as source:
        if "utf-16" in entry.damage:
            if source.status.st_size > LINE_BYTES_MAX:
                raise shardstore.InvalidRequest(f"a file in UTF-16 is too long to salvage bytes_max={LINE_BYTES_MAX}")
            raw = b"".join(line for batch in source.batches() for line in batch)
            yield from ((f"0:{number}", found) for number, found in enumerate(rescued_file(raw)))
            return
        inspector, offset = Inspector(), 0
        for line in (line for batch in source.batches() for line in batch):
            if inspector.line(line):
                whole = rescued(line)
                for number, found in enumerate(whole if whole != [line] else ()):
                    yield f"{offset}:{number}", found
            offset += len(line)


def _session_for(store: shardstore.Store, catalog: Catalog, entry: Entry) -> shardstore.Session:
    """Return the session that holds what was salvaged before, also by a run that was killed, or a new one."""
    taken = catalog.taken() - entry.derived.keys()
    for number in range(1, IDS_MAX):
        id_ = fitted(entry.session, ".salvaged" if number == 1 else f".salvaged~{number}")
        if id_ not in taken and _may_be_ours(session := store.session(id_)):
            return session
    raise shardstore.Unavailable(f"no id is free for what was salvaged in {IDS_MAX} session={entry.session!r}")


def _may_be_ours(session: shardstore.Session) -> bool:
    """Say whether a session holds what was salvaged, or does not exist yet."""
    try:
        first = next(session.records(1, 1), None)
    except shardstore.Deleted:
        return False
    except shardstore.NotFound:
        return True
    return first is None or (first.key or "").startswith(KEY)


def _ranges(seqs: Iterable[int]) -> list[Range]:
    ranges: list[Range] = []
    for seq in sorted(seqs):
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return ranges
