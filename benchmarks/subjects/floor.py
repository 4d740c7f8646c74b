"""The floor: the bare system calls of an append, so that every figure can be read as a multiple of what a machine can.

Rule: the file's floor is what any log must do: one write, and durable one fdatasync. The record's floor is what
`strace` shows of the engine's append, in that order. Durable: getrandom (the nonce), openat(O_CREAT|O_EXCL), writev,
fdatasync, linkat, pwrite (the hint), close, unlinkat, fsync (folder), newfstatat of the manifest. Unsynced: getrandom,
openat(O_TMPFILE), writev, linkat, pwrite, close, newfstatat. Change it together with the engine.
Strategy: the loop is C (`floor.c`), compiled into the run's folder and called once; without a compiler the same calls
are made from Python. The answer says which. What was written is read back and checked like any subject's.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
import subprocess
from abc import abstractmethod
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lines import bodies, line_of
from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS", "Floor"]

Bare = Callable[[str, int, float, int], dict[str, Any]]
SOURCE = Path(__file__).with_name("floor.c")
SUFFIX = ".jsonl"
HEADER_BYTES = 161  # of a shard whose record has no key and no base
_HINT = struct.Struct("<Q")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAMED = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Floor(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_int),
        *((name, ctypes.c_int) for name in ("folder", "shards", "hint", "durable", "unnamed")),
        ("header_size", ctypes.c_int64),
        ("header", ctypes.c_char_p),
        ("temp", ctypes.c_char_p),
    )


class _Source(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("writer", "first", "steps")),
        ("bodies", ctypes.c_char_p),
        ("ends", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("most", "budget_ns")),
    )


def _compiled(folder: str) -> ctypes.CDLL | None:
    """Compile the loop into a folder and load it; None where that can't be done."""
    command, path = shutil.which("cc") or shutil.which("gcc"), os.path.join(folder, "floor.so")
    if command is None:
        return None
    done = subprocess.run([command, "-O2", "-shared", "-fPIC", "-o", path, str(SOURCE)], capture_output=True)
    return ctypes.CDLL(path) if done.returncode == 0 else None


class Floor(Handle):
    """What all floors share: the loop. A subclass knows its calls; it is used for one session and one writer."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self.note = ""

    def prepared(self) -> Bare | None:
        """Compile the loop and return what runs it, None if there is no compiler; `append` has made line 0 before.

        It takes a mix, the writer's number, seconds and the most lines, appends from line 1 on, and answers as
        `Writing.answer` does. It raises OSError.
        """
        library = _compiled(self._folder)
        self.note = "made from C" if library else "made from Python, for there is no C compiler"
        return partial(self._append_for, library.append_for) if library else None

    def _append_for(self, loop: Any, mix: str, writer: int, seconds: float, most: int) -> dict[str, Any]:
        bare = [
            line_of(mix, writer, number).split(b",", 2)[2] for number in range(len(bodies(mix)))
        ]  # without the head
        ends, took, span = (
            array("q", itertools.accumulate(map(len, bare))),
            array("q", [0]) * most,
            array("q", [0, 0]),
        )
        floor, text = self.described(), b"".join(bare)
        source = _Source(writer, 1, len(bare), text, ends.buffer_info()[0], most, int(seconds * 1e9))
        loop.restype, loop.argtypes = ctypes.c_int64, [ctypes.c_void_p] * 4
        done = loop(ctypes.addressof(floor), ctypes.addressof(source), took.buffer_info()[0], span.buffer_info()[0])
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        took_us = [round(one / 1e3, 1) for one in took[:done]]
        return {"start": span[0], "end": span[1], "took_us": took_us, "count": 1 + done, "refused": []}

    @abstractmethod
    def described(self) -> _Floor:
        """Return what the loop has to know."""


class FloorFile(Floor):
    """One `.jsonl`."""

    _file = -1  # a descriptor, once something was appended

    def append(self, session: str, line: bytes) -> None:
        """Write; durable: and flush."""
        if self._file < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(os.path.join(self._folder, session + SUFFIX), flags, 0o600)
        os.write(self._file, line)
        if self._durable:
            os.fdatasync(self._file)

    def described(self) -> _Floor:
        """Return the file."""
        return _Floor(self._file, -1, -1, -1, self._durable)

    def load(self, session: str) -> list[Any]:
        """Read the file and decode every line."""
        with open(os.path.join(self._folder, session + SUFFIX), "rb") as lines:
            return decoded(lines)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)


class FloorRecord(Floor):
    """A file for each record."""

    _shards = _session = _hint = -1
    _seq = 0

    def __init__(self, folder: str, *, durable: bool) -> None:
        super().__init__(folder, durable=durable)
        self._header = b"{" + b" " * (HEADER_BYTES - 3) + b"}\n"
        self._temps = f".tmp-{os.getpid()}-{os.urandom(8).hex()}-"
        self._unnamed = not durable

    def _begin(self, session: str) -> None:
        path = os.path.join(self._folder, session)
        os.makedirs(os.path.join(path, "shards"), 0o700)
        Path(path, "manifest.json").write_bytes(b"{}\n")
        self._session = os.open(path, _FOLDER)
        self._shards = os.open("shards", _FOLDER, dir_fd=self._session)
        self._hint = os.open("head", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._session)
        try:
            os.close(self._open(""))
        except OSError:
            self._unnamed = False  # as the engine does where the filesystem has no unnamed files

    def _open(self, temp: str) -> int:
        if self._unnamed:
            return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._shards)
        return os.open(temp, _NAMED, 0o600, dir_fd=self._shards)

    def append(self, session: str, line: bytes) -> None:
        """Make the system calls of the engine's append."""
        if self._session < 0:
            self._begin(session)
        shards = self._shards
        self._seq += 1
        os.urandom(16)
        name, temp = f"{self._seq:020d}.shard", f"{self._temps}{self._seq}"
        fd = self._open(temp)
        os.writev(fd, (self._header, line))
        if self._durable:
            os.fdatasync(fd)
        linked = f"/proc/self/fd/{fd}" if self._unnamed else temp
        os.link(linked, name, src_dir_fd=shards, dst_dir_fd=shards, follow_symlinks=self._unnamed)
        os.pwrite(self._hint, _HINT.pack(self._seq), 0)
        os.close(fd)
        if not self._unnamed:
            os.unlink(temp, dir_fd=shards)
        if self._durable:
            os.fsync(shards)
        os.stat("manifest.json", dir_fd=self._session, follow_symlinks=False)

    def described(self) -> _Floor:
        """Return the folders, and what a file begins with."""
        fds = (self._session, self._shards, self._hint)
        return _Floor(-1, *fds, self._durable, self._unnamed, len(self._header), self._header, self._temps.encode())

    def load(self, session: str) -> list[Any]:
        """Read all files in the order of their names."""
        shards = Path(self._folder, session, "shards")
        return decoded(self._payload(path) for path in sorted(shards.iterdir()))

    def _payload(self, path: Path) -> bytes:
        header, _, payload = path.read_bytes().partition(b"\n")
        if len(header) + 1 != HEADER_BYTES:
            raise ValueError(f"{path.name}: no record")
        return payload

    def close(self) -> None:
        """Close the folders."""
        for fd in (self._hint, self._shards, self._session):
            if fd >= 0:
                os.close(fd)


SUBJECTS = tuple(
    Subject(f"{name}{'' if durable else '-unsynced'}", f"floor: {label}{synced if durable else ''}", durable,
            partial(kind, durable=durable), is_floor=True)
    for name, label, kind, synced in (
        ("floor-file", "one file", FloorFile, ", fdatasync"),
        ("floor-record", "a file a record", FloorRecord, ", synced"),
    )
    for durable in (True, False)
)  # fmt: skip
