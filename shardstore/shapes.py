"""Shapes: which bytes of a record a view shows.

Rule: what is shown of a record depends on it and on the records before it, never on later ones; it is empty or whole
lines, each with its LF. So a view only grows, at its end and by whole lines, as a file and as a mount.
Strategy: a shape is an object for one session, shown its records in seq order from the first one; what it remembers
stays small. Bytes that can't be a header are passed on after one search through them.
"""

from __future__ import annotations

from typing import Protocol

from shardstore.record import Record, decode_line, split_lines

__all__ = ["OneHeader", "Shape"]


class Shape(Protocol):
    """Decides what is shown of one session's records."""

    def shown(self, record: Record) -> bytes:
        """Return what is shown of the record that follows the one of the call before: nothing, or whole lines."""


class OneHeader:
    """The records as they are, but for headers after the first line: readers expect exactly one, at the beginning.

    A header is a JSON object whose member `type` is the string `session`, spelled without escapes. Where the first line
    is none, every line is shown.
    """

    __slots__ = ("_is_headed",)

    def __init__(self) -> None:
        self._is_headed: bool | None = None  # None until there was a line that is not blank

    def shown(self, record: Record) -> bytes:
        """Return the payload, with a LF at its end, without headers that come too late; of a control record nothing."""
        payload = record.payload
        if record.kind == "control" or not payload:
            return b""
        if self._is_headed is None:
            payload = self._begun(payload)
        elif self._is_headed and b'"session"' in payload:
            payload = b"".join(line for line in split_lines(payload) if not _is_header(line))
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


def _is_header(line: bytes) -> bool:
    if b'"session"' not in line:
        return False
    entry = decode_line(line, 0, "raw")
    return isinstance(entry, dict) and entry.get("type") == "session"
