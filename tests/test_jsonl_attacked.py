"""Attacks on sessions as files: what threads share, names and line ends that no file has."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import DEADLINE_S, Task, in_child

import shardstore
from shardstore import InvalidRequest, jsonl
from shardstore.linear import Linear


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads interrupt each other as often as they can."""
    kept = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(kept)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("buffering", [0, -1])
def test_threads_share_a_handle_that_reads(tmp_path: Path, buffering: int) -> None:
    """What several threads read through one handle is each byte once, buffered or not."""
    with shardstore.open(tmp_path / "store", durability="none") as store:
        session = store.session("s")
        for number in range(400):
            session.append([{"number": number, "pad": "x" * 700}] * 4)
        got: list[list[bytes]] = [[] for _ in range(4)]
        with jsonl.open(session, "rb", buffering=buffering) as file:

            def read(into: list[bytes]) -> None:
                into += iter(lambda: file.read(1000), b"")

            for task in [Task(partial(read, into)) for into in got]:
                task.result()
        pieces = sorted(piece for part in got for piece in part)
        whole = session.read_jsonl()
        assert sum(map(len, pieces)) == len(whole)
        if buffering == 0:
            return  # a read may end where a block does, so the pieces are whatever they are
        assert pieces == sorted(whole[at : at + 1000] for at in range(0, len(whole), 1000))


def test_lines_that_end_with_cr_are_refused(tmp_path: Path) -> None:
    """With them no line would ever be complete, and all of them would wait in memory for the close."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(InvalidRequest, match="LF"):
        jsonl.open(path, "a", newline="\r")
    assert not list(tmp_path.iterdir())
    jsonl.open(path, "a", newline="\r\n").close()
    with jsonl.open(path, newline="\r") as file:
        assert file.read() == ""


@pytest.mark.parametrize("end", ["/", "//", "/."])
@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_path_that_names_a_folder_is_no_session(tmp_path: Path, mode: str, end: str) -> None:
    """As with a file, a slash at the end wants a folder: no session is made, none is opened."""
    jsonl.open(tmp_path / "there.jsonl", "a").close()
    for name in ("there", "missing"):
        with pytest.raises(OSError, match="directory"):
            jsonl.open(f"{tmp_path}/{name}.jsonl{end}", mode)
    with shardstore.open(tmp_path / ".shardstore") as store:
        assert store.ids() == ["there"]


def test_a_line_that_a_thread_writes_while_another_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forked child writes its own lines only; what was on its way in the parent is committed once, by that."""
    with shardstore.open(tmp_path / "store", durability="none") as store:
        session = store.session("s")
        parent, append, midway, forked = os.getpid(), session.append, threading.Event(), threading.Event()

        def wait_and_append(*args: Any, **options: Any) -> Any:
            if os.getpid() == parent:
                midway.set()
                assert forked.wait(DEADLINE_S)
            return append(*args, **options)

        def child() -> None:
            file.write(b"child\n")
            file.close()

        file = jsonl.open(session, "ab")
        monkeypatch.setattr(session, "append", wait_and_append)
        writing = Task(lambda: file.write(b"parent\nhalf "))
        assert midway.wait(DEADLINE_S)
        assert in_child(child) == 0
        forked.set()
        writing.result()
        file.close()
        assert session.read_jsonl() == b"child\nparent\nhalf "


def test_the_base_is_what_the_process_has_read(tmp_path: Path) -> None:
    """Whichever file of a path it was read through: who reads, closes, and opens again to append knows what it read."""
    path = tmp_path / "s.jsonl"
    with jsonl.open(path, "a") as file:
        file.write("1\n")
    with shardstore.open(tmp_path / ".shardstore") as store:
        session = store.session("s")
        session.append(b"another's\n")
        with jsonl.open(path, "a") as file:
            file.write("knows its own alone\n")
        with jsonl.open(path) as file:
            assert file.readlines()[1:] == ["another's\n", "knows its own alone\n"]
        with jsonl.open(path, "a") as file:
            file.write("has read it\n")
        assert [record.base for record in session.records()] == [0, None, 1, 3]
        with jsonl.open(session) as file, jsonl.open(session, "a") as other:
            file.read()
            other.write("through a Session\n")
        assert session.last(1)[0].base == 4


def test_two_that_know_nothing_are_one_chain(tmp_path: Path) -> None:
    """Two writers that begin a session at once, each with a header and a first entry, are both in the context."""
    for number, store in enumerate(shardstore.open(tmp_path / "store") for _ in range(2)):
        with jsonl.open("s", "a", store=store) as file:
            file.write(json.dumps({"type": "session", "id": f"s{number}"}) + "\n")
            file.write(json.dumps({"id": f"a{number}", "parentId": None}) + "\n")
    shape = Linear()
    with shardstore.open(tmp_path / "store") as store:
        shown = b"".join(shape.shown(record) for record in store.session("s").records())
    assert [json.loads(line).get("parentId", "-") for line in shown.splitlines()] == ["-", None, "a0"]
