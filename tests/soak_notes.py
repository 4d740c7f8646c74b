"""What the processes of a soak share: the control file, the notes that each of them keeps, and what payloads say.

Rule: a note is one unbuffered write to the process's own file, made before the next operation begins, so that a
SIGKILL loses none that was made; every time is CLOCK_MONOTONIC, one clock for all processes. A payload is a function
of its call's id, so that its bytes can be checked without having been noted.
Strategy: sessions live in chapters; the notes about a session lie in its chapter's folder and go when it goes.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Control", "Notes", "call_of", "chapter_of", "folder_of", "lines_of", "now_ns", "payload_of"]

PAD_BYTES_MAX = 300
LARGE_BYTES, LARGE_EVERY = 40_000, 199  # one payload in so many is large

now_ns = time.monotonic_ns


def payload_of(call: str) -> bytes:
    """Return the one line that the call `call` appends."""
    mix = zlib.crc32(call.encode())
    size = LARGE_BYTES if mix % LARGE_EVERY == 0 else mix % PAD_BYTES_MAX
    pad = (f"{mix:08x}" * (size // 8 + 1))[:size]
    return b'{"call":"%s","pad":"%s"}\n' % (call.encode(), pad.encode())


def call_of(payload: bytes) -> str:
    """Return the id of the call that a payload says it is from; the whole line must be what that call appends."""
    try:
        call = str(json.loads(payload)["call"])
    except (ValueError, KeyError, TypeError):
        return ""
    return call if payload_of(call) == payload else ""


def folder_of(folder: Path, chapter: int) -> Path:
    """Return where a chapter's notes lie."""
    return folder / "notes" / f"{chapter:06d}"


def chapter_of(session: str) -> int:
    """Return the chapter that a session was born in, 0 for those that are judged at the end."""
    return int(session[1:].partition("-")[0]) if session.startswith("c") else 0


@dataclass
class Control:
    """What the supervisor tells everybody: the chapter, its sessions, which of them may be deleted or imported."""

    chapter: int = 0
    stop: bool = False
    sessions: list[str] = field(default_factory=list)
    doomed: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace the control file."""
        temp = folder / "control.new"
        temp.write_text(json.dumps(asdict(self)))
        temp.rename(folder / "control.json")

    @staticmethod
    def read(folder: Path) -> Control:
        """Return what the control file says now."""
        return Control(**json.loads((folder / "control.json").read_text()))


class Notes:
    """One process's notes, a file a chapter."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._files: dict[int, int] = {}

    def note(self, chapter: int, *facts: object) -> None:
        """Write one line; of a chapter that was judged and removed nothing more is noted."""
        fd = self._files.get(chapter)
        if fd is None:
            path = folder_of(self._folder, chapter) / self._name
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            except FileNotFoundError:
                return
            self._files[chapter] = fd
        os.write(fd, " ".join(map(str, facts)).encode() + b"\n")

    def close(self) -> None:
        """Let go of the files; the next note opens its own again."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def lines_of(folder: Path, chapter: int) -> Iterator[list[str]]:
    """Yield the whole lines of a chapter's notes, split at spaces, file by file."""
    for path in sorted(folder_of(folder, chapter).iterdir()):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield line.decode().split(" ")
