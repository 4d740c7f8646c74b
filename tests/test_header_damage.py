"""A record whose header alone is damaged still reads back in views, so repair must keep it."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardstore

LINES = [b'{"n":%d,"text":"%s"}\n' % (number, b"x" * 40) for number in range(1, 6)]


@pytest.mark.parametrize("where", [0, 3, 20, 60, 100, 140, 149])
def test_a_damaged_header_costs_no_payload(store_path: str, where: int) -> None:
    """Whatever byte of a header in a segment is hurt, the view is the same before and after the repair."""
    store = shardstore.open(store_path, compact_shards=None)
    session = store.session("a")
    for number, line in enumerate(LINES):
        session.append(line, source="lane", key=f"key-{number}", at_ms=number)
    session.compact()
    [segment] = (Path(store_path) / "sessions" / "a" / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    begin = data.index(b'{"shardstore"', data.index(LINES[1]))  # the third record
    assert where < data.index(b"\n", begin) - begin
    data[begin + where] ^= 0x01
    segment.write_bytes(data)

    hurt = shardstore.open(store_path, compact_shards=None)
    before = hurt.session("a").read_jsonl()
    assert before == b"".join(LINES)
    assert [finding.seqs for finding in hurt.verify() if finding.severity == "damage"] == [(3, 3)]
    assert all(finding.repaired for finding in hurt.repair() if finding.severity == "damage")
    again = shardstore.open(store_path).session("a")
    assert again.read_jsonl() == before
    assert [(record.seq, record.kind) for record in again.records()] == [(seq, "turn") for seq in range(1, 6)]
    assert not [finding for finding in again.verify() if finding.severity == "damage"]
