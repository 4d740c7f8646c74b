"""Linearizing: entries that were written at once, shown one after the other.

pi and OpenClaw link each entry to its parent (`id`, `parentId`) and take the last line as the leaf, from which they
walk back to the root. So of two writers that answered the same parent only the later one stays in the model's context.

Rule: an entry is shown with its predecessor (the entry shown before it) as parent if its writer can't have known that
one, and had nothing newer to answer: the predecessor lies in another record, above the record's `base`, and the parent
is the last entry up to that base (none, if there was none), or the newest that the writer wrote itself. Every other
parent was chosen: a deliberate branch stays, and so does whatever has no base (imported lines have none), or an id that
was shown before (linking it anew could close a circle). The log keeps every byte; nothing but the value of `parentId`
differs in what is shown.
Strategy: who answers what lies above its base wrote that itself. So links tell which entries have one writer, a lane.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

from shardstore.record import Record, decode_line, split_lines
from shardstore.shapes import Readable

__all__ = ["Linear"]

ENTRIES_MAX = 4096  # that are remembered: an entry with an older parent stays as it is


class _Shown(NamedTuple):
    """An entry that was shown: its lane is the seq of the first record that its writer is known to have written.

    Of what has no base (a rewrite's content may be anybody's) nothing is known: lane 0.
    """

    id: str
    seq: int
    lane: int


class Linear:
    """The records of one session with one header and one chain; a Shape."""

    def __init__(self) -> None:
        self._headed = Readable()
        self._entries: deque[_Shown] = deque()  # in order
        self._places: dict[str, _Shown] = {}  # by id
        self._newest: dict[int, _Shown] = {}  # by lane

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
        id_, parent = entry["id"], entry["parentId"]
        if (parent is None or isinstance(parent, str)) and self._is_concurrent(id_, parent, record):
            line = _with_parent(line, parent, self._entries[-1].id)
        self._remember(_Shown(id_, record.seq, self._lane(parent, record)))
        return line

    def _is_concurrent(self, id_: str, parent: str | None, record: Record) -> bool:
        """Say whether an entry answers `parent` because its writer could not know the predecessor."""
        entries, base = self._entries, record.base
        if base is None or not entries or id_ in self._places or entries[-1].id == parent:
            return False
        if not base < entries[-1].seq < record.seq:
            return False
        known = bisect_right(entries, base, key=lambda entry: entry.seq)
        if parent is None:
            return not known and len(entries) < ENTRIES_MAX
        place = self._places.get(parent)
        if place is not None and place.seq > base:
            return not place.lane or self._newest[place.lane] is place
        return place is not None and known > 0 and entries[known - 1].id == parent

    def _lane(self, parent: object, record: Record) -> int:
        """Return the lane of an entry: that of its record's earlier ones, or of a parent that only its writer knew."""
        if self._entries and self._entries[-1].seq == record.seq:
            return self._entries[-1].lane
        if record.base is None:
            return 0
        place = self._places.get(parent) if isinstance(parent, str) else None
        known = place.lane if place is not None and place.seq > record.base else 0
        return known or record.seq

    def _remember(self, entry: _Shown) -> None:
        if len(self._entries) == ENTRIES_MAX:
            oldest = self._entries.popleft()
            if self._places.get(oldest.id) is oldest:
                del self._places[oldest.id]
            if self._newest.get(oldest.lane) is oldest:
                del self._newest[oldest.lane]
        self._entries.append(entry)
        self._places[entry.id] = self._newest[entry.lane] = entry


def _with_parent(line: bytes, parent: str | None, other: str) -> bytes:
    """Return the same bytes but for the entry's parent. One that is spelled with needless escapes stays."""
    spelled = {json.dumps(parent, ensure_ascii=ascii_).encode(errors="surrogatepass") for ascii_ in (True, False)}
    for found in re.finditer(rb'"parentId"\s*:\s*(' + b"|".join(map(re.escape, spelled)) + rb")", line):
        shown = line[: found.start(1)] + json.dumps(other).encode() + line[found.end(1) :]
        entry = decode_line(shown, 0, "raw")
        if isinstance(entry, dict) and entry.get("parentId") == other:  # not a field of the same name further inside
            return shown
    return line
