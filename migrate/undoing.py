"""Undo: what an import brought leaves the store again, unless somebody has appended to it since.

Rule: a session, the file's own or one made from it, is deleted only if the log holds nothing but what came from the
file (a `lost` record is nobody's: an append that was never acknowledged). First an entry's sessions are deleted, then
the catalog is told. A crash between the two leaves an entry whose sessions answer Deleted, and repeating the undo
finishes both; the other order would leave a session that nobody knows of. Sources are not looked at, nothing else in
the store is touched, and a deleted id is spent for good: the next import of the file takes another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

import shardstore

from .catalog import Catalog, Entry, Range

__all__ = ["Undone", "undo"]

SOURCES_MAX = 100  # sources told apart in one answer; the rest are counted together
OTHERS = "(others)"
MIRRORED = "(mirrored, not noted yet: import again, then undo)"
LOST = "lost"
KEYS = ("mirror:", "salvage:")


@dataclass(frozen=True, slots=True)
class Undone:
    """What became of a session: `undone`, `stays` (others appended to it; `reason`), or `failed` for `error`'s reason.

    `appended` counts by source what others appended. `late` is how many seqs were taken between the last look and the
    deletion, which took them along: 0 proves that nothing was; any more is at most so many records of others (those
    whose writer was answered Deleted are among them). None: an earlier try deleted it, and that can't be told any more.
    """

    path: str
    session: str
    status: Literal["undone", "stays", "failed"]
    reason: str = ""
    appended: dict[str, int] = field(default_factory=dict)
    late: int | None = 0
    error: Exception | None = None


def undo(store: shardstore.Store, entries: Iterable[Entry]) -> Iterator[Undone]:
    """Delete each session that nobody has appended to since it was imported; yield what became of each.

    A session is `undone` once its bytes are gone and the catalog knows, durably; one that was deleted already, by an
    undo that was killed or by somebody else, too. It may be repeated at any time. What fails is told in `error`,
    and the others go on.

    One race can't be closed from here: a deletion has no condition. Who appends between the last look and the
    deletion, a few system calls later, and is acknowledged in that moment, loses the record. That is noticed afterwards
    and told as `late`, but the record is gone; so undo while no program writes to these sessions.
    """
    catalog = Catalog(store)
    for entry in entries:
        results = [_tried(store, entry.path, id_, ranges) for id_, ranges in _sessions_of(entry).items()]
        try:
            _tell(catalog, entry, {result.session for result in results if result.status == "undone"})
        except (shardstore.ShardstoreError, OSError) as error:
            results = [_failed(entry.path, result.session, error) for result in results]
        yield from results


def _sessions_of(entry: Entry) -> dict[str, list[Range]]:
    own = {entry.session: entry.ranges} if entry.state != "undone" or not entry.derived else {}
    return own | entry.derived


def _tried(store: shardstore.Store, path: str, id_: str, ranges: list[Range]) -> Undone:
    try:
        return _undo(store, path, id_, ranges)
    except (shardstore.ShardstoreError, OSError) as error:
        return _failed(path, id_, error)


def _failed(path: str, id_: str, error: Exception) -> Undone:
    return Undone(path, id_, "failed", f"it could not be undone: {error}", error=error)


def _undo(store: shardstore.Store, path: str, id_: str, ranges: list[Range]) -> Undone:
    session = store.session(id_, create=False)
    last = ranges[-1][1] if ranges else 0
    reason, seen = "", last
    try:
        seen, appended = _look(session, ranges)
        if appended:
            return Undone(path, id_, "stays", _told(appended), dict(appended))
        if seen < last:
            less = f"it holds less than was imported; is it the same session? head={seen} imported={last}"
            return Undone(path, id_, "stays", less)
        session.delete()
    except shardstore.Deleted:
        reason = "it had been deleted already"
        session.delete()  # one that was killed in the middle goes on
    except shardstore.NotFound:
        return Undone(path, id_, "undone", "it was not in the store any more")
    late: int | None = max(session.info().head - seen - 1, 0)  # the deletion is the last record
    if late and reason:
        late = None  # each try of a deletion that was killed took a seq, too
    elif late:
        reason = f"seqs that others took before it was deleted: {late}; what they committed there went with it"
    return Undone(path, id_, "undone", reason, late=late)


def _tell(catalog: Catalog, entry: Entry, gone: set[str]) -> None:
    """Tell the catalog which sessions of an entry are gone; without all derived ones the file is not expanded."""
    derived = {id_: ranges for id_, ranges in entry.derived.items() if id_ not in gone}
    state = "undone" if entry.session in gone else entry.state
    expanded = entry.expanded if len(derived) == len(entry.derived) else 0
    told = msgspec.structs.replace(entry, state=state, derived=derived, expanded=expanded)
    if told != entry:
        catalog.add([told], gone=gone)


def _look(session: shardstore.Session, ranges: list[Range]) -> tuple[int, Counter[str]]:
    """Return the head, and what others appended, counted by source; looked at last where it may still change."""
    appended: Counter[str] = Counter()
    after = 0
    for first, last in ranges:
        if first > after + 1:
            _count(session.records(after + 1, first - 1), appended)
        after = last
    head = session.head()
    if head > after:
        head = max(_count(session.records(after + 1), appended), head)
    return head, appended


def _count(records: Iterator[shardstore.Record], appended: Counter[str]) -> int:
    """Count what is more than a spent seq; return the last seq."""
    seq = 0
    for record in records:
        seq = record.seq
        if record.kind != "control" or record.source != LOST:
            source = MIRRORED if (record.key or "").startswith(KEYS) else record.source
            appended[source if source in appended or len(appended) < SOURCES_MAX else OTHERS] += 1
    return seq


def _told(appended: Counter[str]) -> str:
    sources = ", ".join(f"{source}: {count}" for source, count in appended.most_common(8))
    more = ", …" if len(appended) > 8 else ""
    count = sum(appended.values())
    return f"{count} record{'s' if count > 1 else ''} appended since the import: {sources}{more}"
