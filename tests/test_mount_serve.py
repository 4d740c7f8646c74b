"""Mounting and unmounting: what ends a mount, what stands in its way, and what is left after it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import ENVIRONMENT, run
from mounts import Mounted, append, kill, lines_of, mounted_in, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ONE = b'{"n":1}\n'


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store, empty."""
    yield from mounted_in(tmp_path)


def test_a_killed_mount_is_mounted_again(mount: Mounted) -> None:
    """After kill -9 the same command mounts at once, and everything written is there."""
    append(mount.path / "a.jsonl", ONE)
    kill(mount)
    with pytest.raises(OSError, match="not connected"):
        os.stat(mount.path)
    mount.start()
    assert lines_of(mount.path / "a.jsonl") == [ONE]


def test_the_end_commits_what_was_half_written(mount: Mounted) -> None:
    """A clean end commits lines that no newline has ended, of files that are still open."""
    file = os.open(mount.path / "a.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, b"half a line")
    assert mount.stop() == 0
    assert not mount.is_mounted()
    assert mount.view("a") == b"half a line"
    with pytest.raises(OSError, match="connected"):
        os.write(file, b"more")
    with pytest.raises(OSError, match="connected"):
        os.close(file)


def test_background_and_unmount(tmp_path: Path) -> None:
    """`mount --background` returns when the folder answers, `unmount` takes it away; both say what is wrong."""
    store, folder = tmp_path / "store", tmp_path / "mount"
    run(tmp_path / "another", "mount", str(store), str(folder), "--background")
    try:
        append(folder / "a.jsonl", ONE)
        assert b"mounted here already" in run(store, "mount", str(folder), "--background", code=4).stderr
        with open(folder / "a.jsonl", "rb"):
            assert b"can't unmount" in run(store, "unmount", str(folder), code=5).stderr
    finally:
        run(store, "unmount", str(folder))
    assert b"no store is mounted here" in run(store, "unmount", str(folder), code=3).stderr
    assert run(store, "cat", "a").stdout == ONE


def test_what_can_not_be_mounted(tmp_path: Path) -> None:
    """A folder with transcripts that no session stands for, or within the store, is refused with what to do."""
    store, folder = tmp_path / "store", tmp_path / "mount"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "old.jsonl").write_bytes(ONE)
    for background in ((), ("--background",)):
        told = run(store, "mount", str(folder), *background, code=2).stderr
        assert b"shardstore migrate run" in told
        assert b"deep/old.jsonl" in told
    assert b"in each other" in run(store, "mount", str(store / "x"), code=2).stderr
    assert b"in each other" in run(folder / "store", "mount", str(folder), code=2).stderr
    assert not os.path.ismount(folder)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("sys.modules['mfusepy'] = None", b"shardstore[mount]"),
        ("import ctypes.util; ctypes.util.find_library = lambda name: None", b"apt install fuse3"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, told: bytes) -> None:
    """Without the extra, or without libfuse, one line says what to install."""
    words = ["--store", str(tmp_path / "store"), "mount", str(tmp_path / "mount")]
    code = f"import sys; {missing}; from shardstore.cli.app import run; sys.exit(run({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (5, 1)
    assert told in done.stderr
