"""Shapes: which bytes of a record a view shows.

Rule: what is shown of a record depends on it and on the records before it, never on later ones; it is empty or whole
lines, each with its LF. So a view only grows, at its end and by whole lines, as a file and as a mount.
Strategy: a shape is an object for one session, shown its records in seq order from the first one; what it remembers
stays small. Bytes that can't be a header, nor hold an entry with an id, are passed on after a search through them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Protocol

from shardstore.record import Record, decode_line, split_lines

__all__ = ["Readable", "Shape"]


class Shape(Protocol):
    """Decides what is shown of one session's records."""

    def shown(self, record: Record) -> bytes:
        """Return what is shown of the record that follows the one of the call before: nothing, or whole lines."""


REPEATS_MAX = 512  # entries that are remembered: a retry comes soon after


class Readable:
    """The records as readers expect them: but for headers after the first line, and for entries that are there already.

    A header is a JSON object whose member `type` is the string `session`, spelled without escapes. Where the first line
    is none, all of them are shown. An entry that is there already is a line with a string `id` or `uuid` (so spelled)
    that equals one of the last 512 of its kind, byte for byte: a writer's second try.
    """

    __slots__ = ("_is_headed", "_recent", "_recent_set")

    def __init__(self) -> None:
        self._is_headed: bool | None = None  # None until there was a line that is not blank
        self._recent: deque[bytes] = deque()  # digests of lines
        self._recent_set: set[bytes] = set()

    def shown(self, record: Record) -> bytes:
        """Return what is left of the payload, with a LF at its end; of a control record nothing."""
        payload = record.payload
        if record.kind == "control" or not payload:
            return b""
        if self._is_headed is None:
            payload = self._begun(payload)
        elif self._is_headed and b'"session"' in payload:
            payload = b"".join(line for line in split_lines(payload) if not _is_header(line))
        if b'"id"' in payload or b'"uuid"' in payload:
            payload = self._once(payload)
        return payload if payload.endswith(b"\n") or not payload else payload + b"\n"

    def _begun(self, payload: bytes) -> bytes:
        """Return what is shown of a payload that may hold the first line."""
        lines = split_lines(payload)
        first = next((place for place, line in enumerate(lines) if line.strip()), None)
        if first is None:
            return payload
        self._is_headed = _is_header(lines[first])
        if not self._is_headed:
            return payload
        return b"".join(lines[: first + 1] + [line for line in lines[first + 1 :] if not _is_header(line)])

    def _once(self, payload: bytes) -> bytes:
        """Return a payload without entries that are there already."""
        lines = split_lines(payload)
        new = [line for line in lines if not self._is_repeated(line)]
        return payload if len(new) == len(lines) else b"".join(new)

    def _is_repeated(self, line: bytes) -> bool:
        if b'"id"' not in line and b'"uuid"' not in line:
            return False
        digest = hashlib.blake2b(line.removesuffix(b"\n"), digest_size=16).digest()
        if digest in self._recent_set:
            return _has_id(line)
        if len(self._recent) == REPEATS_MAX:
            self._recent_set.discard(self._recent.popleft())
        self._recent.append(digest)
        self._recent_set.add(digest)
        return False


def _has_id(line: bytes) -> bool:
    entry = decode_line(line, 0, "raw")
    return isinstance(entry, dict) and any(isinstance(entry.get(name), str) for name in ("id", "uuid"))


def _is_header(line: bytes) -> bool:
    if b'"session"' not in line:
        return False
    entry = decode_line(line, 0, "raw")
    return isinstance(entry, dict) and entry.get("type") == "session"
