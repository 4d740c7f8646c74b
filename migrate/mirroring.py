"""Mirroring: what a file has gained since it was imported, appended to its session line by line.

Rule: each line is appended under a key that names its place in the file (`mirror:<byte offset>`), so a repeat after a
crash commits it once. Only a file whose beginning still is what was imported may go on in the same session; the offset
and the hash in its entry say what that was, with the lines that a killed follower appended after it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

import shardstore

from .catalog import Entry, Range, records_of
from .damage import Inspector
from .lines import SourceFile, holds_lines
from .sources import format_of

__all__ = ["Rewritten", "append_lines", "caught_up", "extends"]


_OF_A_WHOLE_FILE = ("empty-file", "header-only")
_OUTGROWN = (*_OF_A_WHOLE_FILE, "no-final-newline")  # whatever follows put an end to it


class Rewritten(Exception):  # noqa: N818
    """The file can't go on in its session: it was truncated, or goes on with a line that was imported as it stood."""


def extends(source: SourceFile, entry: Entry) -> bool:
    """Read over what was imported; say whether the file still begins with it."""
    return source.skip(entry.size) and source.sha256() == entry.sha256


def caught_up(store: shardstore.Store, entry: Entry) -> Entry:
    """Return the entry with the lines that were appended for its file since it was made. Raises Corrupt, Unavailable.

    Without them a file that was cut to what the entry says would go on in a session that holds more.
    """
    labeller = format_of(entry.format).labeller(entry.lane)
    inspector = Inspector()
    ranges: list[Range] = list(entry.ranges)
    size, lines = entry.size, entry.lines
    try:
        for record in store.session(entry.session, create=False).records(entry.last + 1):
            if lines == entry.lines and record.key == f"mirror:{size + 1}":
                size += 1  # the newline that the last line lacked
            elif record.key != f"mirror:{size}":
                continue  # it is others'
            labeller.label(record.payload)
            inspector.line(record.payload)
            _extend(ranges, record.seq)
            size += len(record.payload)
            lines += 1
        if lines == entry.lines:
            return entry
        damage = _added(entry, inspector.finish() if holds_lines(entry.name) else {})
        more = {"lane": labeller.lane, "size": size, "lines": lines, "ranges": ranges, "damage": damage}
        whole = msgspec.structs.replace(entry, **more)
        digest = hashlib.sha256()
        for _, payload in records_of(store, whole):
            digest.update(payload)
    except (shardstore.NotFound, shardstore.Deleted):
        return entry
    return msgspec.structs.replace(whole, sha256=digest.hexdigest())


def append_lines(
    store: shardstore.Store,
    entry: Entry,
    source: SourceFile,
    *,
    unfinished: bool = True,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> Entry:
    """Append the lines of `source` that come after what `entry` says, which has been read over; return the new entry.

    A last line without a newline only if `unfinished`. Whoever calls adds the entry to the catalog. Raises Rewritten,
    OSError, and what Session.append raises; what was appended by then will not be appended again.
    """
    session = store.session(entry.session, create=False)
    labeller = format_of(entry.format).labeller(entry.lane)
    inspector = Inspector()
    ranges: list[Range] = list(entry.ranges)
    at_ms = source.at_ms
    dangling = bool(entry.size) and not source.ends_line()
    offset = entry.size
    mark = source.mark()
    for batch in source.batches(unfinished=unfinished):
        if not source.holds(mark):  # truncated meanwhile: these lines never followed those
            raise Rewritten(entry.path)
        mark = source.mark()
        for line in batch:
            own = line
            if dangling:  # the view puts the newline in its place by itself
                if own != b"\n":
                    raise Rewritten(entry.path)
                dangling = False
                offset += 1
                continue
            kind, lane, own_ms = labeller.label(own)
            inspector.line(own)
            at_ms = own_ms if own_ms is not None else at_ms
            try:
                receipt = session.append(own, kind=kind, source=lane, key=f"mirror:{offset}", at_ms=at_ms)
            except shardstore.Conflict as error:  # a killed run took an unfinished line for a whole one
                raise Rewritten(entry.path) from error
            _extend(ranges, receipt.seq)
            offset += len(line)
        advance(sum(map(len, batch)))
    return _grown(
        entry,
        source,
        ranges,
        labeller.lane,
        inspector.finish() if offset > entry.size and holds_lines(entry.name) else {},
    )


def _extend(ranges: list[Range], seq: int) -> None:
    if ranges and ranges[-1][1] == seq - 1:
        ranges[-1] = (ranges[-1][0], seq)
    else:
        ranges.append((seq, seq))


def _grown(entry: Entry, source: SourceFile, ranges: list[Range], lane: str, damage: dict[str, int]) -> Entry:
    has_grown = source.size > entry.size
    status = source.status
    return msgspec.structs.replace(
        entry,
        lane=lane,
        size=source.size,
        lines=source.lines if has_grown else entry.lines,
        sha256=source.sha256(),
        mtime_ns=status.st_mtime_ns,
        dev=status.st_dev,
        ino=status.st_ino,
        ranges=ranges,
        damage=_added(entry, damage) if has_grown else entry.damage,
    )


def _added(entry: Entry, damage: dict[str, int]) -> dict[str, int]:
    """Return the damage of a file that has grown: what there was, without what whole lines outgrow, and more."""
    before = {kind: count for kind, count in entry.damage.items() if kind not in _OUTGROWN}
    more = {kind: count for kind, count in damage.items() if kind not in _OF_A_WHOLE_FILE or not entry.size}
    return {kind: before.get(kind, 0) + more.get(kind, 0) for kind in {**before, **more}}
