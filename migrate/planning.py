"""The plan: what there is to bring in, and what is odd about it, without changing anything.

Rule: it only reads, and whatever one file meets is that file's status.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .catalog import Entry, text_of
from .damage import Inspector
from .lines import SourceFile, holds_lines
from .sources import Found, format_of
from .unpacking import is_packed

__all__ = ["FileFacts", "Tally", "inspect", "tallied"]

Status = Literal["new", "changed", "unchanged", "unreadable"]


@dataclass(slots=True)
class FileFacts:
    """One file: its bytes, lines and turns, when it was last written (ms since 1970), its damage by kind.

    None is what was not looked at; an unchanged file is not read again, and the catalog does not count turns.
    """

    found: Found
    status: Status
    size: int = 0
    lines: int | None = None
    turns: int | None = None
    newest_ms: int | None = None
    damage: dict[str, int] | None = None
    reason: str = ""

    def document(self) -> dict[str, object]:
        """Return the facts as JSON has them."""
        return {
            "path": text_of(self.found.path),
            "format": self.found.format,
            "agent": self.found.agent,
            "session": self.found.session,
            "source": self.found.lane,
            "status": self.status,
            "bytes": self.size,
            "lines": self.lines,
            "turns": self.turns,
            "newest_ms": self.newest_ms,
            "damage": self.damage,
            "reason": self.reason,
        }


@dataclass(slots=True)
class Tally:
    """The files of one agent; those that hold entries are its sessions. `turns` are those of files that were read."""

    agent: str
    sessions: int = 0
    files: int = 0
    new: int = 0
    size: int = 0
    lines: int = 0
    turns: int | None = None
    newest_ms: int | None = None
    damage: dict[str, int] = field(default_factory=dict)


def inspect(found: Found, known: Mapping[str, Entry], *, quick: bool) -> FileFacts:
    """Look at a file; with `quick` only at its size and time."""
    try:
        status = os.stat(found.path)
        entry = known.get(text_of(os.path.abspath(found.path)))
        facts = FileFacts(found, "new", status.st_size, newest_ms=status.st_mtime_ns // 1_000_000)
        if entry is not None:
            same = (entry.size, entry.mtime_ns) == (status.st_size, status.st_mtime_ns)
            facts.status = "unchanged" if same else "changed"
        if entry is not None and facts.status == "unchanged":
            facts.lines, facts.damage = entry.lines, entry.damage
        elif not quick:
            _read(facts)
    except OSError as error:
        return FileFacts(found, "unreadable", reason=(error.strerror or str(error)).lower())
    return facts


def _read(facts: FileFacts) -> None:
    inspector = Inspector()
    odd = holds_lines(facts.found.name)
    label = format_of(facts.found.format).labeller(facts.found.lane).label
    turns = 0
    with SourceFile(facts.found.path) as source:
        for batch in source.batches():
            for line in batch:
                if odd:
                    inspector.line(line)
                turns += label(line).kind == "turn"
        facts.size, facts.lines, facts.turns = source.size, source.lines, turns
    facts.damage = inspector.finish() if odd else {}


def tallied(facts: Iterable[FileFacts]) -> list[Tally]:
    """Return the tallies, by agent."""
    tallies: dict[str, Tally] = {}
    for fact in facts:
        tally = tallies.setdefault(fact.found.agent, Tally(fact.found.agent))
        tally.sessions += holds_lines(fact.found.name) or is_packed(fact.found.name)
        tally.files += 1
        tally.new += fact.status != "unchanged"
        tally.size += fact.size
        tally.lines += fact.lines or 0
        tally.turns = tally.turns if fact.turns is None else fact.turns + (tally.turns or 0)
        tally.newest_ms = max(filter(None, (tally.newest_ms, fact.newest_ms)), default=None)
        for kind, count in (fact.damage or {}).items():
            tally.damage[kind] = tally.damage.get(kind, 0) + count
    return sorted(tallies.values(), key=lambda tally: tally.agent)
