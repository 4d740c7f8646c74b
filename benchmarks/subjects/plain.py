"""A plain `.jsonl` file with O_APPEND: no lock, one write a line."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import watchfiles

from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS", "Jsonl"]

SUFFIX = ".jsonl"
TAIL_PIECE = 1 << 16
DEBOUNCE_MS, STEP_MS, TIMEOUT_MS = 20, 1, 1_000  # of watchfiles: those that shardstore's follower has, too


class Jsonl(Handle):
    """One file a session; its descriptor stays open."""

    following = "woken by watchfiles, read from where it ended"

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
        """Read the file and decode every line but a last one without its LF, which somebody is writing."""
        with open(self.path(session), "rb") as lines:
            return decoded(line for line in lines if line.endswith(b"\n"))

    def last(self, session: str, count: int) -> list[Any]:
        """Read backwards until there are enough lines, as `tail` does."""
        with open(self.path(session), "rb") as file:
            end, tail = file.seek(0, os.SEEK_END), b""
            while end and tail.count(b"\n") <= count:
                begin = max(end - TAIL_PIECE, 0)
                file.seek(begin)
                tail, end = file.read(end - begin) + tail, begin
        return decoded(tail[: tail.rfind(b"\n") + 1].splitlines()[-count:])

    def follow(self, session: str, stop: threading.Event) -> Iterator[Any]:
        """Read what is new whenever watchfiles tells of a change."""
        path = self.path(session)
        return _grown(path, os.stat(path).st_size, stop)

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


def _grown(path: str, offset: int, stop: threading.Event) -> Iterator[Any]:
    times = {"debounce": DEBOUNCE_MS, "step": STEP_MS, "rust_timeout": TIMEOUT_MS}
    changes = watchfiles.watch(path, watch_filter=None, stop_event=stop, yield_on_timeout=True, **times)  # type: ignore[arg-type]
    with open(path, "rb") as file:
        file.seek(offset)
        rest = b""
        for _ in changes:
            *whole, rest = (rest + file.read()).split(b"\n")
            yield from decoded(whole)


SUBJECTS = (
    Subject("jsonl", ".jsonl, O_APPEND, fdatasync", True, partial(Jsonl, durable=True)),
    Subject("jsonl-unsynced", ".jsonl, O_APPEND", False, partial(Jsonl, durable=False)),
)
