"""The operations of a gateway with a fingerprint fence, in its order, while a co-tenant writes in the midst of them.

Rule: the gateway here does what OpenClaw 2026.5.20 was seen to do. It locks by a sidecar, reads, appends, remembers
the fingerprint, unlocks while the model thinks, locks again and gives up if the fingerprint is another one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import join_all, processes
from mounts import Mounted, append, append_elsewhere, lines_of, mounted_in, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

Fingerprint = tuple[int, int, int, int, int]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store, empty."""
    yield from mounted_in(tmp_path)


class TakeoverError(Exception):
    """Somebody else has written: the reply is thrown away."""


class Gateway:
    """An agent's gateway, which knows nothing but files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = folder / "5b3c.jsonl"
        self.lock = folder / "5b3c.jsonl.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sidecar lock, as {pid, createdAt, starttime}."""
        lock = os.open(self.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(lock, json.dumps({"pid": os.getpid(), "createdAt": "2026-11-21", "starttime": 1}).encode())
        os.close(lock)
        try:
            yield
        finally:
            self.lock.unlink()

    def fingerprint(self) -> Fingerprint:
        """Return what the fence compares."""
        found = os.stat(self.session)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def save_index(self, count: int) -> None:
        """Replace sessions.json by a temporary file and a rename."""
        temporary = self.folder / f"sessions.json.{os.getpid()}.{count}.tmp"
        temporary.write_text(json.dumps({"main": {"sessionId": "5b3c", "turns": count}}))
        temporary.replace(self.folder / "sessions.json")

    def begin(self, turn: int) -> tuple[Fingerprint, list[bytes]]:
        """Append the question and release the lock; return the fence and what the model is given."""
        with self.locked():
            if self.session.exists():
                os.stat(self.session)
                assert os.stat(self.session).st_size > 0
            else:
                append(self.session, b'{"type":"session","id":"5b3c"}\n')
            append(self.session, b'{"role":"user","turn":%d}\n' % turn)
            context = self.session.read_bytes().splitlines(keepends=True)
            return self.fingerprint(), context

    def end(self, turn: int, fence: Fingerprint) -> None:
        """Lock again and append the reply, unless the file has changed."""
        with self.locked():
            if self.fingerprint() != fence:
                raise TakeoverError
            for part in (b"toolResult", b"assistant"):
                append(self.session, b'{"role":"%s","turn":%d}\n' % (part, turn))
            append(self.folder / "5b3c.trajectory.jsonl", b'{"turn":%d}\n' % turn)
            self.fingerprint()
        self.save_index(turn)


def disturbed_turns(gateway: Gateway, cotenants: list[object]) -> list[bytes]:
    """Take a turn for each co-tenant, who writes while the model thinks; return all lines that were written."""
    written = [b'{"type":"session","id":"5b3c"}\n']
    for turn, cotenant in enumerate(cotenants):
        fence, context = gateway.begin(turn)
        written.append(b'{"role":"user","turn":%d}\n' % turn)
        assert context == written
        line = b'{"role":"heartbeat","turn":%d}\n' % turn
        cotenant(line)  # type: ignore[operator]
        gateway.end(turn, fence)
        written += [line, b'{"role":"toolResult","turn":%d}\n' % turn, b'{"role":"assistant","turn":%d}\n' % turn]
    return written


def test_the_fence_trips_on_a_plain_folder(tmp_path: Path) -> None:
    """On ordinary files the same sequence throws the reply away: the test of the mount below can fail."""
    gateway = Gateway(tmp_path)
    with pytest.raises(TakeoverError):
        disturbed_turns(gateway, [lambda line: append_elsewhere(gateway.session, line)])


def test_the_fence_does_not_trip_on_a_mount(mount: Mounted) -> None:
    """Whoever writes meanwhile, through the mount or by the API, every line of both is there, in order."""
    gateway = Gateway(mount.path)
    cotenants = [
        lambda line: append(gateway.session, line),
        lambda line: append_elsewhere(gateway.session, line),
        lambda line: mount.session("5b3c").event(line, source="heartbeat"),
        lambda line: (append_elsewhere(gateway.session, line), os.utime(gateway.session)),
        lambda line: append_elsewhere(mount.real / "5b3c.jsonl", line),
    ]
    written = disturbed_turns(gateway, cotenants)
    assert lines_of(gateway.session) == written
    assert mount.view("5b3c") == b"".join(written)
    assert json.loads((mount.path / "sessions.json").read_text())["main"]["turns"] == 4
    assert len(lines_of(mount.path / "5b3c.trajectory.jsonl")) == 5
    assert sorted(os.listdir(mount.path)) == ["5b3c.jsonl", "5b3c.trajectory.jsonl", "sessions.json"]


def replace_index(folder: Path, count: int) -> None:
    """Replace the index again and again."""
    for turn in range(count):
        Gateway(folder).save_index(turn)


def test_the_index_is_never_missing(mount: Mounted) -> None:
    """A reader of a file that is replaced again and again finds it at every moment, whole."""
    Gateway(mount.path).save_index(0)
    writer = processes.Process(target=replace_index, args=(mount.path, 300))
    writer.start()
    reads = 0
    while writer.exitcode is None:
        try:
            with open(mount.path / "sessions.json") as file:
                json.load(file)
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced twice while it was opened: the kernel looks again but once
                raise
            continue
        reads += 1
    join_all([writer])
    assert reads
