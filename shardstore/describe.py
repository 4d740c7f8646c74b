"""What a session holds, counted: by kind, by source, and who wrote concurrently with whom.

Rule: concurrency is read from `base`, never guessed from times: a record was written concurrently with every record
of another source between its base and itself, because its writer had not seen them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardstore.record import Record

__all__ = ["Description", "Overlap", "Tally", "describe_records"]


@dataclass(slots=True)
class Tally:
    """Records, entries, payload bytes, and the times (ms since 1970) of the first and the last record counted."""

    records: int = 0
    entries: int = 0
    bytes: int = 0
    first_at_ms: int | None = None
    last_at_ms: int | None = None

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.entries += len(record.lines())
        self.bytes += len(record.payload)
        self.first_at_ms = record.at_ms if self.first_at_ms is None else min(self.first_at_ms, record.at_ms)
        self.last_at_ms = record.at_ms if self.last_at_ms is None else max(self.last_at_ms, record.at_ms)


@dataclass(frozen=True, slots=True)
class Overlap:
    """`count` records of `source` were written without having seen an earlier record of `other`."""

    source: str
    other: str
    count: int


@dataclass(slots=True)
class Description:
    """Everything counted: in all, by kind, by source, and the overlaps between sources."""

    records: int = 0
    entries: int = 0
    bytes: int = 0
    kinds: dict[str, Tally] = field(default_factory=dict)
    sources: dict[str, Tally] = field(default_factory=dict)
    concurrent: list[Overlap] = field(default_factory=list)


def describe_records(records: Iterable[Record]) -> Description:
    """Count `records`, which must come in seq order."""
    out = Description()
    seqs: dict[str, list[int]] = {}
    overlaps: dict[tuple[str, str], int] = {}
    for record in records:
        for tally in (
            out.kinds.setdefault(record.kind, Tally()),
            out.sources.setdefault(record.source, Tally()),
        ):
            tally.add(record)
        if record.base is not None:
            for other, theirs in seqs.items():
                if other != record.source and bisect_right(theirs, record.base) < len(theirs):
                    overlaps[record.source, other] = overlaps.get((record.source, other), 0) + 1
        seqs.setdefault(record.source, []).append(record.seq)
    out.records = sum(tally.records for tally in out.kinds.values())
    out.entries = sum(tally.entries for tally in out.kinds.values())
    out.bytes = sum(tally.bytes for tally in out.kinds.values())
    out.concurrent = [Overlap(*pair, count) for pair, count in sorted(overlaps.items())]
    return out
