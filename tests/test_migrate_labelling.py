"""Labelling aside: another process says of the same lines what this one would say, and nothing hangs if it dies."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from shardstore_migrate import importing, labelling
from shardstore_migrate.catalog import Catalog
from shardstore_migrate.importing import Importer
from shardstore_migrate.lines import SourceFile
from shardstore_migrate.sources import Found

import shardstore

LINES = [
    b'{"type":"session","version":3,"id":"a","timestamp":"2026-01-22T02:16:56.565Z","cwd":"/x"}\n',
    b'{"type":"message","id":"b","timestamp":"2026-01-22T02:16:57.565Z","message":{"role":"user","content":"hi"}}\n',
    b'{"type":"message","id":"b","message":{"role":"user","content":"[cron:daily] go"}}\r\n',
    b'{"type":"message","id":"c","timestamp":1769048217565,"message":{"role":"assistant","content":"\xff"}}\n',
    b"\n",
    b'{"type":"custom","id":"d"}{"type":"custom","id":"e"}\n',
    b'{"type":"message","id":"f","message":{"role":"user","content":"Read HEARTBEAT.md if it is there"}}\n',
    b'{"type":"message","id":"g","message":{"role":"assistant","content":"HEARTBEAT_OK"}}\n',
]
BEGIN_SECONDS = 60
LONG = b'{"type":"message","id":"l","message":{"role":"assistant","content":"' + b"x" * (3 << 20) + b'"}}\n'


def found_at(path: Path, data: bytes) -> Found:
    path.write_bytes(data)
    return Found(path=str(path), name=path.name, format="openclaw", agent="openclaw/main", session="s")


def imported(folder: Path, found: Found, *, aside: bool) -> tuple[Any, list[Any]]:
    """Return the outcome of importing one file into a new store, and its records without what is random."""
    with shardstore.open(folder) as store:
        (outcome,) = Importer(store, Catalog(store)).first([found], aside=aside)
        session = store.session("s", create=False)
        records = [(r.kind, r.source, r.at_ms, r.payload) for r in session.records()] if outcome.entry else []
    return outcome, records


@pytest.mark.parametrize(
    "data",
    [
        b"".join(LINES) * 5_000 + LONG + b"".join(LINES) + b'{"type":"mess',
        LONG,
        b"\n" * 100_000,
        b"",
    ],
    ids=["mixed", "one-long-line", "blank", "empty"],
)
@pytest.mark.parametrize("batches_here", [0, 1])
def test_aside_is_as_here(data: bytes, batches_here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds, sources, times, damage, what the labeller remembers: all the same, whoever labels, and from when on."""
    monkeypatch.setattr(importing, "WORTH_BYTES", 0)
    monkeypatch.setattr(labelling, "AHEAD_BYTES", 2 << 20)
    monkeypatch.setattr(labelling, "BEGIN_SECONDS", 0 if batches_here else BEGIN_SECONDS)
    asked = labelling._asked

    def then_waiting(*arguments: Any) -> Any:
        for answer in asked(*arguments):
            monkeypatch.setattr(labelling, "BEGIN_SECONDS", BEGIN_SECONDS)
            yield answer

    monkeypatch.setattr(labelling, "_asked", then_waiting)
    found = found_at(tmp_path / "a.jsonl", data)
    here, ours = imported(tmp_path / "here", found, aside=False)
    aside, theirs = imported(tmp_path / "aside", found, aside=True)
    assert here.status == aside.status == "imported"
    assert here.entry == aside.entry
    assert ours == theirs
    assert b"".join(record[3] for record in theirs) == data


def test_small_files_need_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a size that is worth it nothing is started."""
    monkeypatch.setattr(importing, "labelled_aside", None)
    assert imported(tmp_path / "store", found_at(tmp_path / "a.jsonl", LINES[0]), aside=True)[0].status == "imported"


def _die(*_: object) -> None:
    os._exit(3)


def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file fails with what to do next, and nothing of it is in the store."""
    monkeypatch.setattr(labelling, "BEGIN_SECONDS", BEGIN_SECONDS)
    monkeypatch.setattr(importing, "WORTH_BYTES", 0)
    monkeypatch.setattr(labelling, "_serve", _die)
    outcome, _ = imported(tmp_path / "store", found_at(tmp_path / "a.jsonl", b"".join(LINES) * 9), aside=True)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, shardstore.Unavailable)
    assert "run again" in str(outcome.error)
    with shardstore.open(tmp_path / "store") as store, pytest.raises(shardstore.NotFound):
        store.session("s", create=False).head()


def test_a_file_rewritten_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the two processes see different lines, nothing is imported."""
    monkeypatch.setattr(labelling, "BEGIN_SECONDS", BEGIN_SECONDS)
    monkeypatch.setattr(importing, "WORTH_BYTES", 0)
    monkeypatch.setattr(labelling, "AHEAD_BYTES", 1 << 20)
    found = found_at(tmp_path / "a.jsonl", b"".join(LINES) * 15_000)
    asked = labelling._asked

    def rewriting(*arguments: Any) -> Any:
        for number, answer in enumerate(asked(*arguments)):
            if not number:
                os.truncate(found.path, 1 << 19)
            yield answer

    monkeypatch.setattr(labelling, "_asked", rewriting)
    outcome, _ = imported(tmp_path / "store", found, aside=True)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, OSError)


def test_the_process_ends_with_the_one_that_asks(tmp_path: Path) -> None:
    """A reader that stops half-way leaves no process behind."""
    found = found_at(tmp_path / "a.jsonl", b"".join(LINES) * 25_000)
    with SourceFile(found.path) as source:
        batches = labelling.labelled_aside(found, 0, source, unfinished=True, tell=lambda _: None)
        next(batches)
        assert len(multiprocessing.active_children()) == 1
        batches.close()
    assert multiprocessing.active_children() == []
