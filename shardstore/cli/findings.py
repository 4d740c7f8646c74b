"""How findings of verify and repair are shown.

A finding is one line where stdout is no terminal, so that it can be searched for and counted. On a terminal it begins
the same, and what does not fit goes on in lines of its own: first the file, then the advice.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

import shardstore
from shardstore.cli.output import counted, readable, visible, write_line

__all__ = ["show_findings", "verdict"]

INDENT = "    "


def show_findings(findings: Iterable[shardstore.Finding]) -> None:
    """Write findings; of one that has been repaired only what and where it was."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for finding in findings:
        for line in _lines(finding, width):
            write_line(line)


def verdict(findings: Sequence[shardstore.Finding]) -> str:
    """Return how many damages there are, or that there are none, and how many notes."""
    damages = sum(finding.severity == "damage" for finding in findings)
    notes = len(findings) - damages
    words = counted(damages, "damage") if damages else "no damage"
    return f"{words}, {counted(notes, 'note')}" if notes else words


def _lines(finding: shardstore.Finding, width: int | None) -> list[str]:
    word = "repaired" if finding.repaired else finding.severity
    place = f" in {visible(finding.session)}" if finding.session else ""
    head, where = f"{word}: {finding.what}{place}{_records(finding.seqs)}", visible(finding.where)
    advice = "" if finding.repaired else visible(readable(finding.advice))
    if width is None:
        return [": ".join(filter(None, (head, where, advice)))]
    fits = len(head) + len(where) + 2 <= width
    return [
        *([f"{head}: {where}"] if fits else [f"{head}:", INDENT + where]),
        *textwrap.wrap(
            advice,
            max(width, 40),
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        ),
    ]


def _records(seqs: tuple[int, int] | None) -> str:
    """Return a range of records as a person writes it."""
    if seqs is None:
        return ""
    return f", record {seqs[0]}" if seqs[0] == seqs[1] else f", records {seqs[0]}-{seqs[1]}"
