"""Rewrites: how a program that replaces a session's content is kept in a log that only grows.

Rule: pure. A rewrite is a control record of source `rewrite`. Its payload is one JSON line, then the new content, byte
for byte. The line says up to which seq the writer knew the log (`seen`), and which later records' lines the content
holds all the same (`seqs`, ranges). What others appended after `seen` is no part of the content and follows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shardstore.errors import Corrupt, InvalidRequest, describe
from shardstore.record import Record, decode_line, encode_entries

__all__ = ["REWRITE", "Rewrite", "decode_rewrite", "encode_rewrite", "is_rewrite"]

REWRITE = "rewrite"


class Rewrite(NamedTuple):
    """New content for a session, by a writer that knew it up to `seen`; it holds the records in `seqs`, too."""

    seen: int
    seqs: tuple[tuple[int, int], ...]
    content: bytes

    def replaces(self, seq: int) -> bool:
        """Say whether the content stands in the place of record `seq`."""
        return seq <= self.seen or any(first <= seq <= last for first, last in self.seqs)


def is_rewrite(record: Record) -> bool:
    """Say whether a record is a rewrite."""
    return record.kind == "control" and record.source == REWRITE


def encode_rewrite(content: bytes, seen: int, seqs: Iterable[tuple[int, int]]) -> bytes:
    """Return the payload of a rewrite. Raises InvalidRequest for ranges that are none, or not above `seen`."""
    ranges = [list(pair) for pair in seqs]
    if seen < 0 or not all(seen < first <= last for first, last in ranges):
        raise InvalidRequest(describe("a rewrite names seqs above the last one that was seen", seen=seen, seqs=ranges))
    return encode_entries({"seen": seen, "seqs": ranges}) + content


def decode_rewrite(record: Record) -> Rewrite:
    """Return what a rewrite says. Raises Corrupt for one that this format does not write."""
    line, _, content = record.payload.partition(b"\n")
    try:
        head = decode_line(line, record.seq)
        rewrite = Rewrite(int(head["seen"]), tuple((int(first), int(last)) for first, last in head["seqs"]), content)
    except (InvalidRequest, KeyError, TypeError, ValueError) as error:
        raise Corrupt(describe("a rewrite has no readable first line", seq=record.seq), seq=record.seq) from error
    if not 0 <= rewrite.seen < record.seq:
        raise Corrupt(describe("a rewrite has seen what came after it", seq=record.seq), seq=record.seq)
    return rewrite
