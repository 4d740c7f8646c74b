"""What the tests of the mount share: a mounted store, served by a process of its own, and unmounted whatever happens.

Rule: the mount is driven through the kernel by ordinary programs; nothing here looks into the process that serves it.
"""

from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from cli_runner import DEADLINE_S, ENVIRONMENT, command
from helpers import wait_until

import shardstore

__all__ = [
    "Mounted",
    "append",
    "append_elsewhere",
    "append_lines",
    "kill",
    "line_of",
    "lines_of",
    "mounted_in",
    "needs",
    "numbers_of",
    "why_not",
    "write_lines",
]


def why_not() -> str:
    """Return why nothing can be mounted here; "" if it can."""
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed (extra `mount`)"
    if ctypes.util.find_library("fuse3") is None:
        return "libfuse 3 is not installed (Debian: fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or may not be opened"
    return "" if shutil.which("fusermount3") else "fusermount3 is not installed (Debian: fuse3)"


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test where a program is missing."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


class Mounted:
    """A store and the folder that it is mounted on."""

    def __init__(self, home: Path) -> None:
        self.store_path = home / "store"
        self.path = home / "mount"
        self.real = self.path / ".real"
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ()
        self.under: tuple[str, ...] = ()  # a program that runs the mount, such as strace

    def start(self, *options: str) -> None:
        """Mount, with the options of the time before if none are given."""
        self.options = options or self.options
        words = [*self.under, *command(self.store_path, "mount", str(self.path), "--durability", "none", *self.options)]
        self.process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        told = self.process.stderr.readline()
        assert b"mounted" in told, told + self.process.stderr.read()

    def is_mounted(self) -> bool:
        """Say whether something is mounted there, alive or dead."""
        return f" {self.path} " in Path("/proc/self/mounts").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the serving process by a signal; return its exit code."""
        assert self.process is not None
        if self.under:  # which may keep signals to itself
            subprocess.run(["fusermount3", "-u", str(self.path)], check=True)
        else:
            self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process = None
        return code

    def close(self) -> None:
        """Unmount, by force if need be."""
        if self.process is not None:
            self.stop()
        if self.is_mounted():
            subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)

    def session(self, id_: str) -> shardstore.Session:
        """Return a handle by the API."""
        return shardstore.open(self.store_path, durability="none").session(id_)

    def view(self, id_: str) -> bytes:
        """Return a session's bytes by the API."""
        return self.session(id_).read_jsonl()


def mounted_in(home: Path, *options: str) -> Iterator[Mounted]:
    """Yield an empty store that is mounted, for a fixture."""
    mount = Mounted(home)
    try:
        mount.start(*options)
        yield mount
    finally:
        mount.close()


def lines_of(path: Path) -> list[bytes]:
    """Return the lines that a reader finds."""
    return path.read_bytes().splitlines(keepends=True)


def append(path: Path, line: bytes) -> None:
    """Append as programs do: open, one write, close."""
    with open(path, "ab", buffering=0) as file:
        assert file.write(line) == len(line)


def append_elsewhere(path: Path, line: bytes) -> None:
    """Append in a process of its own."""
    code = "import sys; open(sys.argv[1], 'ab').write(sys.argv[2].encode())"
    subprocess.run([sys.executable, "-c", code, str(path), line.decode()], check=True, timeout=DEADLINE_S)


def write_lines(path: str, writer: int, count: int, acknowledged: str) -> None:
    """Append lines by one process, in the ways that there are; note each one outside once its write has returned."""
    with open(acknowledged, "ab", buffering=0) as notes:
        held = None if writer % 2 else open(path, "ab", buffering=0)  # noqa: SIM115 - until the process ends
        for number in range(count):
            line = line_of(writer, number)
            try:
                if held is None:
                    append(Path(path), line)
                else:
                    held.write(line)
            except OSError as error:
                if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    return  # the mount was killed
                raise
            notes.write(b"%d %d\n" % (writer, number))


def append_lines(store_path: str, id_: str, writer: int, count: int) -> None:
    """Append the same lines by the API."""
    with shardstore.open(store_path, durability="none", compact_shards=100) as store:
        for number in range(count):
            store.session(id_).append(line_of(writer, number))


def line_of(writer: int, number: int) -> bytes:
    """Return a line that tells who wrote it; every eighth is more than the kernel hands over at once."""
    filler = "x" * (1_200_000 if number % 40 == 7 else 150_000 if number % 8 == 0 else 40)
    return orjson.dumps({"writer": writer, "number": number, "filler": filler}) + b"\n"


def numbers_of(content: bytes) -> dict[int, list[int]]:
    """Return each writer's numbers in the order in which they stand; every line must be whole."""
    found: dict[int, list[int]] = {}
    for line in content.splitlines(keepends=True):
        entry = orjson.loads(line)
        assert line == line_of(entry["writer"], entry["number"])
        found.setdefault(entry["writer"], []).append(entry["number"])
    return found


def kill(mount: Mounted) -> None:
    """Kill the serving process and wait until the kernel has noticed."""
    assert mount.process is not None
    mount.stop(signal.SIGKILL)

    def dead() -> bool:
        try:
            os.stat(mount.path)
        except OSError:
            return True
        return False

    wait_until(dead, what="the end of a mount")
