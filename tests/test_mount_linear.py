"""A linearized mount: of programs that read the same and answer it, nobody falls out of the chain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DEADLINE_S
from mounts import append, lines_of, mounted_in, why_not

import shardstore

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

OTHER = """
import sys
with open(sys.argv[1], "a+") as file:
    file.seek(0)
    file.read()
    print("read", flush=True)
    input()
    file.write('{"id":"c","parentId":"a"}\\n')
"""


def test_linearized(tmp_path: Path) -> None:
    """Of two programs that have read the same and both append, the later one's entry is shown after the other's."""
    for mount in mounted_in(tmp_path, "--linearize"):
        path = mount.path / "s.jsonl"
        append(path, b'{"type":"session","id":"s"}\n{"id":"a","parentId":null}\n')
        words = [sys.executable, "-c", OTHER, str(path)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "read\n"
            assert len(lines_of(path)) == 2  # and so has this one
            append(path, b'{"id":"b","parentId":"a"}\n')
            other.communicate("\n", timeout=DEADLINE_S)
        shown = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
        assert [(entry["id"], entry["parentId"]) for entry in shown] == [("a", None), ("b", "a"), ("c", "b")]
        with shardstore.open(mount.store_path) as store:
            assert json.loads(store.session("s").last(1)[0].payload)["parentId"] == "a"
