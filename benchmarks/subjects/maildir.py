"""`mailbox.Maildir` of the standard library: a file for each message, a box for each session.

Rule: `add` writes to `tmp`, flushes the file and moves it to `new`; it never flushes the folder, without which a
message's name may be gone after a power loss, so that is done here (docs.python.org/3/library/mailbox.html#maildir:
"Maildir uses no locks": writers need none). It can't be told not to flush the file.
Strategy: keys are moments, with microseconds that are not padded to a width: the order of a session is that of the
numbers in its keys. Folders are made beforehand, for `create=True` fails when several do it at once.
"""

from __future__ import annotations

import mailbox
import os
import re
from collections.abc import Iterable
from typing import Any

from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS"]

_KEY = re.compile(r"(\d+)\.M(\d+)P(\d+)Q(\d+)")


class Maildir(Handle):
    """One box a session."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._boxes: dict[str, mailbox.Maildir] = {}

    def _box(self, session: str) -> mailbox.Maildir:
        if session not in self._boxes:
            path = os.path.join(self._folder, session)
            if not os.path.exists(path):
                _make(path)
            self._boxes[session] = mailbox.Maildir(path, create=False)
        return self._boxes[session]

    def _new(self, session: str) -> str:
        return os.path.join(self._folder, session, "new")

    def append(self, session: str, line: bytes) -> None:
        """Add a message, and flush the folder in which its name stands."""
        self.fill(session, (line,))

    def _keys(self, session: str) -> list[str]:
        return sorted(self._box(session).keys(), key=_order)

    def load(self, session: str) -> list[Any]:
        """List the box and read every message."""
        return self.since(session, 0)

    def since(self, session: str, seen: int) -> list[Any]:
        """List the box and read the messages after the first ones."""
        box = self._box(session)
        return decoded(box.get_bytes(key) for key in self._keys(session)[seen:])

    def last(self, session: str, count: int) -> list[Any]:
        """List the box and read the last messages."""
        box = self._box(session)
        return decoded(box.get_bytes(key) for key in self._keys(session)[-count:])

    def sessions(self) -> list[str]:
        """List the folder."""
        return os.listdir(self._folder)

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Add all messages, and flush the folder once."""
        box = self._box(session)
        for line in lines:
            box.add(line)
        _flush(self._new(session))


def _order(key: str) -> tuple[int, int, int, int]:
    found = _KEY.match(key)
    if found is None:
        raise ValueError(f"{key}: not made by mailbox")
    seconds, microseconds, process, number = map(int, found.groups())
    return seconds, microseconds, number, process


def _make(path: str) -> None:
    for name in ("tmp", "cur", "new"):
        os.makedirs(os.path.join(path, name), 0o700, exist_ok=True)
    _flush(path)
    _flush(os.path.dirname(path))


def _flush(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SUBJECTS = (Subject("maildir", "mailbox.Maildir, folder flushed", True, Maildir),)
