"""What the tests of the command line share: a process for each command, as a user's shell runs it.

`call` is for the many where only the answer matters: it runs the same code in this process, which is quicker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

import shardstore
from shardstore.cli.app import run as run_here

__all__ = ["AWKWARD", "DEADLINE_S", "ENVIRONMENT", "call", "command", "documents", "fill", "read_until", "run"]

ROOT = Path(shardstore.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "COLUMNS": "100"}
DEADLINE_S = 60
AWKWARD = b'{"a":1}\r\n\n{"cut": \n\xff\xfe not utf-8\n{"a":"\xe2\x80\xa8"}\r{"b":2}\n{"last":"no newline"}'


def command(store: Path | str, *arguments: str | bytes) -> list[str | bytes]:
    """Return the command line of `shardstore`."""
    return [sys.executable, "-m", "shardstore", "--store", str(store), *arguments]


def run(
    store: Path | str, *arguments: str | bytes, stdin: bytes = b"", code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; it must exit with `code` and never show a traceback."""
    done = subprocess.run(
        command(store, *arguments), input=stdin, capture_output=True, env=ENVIRONMENT, timeout=DEADLINE_S
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    assert b"Traceback" not in done.stderr
    if code not in (0, 130, 141):
        assert done.stderr.startswith(b"shardstore: ") or code == 1
    return done


def documents(done: subprocess.CompletedProcess[bytes]) -> list[Any]:
    """Return the JSON documents on stdout, which must be ASCII."""
    return [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]


def read_until(stream: IO[bytes], wanted: bytes) -> bytes:
    """Read until `wanted` has come; fail at the deadline."""
    got = b""
    while wanted not in got:
        assert wait([stream.fileno()], DEADLINE_S), got
        chunk = os.read(stream.fileno(), 65536)
        assert chunk, got
        got += chunk
    return got


class Answer(NamedTuple):
    """What a command said and how it ended."""

    code: int
    stdout: bytes
    stderr: bytes


def call(capture: pytest.CaptureFixture[bytes], store: Path | str, *arguments: str) -> Answer:
    """Run a command in this process."""
    capture.readouterr()
    code = run_here(["--store", str(store), *arguments])
    stdout, stderr = capture.readouterr()
    return Answer(code, stdout, stderr)


def fill(path: Path, session: str, count: int, payload: bytes = b'{"n":1}\n') -> None:
    """Append records through the API, which is quicker than a process each."""
    with shardstore.open(path) as opened:
        for _ in range(count):
            opened.session(session).append(payload)
