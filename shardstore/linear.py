"""Linearizing: entries that were written at once, shown one after the other.

pi and OpenClaw link each entry to its parent (`id`, `parentId`) and take the last line as the leaf, from which they
walk back to the root. So of two writers that answered the same parent only the later one stays in the model's context.

Rule: an entry is shown with its predecessor (the entry shown before it) as parent if its writer can't have known that
one, and had nothing newer to answer: the record's `base` lies before the predecessor, and the parent is the last entry
up to that base (none, if there was none), or a later one (its writer's own). Every other parent was chosen: a
deliberate branch stays, and so does whatever has no base (imported lines have none). The log keeps every byte; nothing
but the value of `parentId` differs in what is shown.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import deque

from shardstore.record import Record, decode_line, split_lines
from shardstore.shapes import OneHeader

__all__ = ["Linear"]

ENTRIES_MAX = 4096  # that are remembered: an entry with an older parent stays as it is


class Linear:
    """The records of one session with one header and one chain; a Shape."""

    def __init__(self) -> None:
        self._headed = OneHeader()
        self._seqs: deque[int] = deque(maxlen=ENTRIES_MAX)  # of the records that the entries were in, in order
        self._ids: deque[str] = deque(maxlen=ENTRIES_MAX)
        self._places: dict[str, int] = {}  # the seq of each of these entries

    def shown(self, record: Record) -> bytes:
        """Return what is shown of the record that follows the one of the call before: nothing, or whole lines."""
        shown = self._headed.shown(record)
        if b'"id"' not in shown:
            return shown
        lines = split_lines(shown)
        return b"".join([self._line(line, record) for line in lines])

    def _line(self, line: bytes, record: Record) -> bytes:
        entry = decode_line(line, record.seq, "raw") if b'"id"' in line else None
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or "parentId" not in entry:
            return line
        parent = entry["parentId"]
        if (parent is None or isinstance(parent, str)) and self._is_concurrent(parent, record.base):
            line = _with_parent(line, parent, self._ids[-1])
        self._remember(entry["id"], record.seq)
        return line

    def _is_concurrent(self, parent: str | None, base: int | None) -> bool:
        """Say whether an entry answers `parent` because its writer could not know the predecessor."""
        if base is None or not self._ids or self._ids[-1] == parent or self._seqs[-1] <= base:
            return False
        known = bisect_right(self._seqs, base)
        if parent is None:
            return not known and len(self._ids) < ENTRIES_MAX
        place = self._places.get(parent)
        return place is not None and (place > base or (known > 0 and self._ids[known - 1] == parent))

    def _remember(self, id_: str, seq: int) -> None:
        if len(self._ids) == ENTRIES_MAX:
            self._places.pop(self._ids[0], None)
        self._ids.append(id_)
        self._seqs.append(seq)
        self._places[id_] = seq


def _with_parent(line: bytes, parent: str | None, other: str) -> bytes:
    """Return the same bytes but for the entry's parent. One that is spelled with needless escapes stays."""
    spelled = re.escape(json.dumps(parent).encode())
    for found in re.finditer(rb'"parentId"\s*:\s*(' + spelled + rb")", line):
        shown = line[: found.start(1)] + json.dumps(other).encode() + line[found.end(1) :]
        entry = decode_line(shown, 0, "raw")
        if isinstance(entry, dict) and entry.get("parentId") == other:  # not a field of the same name further inside
            return shown
    return line
