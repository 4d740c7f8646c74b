"""The command `view`, and real programs that read what it keeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, ENVIRONMENT, call, command, documents, fill, read_until, run
from helpers import wait_until
from view_checks import HEADER, following

import shardstore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


def test_summary_and_json(store: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Once, it prints a table, or a line of JSON for each session; the second time nothing is left to do."""
    fill(store, "a", 3)
    fill(store, "b/c", 2)
    folder = str(tmp_path / "views")
    answer = call(capfdbinary, store, "view", folder)
    assert (answer.code, answer.stderr) == (0, b"")
    assert answer.stdout.splitlines()[-2].split() == [b"made", b"2", b"5", b"40", b"B"]
    found = documents(run(store, "view", folder, "--json"))
    assert [(line["session"], line["status"], line["lines"]) for line in found] == [
        ("a", "unchanged", 0),
        ("b/c", "unchanged", 0),
    ]
    fill(store, "a", 2)
    (line,) = documents(run(store, "view", folder, "a", "--json"))
    assert line == {"session": "a", "status": "appended", "lines": 2, "written_bytes": 16, "error": None}


def test_codes(store: Path, tmp_path: Path) -> None:
    """What can't be shown is named, the rest is shown, and the code is 1; a folder that is no view is 2."""
    folder = tmp_path / "views"
    run(store, "view", str(folder), code=3)
    assert not folder.exists()
    fill(store, "a", 1)
    fill(store, "../x", 1)
    done = run(store, "view", str(folder), code=1)
    assert b"../x is not shown" in done.stderr
    assert (folder / "a.jsonl").read_bytes() == b'{"n":1}\n'
    done = run(store, "view", str(folder), "never", code=1)
    assert b"never is not shown: no such session" in done.stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_bytes(b"")
    assert b"something else" in run(store, "view", str(tmp_path / "taken"), code=2).stderr
    assert b"inside the store" in run(store, "view", str(store / "views"), code=2).stderr


def program(name: str) -> str:
    """Return the path of a program; skip where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def output(*words: str | Path) -> bytes:
    """Return what a program prints."""
    return subprocess.run(words, capture_output=True, check=True, timeout=DEADLINE_S).stdout


def test_programs_that_read_a_file(store: Path, tmp_path: Path) -> None:
    """`wc -l`, `grep -c` and `jq` read a view like any file of JSON lines."""
    with shardstore.open(store) as opened:
        session = opened.session("a")
        session.append(HEADER % 1)
        session.append(HEADER % 2)
        for number in range(20):
            session.append(b'{"n":%d}' % number)
    run(store, "view", str(tmp_path / "views"))
    path = tmp_path / "views" / "a.jsonl"
    assert output(program("wc"), "-l", path).split()[0] == b"21"
    assert output(program("grep"), "-c", '"type":"session"', path) == b"1\n"
    values = output(program("jq"), "-c", "select(.n != null) | .n", path).split()
    assert [json.loads(value) for value in values] == list(range(20))


def test_every_write_ends_a_line(store: Path, tmp_path: Path) -> None:
    """Each call to write on a view's file ends with LF, when it is made and when it grows, seen from outside."""
    folder, log = tmp_path / "views", tmp_path / "calls"
    tracer = [program("strace"), "-f", "-y", "-s", "1000000", "-e", "trace=write", "-o", str(log)]
    if subprocess.run([*tracer, "true"], capture_output=True, timeout=DEADLINE_S).returncode:
        pytest.skip("strace may not trace here")
    for _ in range(2):
        with shardstore.open(store, durability="none") as opened:
            for size in (1, 5_000, 300_000, 40):
                opened.session("a").append(b"x" * size + b"\n" + b"y" * size)
        subprocess.run(
            [*tracer, *command(store, "view", str(folder))], check=True, capture_output=True, env=ENVIRONMENT
        )
        calls = [line for line in log.read_text().splitlines() if f"<{folder}/" in line and "-view>" not in line]
        assert calls
        assert all(re.search(r'\\n", \d+\) += \d+$', call) for call in calls), [call[-60:] for call in calls]
    assert (folder / "a.jsonl").read_bytes() == run(store, "cat", "a").stdout + b"\n"


def test_tail_follows_a_view(store: Path, tmp_path: Path) -> None:
    """`tail -f` prints every line once, in order, as it is appended; `tail -F` goes on after a repair too."""
    folder = tmp_path / "views"
    path = folder / "a.jsonl"
    with shardstore.open(store, durability="none") as opened:
        session = opened.session("a")
        session.append({"n": 0})
        with following(opened, folder):
            words = [program("tail"), "-n", "+1", "-F", "-s", "0.05", str(path)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
                assert tail.stdout is not None
                got = read_until(tail.stdout, b'{"n":0}\n')
                for number in range(1, 30):
                    session.append({"n": number})
                got += read_until(tail.stdout, b'{"n":29}\n')
                assert got == session.read_jsonl()
                inode = path.stat().st_ino
                os.chmod(path, 0o644)
                with open(path, "ab") as file:
                    file.write(b"junk\n")
                wait_until(lambda: path.exists() and path.stat().st_ino != inode, what="the repair")
                session.append({"n": 30})
                read_until(tail.stdout, b'{"n":30}\n')
                tail.kill()


def test_linearized(store: Path, tmp_path: Path) -> None:
    """With --linearize both of two writers with the same parent are on the way from the leaf to the root."""
    with shardstore.open(store, durability="none") as opened:
        session = opened.session("s")
        session.append([HEADER, {"id": "a", "parentId": None}])
        for id_ in ("b", "c"):
            session.append({"id": id_, "parentId": "a"}, base=1)
        before = session.read_jsonl()
    run(store, "view", str(tmp_path / "as-written"))
    run(store, "view", "--linearize", str(tmp_path / "linear"))
    assert (tmp_path / "as-written" / "s.jsonl").read_bytes() == before
    shown = [json.loads(line) for line in (tmp_path / "linear" / "s.jsonl").read_bytes().splitlines()]
    assert [(entry["id"], entry["parentId"]) for entry in shown[1:]] == [("a", None), ("b", "a"), ("c", "b")]
    assert shardstore.open(store).session("s").read_jsonl() == before
