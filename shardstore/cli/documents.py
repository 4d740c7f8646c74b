"""The shapes of `--json`: one function for each kind of thing, field by field.

Written out and not derived from the classes, because scripts depend on them: a field renamed in the API must not
change what a command prints.
"""

from __future__ import annotations

from typing import TypeAlias

import shardstore

__all__ = [
    "Document",
    "of_compaction",
    "of_description",
    "of_files",
    "of_finding",
    "of_info",
    "of_receipt",
    "of_record",
]

Document: TypeAlias = dict[str, object]


def of_info(info: shardstore.SessionInfo) -> Document:
    """A session in one line: what `ls` prints."""
    return {
        "session": info.id,
        "state": info.state,
        "archived": info.archived,
        "records": info.head,
        "watermark": info.watermark,
        "segments": info.segments,
        "generation": info.generation,
        "durability": info.durability,
        "created_at_ms": info.created_at_ms,
    }


def of_record(session: str, record: shardstore.Record) -> Document:
    """A record without its payload."""
    return {
        "session": session,
        "seq": record.seq,
        "kind": record.kind,
        "source": record.source,
        "at_ms": record.at_ms,
        "base": record.base,
        "key": record.key,
        "nonce": record.nonce,
        "entries": len(record.lines()),
        "bytes": len(record.payload),
    }


def of_receipt(receipt: shardstore.Receipt) -> Document:
    """What an append was answered."""
    return {
        "session": receipt.session,
        "seq": receipt.seq,
        "nonce": receipt.nonce,
        "at_ms": receipt.at_ms,
        "base": receipt.base,
        "duplicate": receipt.duplicate,
    }


def of_finding(finding: shardstore.Finding) -> Document:
    """One thing that verify or repair has to say."""
    return {
        "session": finding.session,
        "what": finding.what,
        "where": finding.where,
        "seqs": None if finding.seqs is None else list(finding.seqs),
        "severity": finding.severity,
        "advice": finding.advice,
        "repaired": finding.repaired,
    }


def of_compaction(report: shardstore.CompactReport) -> Document:
    """What one compaction did."""
    return {
        "session": report.session,
        "skipped": report.skipped,
        "records": report.records,
        "bytes": report.bytes,
        "swept": report.swept,
        "watermark": report.watermark,
        "error": report.error,
    }


def of_description(description: shardstore.Description) -> Document:
    """Counts by kind and source, and who wrote without having seen whom."""
    return {
        "records": description.records,
        "entries": description.entries,
        "bytes": description.bytes,
        "kinds": {name: _of_tally(tally) for name, tally in description.kinds.items()},
        "sources": {name: _of_tally(tally) for name, tally in description.sources.items()},
        "concurrent": [
            {"source": overlap.source, "other": overlap.other, "count": overlap.count}
            for overlap in description.concurrent
        ],
    }


def of_files(files: list[tuple[str, int]]) -> list[Document]:
    """Where a session lies, relative to the store."""
    return [{"path": path, "bytes": size_bytes} for path, size_bytes in files]


def _of_tally(tally: shardstore.Tally) -> Document:
    return {
        "records": tally.records,
        "entries": tally.entries,
        "bytes": tally.bytes,
        "first_at_ms": tally.first_at_ms,
        "last_at_ms": tally.last_at_ms,
    }
