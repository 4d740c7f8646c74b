"""The command line when it is cut short: Ctrl-C, a reader that goes away, a full disk. It ends quietly and at once."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, ENVIRONMENT, command, documents, fill, read_until, run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's path, not made yet."""
    return tmp_path / "store"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children that Ctrl-C reaches, also where the tests run in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_closed_pipe_makes_no_noise(store: Path) -> None:
    """`shardstore cat big | head -1` ends at once, silently, with the code of a broken pipe."""
    fill(store, "big", 50, b'{"x":"%s"}\n' % (b"y" * 100_000))
    for arguments in (["cat", "big"], ["export", "big"], ["tail", "-n", "50", "big"]):
        with subprocess.Popen(
            command(store, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.communicate(timeout=DEADLINE_S)[1] == b""
        assert process.returncode == 141


def test_help_to_a_closed_pipe_makes_no_noise(store: Path) -> None:
    """What click prints by itself, a help or the version, ends like any output where nobody reads: 141, silently."""
    for words in (["--help"], ["--version"], ["cat", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as closed:
            done = subprocess.run(
                command(store, *words), stdout=closed, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=DEADLINE_S
            )
        assert (done.returncode, done.stderr) == (141, b"")


def test_tail_follows_until_interrupted(store: Path, interruptible: None) -> None:
    """`tail -f` shows the last records, then each new one, and ends on Ctrl-C with 130 and no word."""
    fill(store, "a", 1, b'{"n":"first"}\n')
    fill(store, "a", 1, b'{"n":"second"}')
    with subprocess.Popen(
        command(store, "tail", "-f", "-n", "1", "a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert read_until(process.stdout, b"\n") == b'{"n":"second"}\n'
        fill(store, "a", 1, b'{"n":"third"}\n')
        assert read_until(process.stdout, b"\n") == b'{"n":"third"}\n'
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=DEADLINE_S)[1] == b""
    assert process.returncode == 130


def test_tail_ends_when_nobody_reads_it(store: Path) -> None:
    """`tail -f` whose reader has gone ends by itself, although nothing is appended any more."""
    fill(store, "a", 1)
    with subprocess.Popen(
        command(store, "tail", "-f", "a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        read_until(process.stdout, b"\n")
        process.stdout.close()
        assert process.communicate(timeout=DEADLINE_S)[1] == b""
    assert process.returncode == 141


def test_compact_and_its_watcher(store: Path, interruptible: None) -> None:
    """`compact` moves every record into segments; --watch goes on doing so until Ctrl-C."""
    fill(store, "a", 5)
    report = documents(run(store, "compact", "--json"))[0]
    assert (report["session"], report["records"], report["watermark"]) == ("a", 5, 5)
    with subprocess.Popen(
        command(store, "compact", "--watch", "--interval", "0.1", "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        fill(store, "a", 1)
        assert b'"watermark": 6' in read_until(process.stdout, b"\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=DEADLINE_S)[1] == b""
    assert process.returncode == 130


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told(store: Path) -> None:
    """Output that can't be written is an error with its reason, not silence and not a traceback."""
    fill(store, "a", 1)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(store, "cat", "a"), stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=DEADLINE_S
        )
    assert done.returncode == 5
    assert done.stderr.startswith(b"shardstore: ")
    assert done.stderr.count(b"\n") == 1
