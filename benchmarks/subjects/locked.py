"""A `.jsonl` behind filelock: every append holds a FileLock.

Rule: one FileLock object for each session and process, its file beside the session's, with a timeout, as its
documentation has it (py-filelock.readthedocs.io). Readers need no lock, for the file only grows; they leave an
unfinished last line out.
Strategy: filelock asks for the lock again and again, by default every 50 ms, which is long beside an append. Of
intervals between 0.1 and 50 ms, 5 let the most appends of sixteen writers through, and nearly the most of four.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.subjects.base import Refused, Subject
from benchmarks.subjects.plain import Jsonl

__all__ = ["SUBJECTS", "Locked"]

TIMEOUT_S = 60.0
POLL_S = 0.005


class Locked(Jsonl):
    """One file and one lock a session."""

    def __init__(self, folder: str, *, durable: bool, timeout_s: float = TIMEOUT_S, poll_s: float = POLL_S) -> None:
        import filelock

        super().__init__(folder, durable=durable)
        self._new_lock = partial(filelock.FileLock, timeout=timeout_s, poll_interval=poll_s)
        self._timeout = filelock.Timeout
        self._locks: dict[str, Any] = {}

    def lock(self, session: str) -> Any:
        """Return a session's lock, the same for every call."""
        if session not in self._locks:
            self._locks[session] = self._new_lock(self.path(session) + ".lock")
        return self._locks[session]

    def append(self, session: str, line: bytes) -> None:
        """Write one line under the lock; durable: and wait for the disk before others may write."""
        try:
            with self.lock(session):
                super().append(session, line)
        except self._timeout as error:
            raise Refused(str(error)) from error


SUBJECTS = (
    Subject("filelock", ".jsonl + filelock, fdatasync", True, partial(Locked, durable=True), ("filelock",)),
    Subject("filelock-unsynced", ".jsonl + filelock", False, partial(Locked, durable=False), ("filelock",)),
)
