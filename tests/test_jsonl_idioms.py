"""What people do with files does the same with sessions: jsonlines, logging, json, csv, print."""

from __future__ import annotations

import csv
import io
import json
import logging
import logging.handlers
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonl_workers
import pytest
from helpers import join_all, processes

import shardstore
from shardstore import jsonl

OBJECTS: list[Any] = [{"role": "user", "content": "hé\u2028llo"}, [1, 2.5, None], "text", {"nested": [{}] * 300}]


def lines_of(path: Path) -> list[bytes]:
    with jsonl.open(path, "rb") as file:
        return list(file)


@pytest.mark.parametrize("mode", ["a", "ab", "w", "x", "a+"])
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"sort_keys": True}, {"flush": True}], ids=str)
def test_jsonlines(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    """`jsonlines.Writer` and `Reader` work unchanged: same bytes as on a plain file, same objects back."""
    jsonlines = pytest.importorskip("jsonlines")
    path, plain = tmp_path / "s.jsonl", io.BytesIO()
    with jsonl.open(path, mode) as file, jsonlines.Writer(file, **options) as writer:
        written = [writer.write(OBJECTS[0]), writer.write_all(OBJECTS[1:])]
    with jsonlines.Writer(plain, **options) as writer:
        expected = [writer.write(OBJECTS[0]), writer.write_all(OBJECTS[1:])]
    assert b"".join(lines_of(path)) == plain.getvalue()
    if "b" in mode:
        assert written == expected
    with jsonl.open(path) as file, jsonlines.Reader(file) as reader:
        assert reader.read() == OBJECTS[0]
        assert list(reader.iter(skip_empty=True)) == OBJECTS[1:]
    with jsonl.open(path, "rb") as file:
        assert list(jsonlines.Reader(file)) == OBJECTS
    assert [len(record.lines()) for record in shardstore.open(tmp_path / ".shardstore").session("s").records()] == [
        1
    ] * 4


def test_json_dump_and_print(tmp_path: Path) -> None:
    """`json.dump` writes many pieces and `print` two: each line is one record all the same."""
    path = tmp_path / "s.jsonl"
    with jsonl.open(path, "a") as file:
        for item in OBJECTS:
            json.dump(item, file)
            file.write("\n")
        print("a", "b", sep="\t", file=file)
        print(file=file, flush=True)
    assert [json.loads(line) for line in lines_of(path)[:4]] == OBJECTS
    assert lines_of(path)[4:] == [b"a\tb\n", b"\n"]
    records = list(shardstore.open(tmp_path / ".shardstore").session("s").records())
    assert [record.payload for record in records] == lines_of(path)


def test_csv(tmp_path: Path) -> None:
    """A csv writer's rows, with their CRLF, come back as they went in."""
    path, rows = tmp_path / "s.jsonl", [["1", "a,b"], ["2", 'x\r\n"y"'], ["", "é"]]
    with jsonl.open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    with jsonl.open(path, newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == rows


def test_a_large_object_in_small_pieces(tmp_path: Path) -> None:
    """A line that comes in a hundred thousand pieces is held without being copied for each."""
    path, numbers = tmp_path / "s.jsonl", list(range(100_000))
    with jsonl.open(path, "a") as file:
        json.dump(numbers, file, indent=None)
        assert file.tell() == len(json.dumps(numbers))
        file.write("\n")
    assert [json.loads(line) for line in lines_of(path)] == [numbers]


# ------------------------------------------------------------------ logging


def test_file_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is an event of its own, its lines together; a relative name stays the same after a change of folder."""
    monkeypatch.chdir(tmp_path)
    handler = jsonl.FileHandler("log.jsonl", delay=True)
    monkeypatch.chdir("/")
    logger = logging.Logger("gateway")
    logger.addHandler(handler)
    try:
        logger.warning("one")
        logger.error("two\nlines é")
        handler.close()
        logger.warning("after a close")
    finally:
        handler.close()
    records = list(shardstore.open(tmp_path / ".shardstore").session("log").records())
    assert [record.payload.decode() for record in records] == ["one\n", "two\nlines é\n", "after a close\n"]
    assert {(record.kind, record.source) for record in records} == {("event", "logging")}


def test_file_handler_in_a_store(tmp_path: Path) -> None:
    """A handler's store, kind and source can be chosen; what a FileHandler refuses it refuses."""
    store = shardstore.open(tmp_path / "store")
    handler = jsonl.FileHandler("agent:1", "w", "utf-8", store=store, kind="turn", source="hook:log")
    handler.handle(logging.makeLogRecord({"msg": "x"}))
    handler.close()
    (record,) = store.session("agent:1").records()
    assert (record.payload, record.kind, record.source) == (b"x\n", "turn", "hook:log")
    with pytest.raises(FileExistsError):
        jsonl.FileHandler("agent:1", "w", store=store)
    with pytest.raises(TypeError):
        jsonl.FileHandler(3)  # type: ignore[arg-type]


def test_processes_log_to_one_session(tmp_path: Path) -> None:
    """4 processes log at once through `dictConfig`: every message is there, whole, each process's in order."""
    path, count, gate = tmp_path / "log.jsonl", 50, processes.Barrier(4)
    names = [f"p{number}" for number in range(4)]
    workers = [processes.Process(target=jsonl_workers.log_lines, args=(str(path), name, count, gate)) for name in names]
    for worker in workers:
        worker.start()
    join_all(workers)
    entries = [json.loads(line) for line in lines_of(path)]
    assert len(entries) == 4 * count
    for name in names:
        numbers = [entry["number"] for entry in entries if entry["name"] == f"gateway.{name}"]
        assert numbers == list(range(count))


# ------------------------------------------------------------------ the module


def run(code: str, folder: Path) -> str:
    """Run Python in a process of its own; return what it printed."""
    environment = {"PYTHONPATH": str(Path(shardstore.__file__).parent.parent), "PATH": ""}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_imported_when_it_is_used(tmp_path: Path) -> None:
    """`shardstore.jsonl` is there without an import of its own, and costs nothing before."""
    code = "import sys, shardstore; print('shardstore.jsonl' in sys.modules, shardstore.jsonl.open.__name__)"
    assert run(code, tmp_path) == "False open\n"
    assert run("from shardstore import jsonl; print(jsonl.__all__)", tmp_path) == "['FileHandler', 'open']\n"
    with pytest.raises(AttributeError, match="no_such"):
        _ = shardstore.no_such


def test_an_interpreter_that_ends_commits_what_is_held(tmp_path: Path) -> None:
    """Files left open at the end of a program are committed like a plain file's buffer, in cycles too."""
    code = (
        "from shardstore import jsonl\n"
        "text = jsonl.open('text.jsonl', 'a'); text.write('a\\nb')\n"
        "data = jsonl.open('data.jsonl', 'ab'); data.write(b'a\\nb')\n"
        "class Owner: pass\n"
        "owner = Owner(); owner.self = owner; owner.file = jsonl.open('cycle.jsonl', 'a'); owner.file.write('a\\nb')\n"
    )
    assert run(code, tmp_path) == ""
    for name in ("text", "data", "cycle"):
        assert lines_of(tmp_path / f"{name}.jsonl") == [b"a\n", b"b"]
