"""Transcripts come back byte for byte: real ones, synthetic ones, and ones that are damaged in every known way.

Real files lie outside the project, in ../shared/corpus; where they are absent, the synthetic samples remain.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import shardstore
from shardstore import NewRecord, Session, split_lines

ROOT = Path(__file__).parent.parent
CORPUS = ROOT.parent / "shared" / "corpus"
GENERATOR = ROOT.parent / "shared" / "tools" / "make_synthetic.py"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
INTERLEAVED_BYTES_MAX = 300_000
NO_CORPUS = f"no transcripts at {CORPUS}"


def transcript(turns: int, seed: int) -> bytes:
    """Return a transcript like the real ones: sizes from bytes to many kilobytes, any text, compact JSON."""
    chance = random.Random(seed)
    alphabet = 'abc \u00e9\u4e2d\U0001f600\u2028\\"\n\t{}'
    lines = []
    for number in range(turns):
        text = "".join(chance.choices(alphabet, k=int(chance.paretovariate(0.7)) % 30_000))
        role = chance.choice(["user", "assistant", "toolResult"])
        entry = {
            "type": "message",
            "id": f"{number:08x}",
            "message": {"role": role, "content": [{"type": "text", "text": text}]},
        }
        lines.append(json.dumps(entry, ensure_ascii=chance.random() < 0.5, separators=(",", ":")))
    return "".join(line + "\n" for line in lines).encode()


SAMPLES = {
    "empty": b"",
    "one newline": b"\n",
    "blank lines": b"\n\n{}\n\n\n",
    "no final newline": b'{"a":1}\n{"b":2}',
    "crlf": b'{"a":1}\r\n{"b":2}\r\n',
    "crlf without an end": b'{"a":1}\r\n{"b":2}\r',
    "bom": b'\xef\xbb\xbf{"a":1}\n',
    "bom in the middle": b'{"a":1}\n\xef\xbb\xbf{"b":2}\n',
    "utf-16": '{"a":1}\n{"b":2}\n'.encode("utf-16"),
    "invalid utf-8": b'{"a":"\xff\xfe\xc3"}\n{"b":2}\n',
    "lone surrogates": b'{"a":"\\ud800"}\n{"a":"\xed\xa0\x80"}\n',
    "nul bytes": b'{"a":1}\n' + bytes(4096) + b'\n{"b":2}\n',
    "torn line in the middle": b'{"a":1}\n{"b":\n{"c":3}\n',
    "glued lines": b'{"a":1}{"b":2}\n',
    "separators": '{"a":"\u2028\u2029\u0085"}\n{"b":"\x0b\x0c\x1c"}\n'.encode(),
    "nan": b'{"a":NaN,"b":-Infinity}\n',
    "large integers": b'{"a":123456789012345678901234567890}\n',
    "duplicate keys": b'{"a":1,"a":2}\n',
    "deep": b"[" * 3000 + b"]" * 3000 + b"\n",
    "no json": b"what the tool printed\n\x1b[31mred\x1b[0m\n",
    "looks like a shard": b'{"shardstore":1,"kind":"turn","source":"main","crc32":"00000000"}\n',
    "one long line": b'{"a":"' + b"x" * 3_000_000 + b'"}\n',
    "many short lines": b"{}\n" * 20_000,
    "transcript": transcript(300, 1),
    "cut transcript": transcript(50, 2)[:-7],
    "random bytes": random.Random(3).randbytes(100_000),
}


def digest(data: bytes) -> str:
    """Return the sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def exported(session: Session, **selection: object) -> str:
    """Return the sha256 of a view, written piece by piece as an export is."""
    whole = hashlib.sha256()
    for piece in session.iter_jsonl(**selection):  # type: ignore[arg-type]
        whole.update(piece)
    return whole.hexdigest()


def co_tenants(session: Session, rounds: int) -> None:
    """Append what a heartbeat, a cron job, a hook and another channel would."""
    for number in range(rounds):
        session.event({"beat": number}, source="heartbeat")
        session.event([{"report": number}, b"raw line without an end"], source="cron:daily-report")
        session.event(b'{"hook":true}\r\n', source="hook:post-tool", key=f"hook-{number}")
        session.event({"from": "telegram"}, source="channel:telegram")


def check_round_trip(data: bytes, path: Path) -> None:
    """Import, export, add co-tenants, compact, and leave them out again in every way: always the same bytes."""
    store = shardstore.open(path, compact_shards=None)
    lines = split_lines(data)
    assert store.import_session("s", lines) == len(lines)
    session = store.session("s")
    expected = digest(data)
    assert session.head() == len(lines)
    assert exported(session) == expected
    co_tenants(session, 2)
    for compacted in (False, True):
        if compacted:
            session.compact()
            assert session.info().watermark == len(lines) + 8
        assert exported(session, kind="turn") == expected
        assert exported(session, source="import") == expected
        others = ["heartbeat", "cron:daily-report", "hook:post-tool", "channel:telegram"]
        assert exported(session, exclude_source=others) == expected
        assert exported(session, last=len(lines)) == expected
    reopened = shardstore.open(path).session("s")
    assert exported(reopened, kind="turn") == expected
    assert [record.payload for record in reopened.records(last=len(lines))] == lines
    assert reopened.verify() == []
    store.backup(path.parent / "copy")
    assert exported(shardstore.open(path.parent / "copy").session("s"), kind="turn") == expected


def check_interleaved(data: bytes, path: Path) -> None:
    """Append line by line with co-tenants in between, compacting now and then: without them the same bytes."""
    session = shardstore.open(path, durability="none", compact_shards=None).session("s")
    lines = split_lines(data)
    for number, line in enumerate(lines):
        session.append(line)
        if number % 7 == 0 and line.endswith(b"\n"):
            session.event({"beat": number}, source="heartbeat")
        if number % 50 == 49:
            session.compact()
    if lines:
        assert exported(session, kind="turn") == digest(data)
        assert exported(session, source="main") == digest(data)
        assert exported(session, exclude_source="heartbeat") == digest(data)


@pytest.mark.parametrize("name", list(SAMPLES))
def test_sample(name: str, tmp_path: Path) -> None:
    """Each synthetic sample survives import, export, co-tenants, compaction and backup."""
    check_round_trip(SAMPLES[name], tmp_path / "store")
    if len(SAMPLES[name]) <= INTERLEAVED_BYTES_MAX and SAMPLES[name].count(b"\n") < 1000:
        check_interleaved(SAMPLES[name], tmp_path / "interleaved")


@pytest.mark.skipif(not FILES, reason=NO_CORPUS)
@pytest.mark.parametrize("file", FILES, ids=[str(path.relative_to(CORPUS)) for path in FILES])
def test_real_file(file: Path, tmp_path: Path) -> None:
    """Each real transcript survives import, export, co-tenants, compaction and backup."""
    data = file.read_bytes()
    check_round_trip(data, tmp_path / "store")
    if len(data) <= INTERLEAVED_BYTES_MAX:
        check_interleaved(data, tmp_path / "interleaved")


@pytest.mark.skipif(not FILES, reason=NO_CORPUS)
def test_whole_corpus_in_one_store(tmp_path: Path) -> None:
    """All real transcripts live in one store side by side; it verifies, and each exports its own bytes."""
    store = shardstore.open(tmp_path / "store")
    for file in FILES:
        store.import_session(str(file.relative_to(CORPUS)), split_lines(file.read_bytes()), durability="none")
    assert len(list(store.sessions())) == len(FILES)
    assert store.verify() == []
    for file in FILES:
        session = shardstore.open(tmp_path / "store").session(str(file.relative_to(CORPUS)))
        assert exported(session) == digest(file.read_bytes())


@pytest.mark.skipif(not GENERATOR.is_file(), reason=f"no generator at {GENERATOR}")
def test_every_known_corruption(tmp_path: Path) -> None:
    """One file for each way in which transcripts were found damaged in the wild survives in the same way."""
    target = tmp_path / "corrupt"
    command = [sys.executable, str(GENERATOR), "corrupt", "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    assert files
    for number, file in enumerate(files):
        check_round_trip(file.read_bytes(), tmp_path / str(number) / "store")


def test_import_of_records_with_facts(tmp_path: Path) -> None:
    """Kind, source, time and key of imported records come back, and a key that was imported answers an append."""
    store = shardstore.open(tmp_path / "store")
    records = [
        NewRecord(payload=b'{"n":1}\n', at_ms=5, key="k-1"),
        NewRecord(payload=b'{"n":2}\n', kind="event", source="cron:x", at_ms=6),
        NewRecord(payload=b"no end", source="tool"),
    ]
    assert store.import_session("s", iter(records)) == 3
    session = store.session("s")
    found = [(r.payload, r.kind, r.source, r.key) for r in session.records()]
    assert found == [(r.payload, r.kind, r.source, r.key) for r in records]
    assert [r.at_ms for r in session.records(last=2)] == [5, 6]
    assert session.append(b'{"n":1}\n', key="k-1").seq == 1
    assert session.append(b"next\n").seq == 4


def test_import_that_streams(tmp_path: Path) -> None:
    """An import takes a generator and spreads over several segments when it is large; every byte comes back."""
    line = b'{"text":"' + b"x" * 99_980 + b'"}\n'
    store = shardstore.open(tmp_path / "store")
    assert store.import_session("s", (line for _ in range(900)), durability="none") == 900
    assert store.session("s").info().segments > 1
    assert exported(store.session("s")) == digest(line * 900)
    assert store.session("s").append(b"x\n").seq == 901
