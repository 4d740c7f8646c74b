"""A plain `.jsonl` file with O_APPEND: no lock, one write a line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS", "Jsonl"]

SUFFIX = ".jsonl"
TAIL_PIECE = 1 << 16


class Jsonl(Handle):
    """One file a session; its descriptor stays open."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._files: dict[str, int] = {}

    def path(self, session: str) -> str:
        """Return where a session's file lies."""
        return os.path.join(self._folder, session + SUFFIX)

    def file(self, session: str) -> int:
        """Return the descriptor of a session's file, the same for every call."""
        if session not in self._files:
            self._files[session] = os.open(self.path(session), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return self._files[session]

    def append(self, session: str, line: bytes) -> None:
        """Write one line; durable: and wait for the disk."""
        file = self.file(session)
        if os.write(file, line) != len(line):
            raise OSError(f"{self.path(session)}: a line was cut short")
        if self._durable:
            os.fdatasync(file)

    def load(self, session: str) -> list[Any]:
        """Read the file and decode every line."""
        with open(self.path(session), "rb") as lines:
            return decoded(lines)

    def last(self, session: str, count: int) -> list[Any]:
        """Read backwards until there are enough lines, as `tail` does."""
        with open(self.path(session), "rb") as file:
            end, tail = file.seek(0, os.SEEK_END), b""
            while end and tail.count(b"\n") <= count:
                begin = max(end - TAIL_PIECE, 0)
                file.seek(begin)
                tail, end = file.read(end - begin) + tail, begin
        return decoded(tail.splitlines()[-count:])

    def sessions(self) -> list[str]:
        """List the folder."""
        return [name.removesuffix(SUFFIX) for name in os.listdir(self._folder) if name.endswith(SUFFIX)]

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Write all lines through one buffer; durable: and wait for the disk once."""
        with open(self.path(session), "ab") as file:
            file.writelines(lines)
            if self._durable:
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])


SUBJECTS = (
    Subject("jsonl", ".jsonl, O_APPEND, fdatasync", True, partial(Jsonl, durable=True)),
    Subject("jsonl-unsynced", ".jsonl, O_APPEND", False, partial(Jsonl, durable=False)),
)
