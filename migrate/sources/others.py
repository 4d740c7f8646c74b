"""Any other JSONL, labelled by the shapes that most programs use.

Rule: everything is recognised, so nothing is refused; whoever asks in turn asks this one last. A line is a turn if it,
or its `message`, has a role (user, assistant, tool, system, …) or the type of a message or of a tool's call or result;
everything else is an event of `main`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .base import EVENT, TURN, Found, Label, Labeller, Report, pass_over, walk
from .reading import decoded, named, time_of

__all__ = ["ANY"]

NAMES = re.compile(r".+\.(?:jsonl|ndjson|jsonl\..+|ndjson\.zst)", re.DOTALL)
ROLES = frozenset({"user", "assistant", "tool", "system", "developer", "model", "function", "toolResult"})
TYPES = frozenset({"user", "assistant", "message", "tool_call", "tool_result", "tool_use"})
TYPES |= {"function_call", "function_call_output"}


class _Message(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    timestamp: Any = None


class _Line(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    timestamp: Any = None
    time: Any = None
    ts: Any = None
    created_at: Any = None
    at: Any = None
    message: _Message | str | None = None


_decode = msgspec.json.Decoder(_Line).decode


class _Labeller:
    """Labels the lines of a file whose program nobody knows."""

    __slots__ = ("lane",)

    def __init__(self, lane: str) -> None:
        self.lane = lane

    def label(self, line: bytes) -> Label:
        """See `base.Labeller`."""
        found = decoded(_decode, _Line, line)
        message = found.message if isinstance(found.message, _Message) else None
        is_turn = found.role in ROLES or found.type in TYPES
        if message is not None:
            is_turn = is_turn or message.role in ROLES or message.type in TYPES
        for time in (found.timestamp, found.time, found.ts, found.created_at, found.at):
            if time is not None and (at_ms := time_of(time)) is not None:
                return Label(TURN if is_turn else EVENT, self.lane, at_ms)
        at_ms = None if message is None else time_of(message.timestamp)
        return Label(TURN if is_turn else EVENT, self.lane, at_ms)


class Jsonl:
    """JSONL of any program."""

    name = "jsonl"

    def homes(self, home: str, environ: dict[str, str]) -> Sequence[str]:  # noqa: ARG002
        """See `base.Format`: nobody's home."""
        return []

    def find(self, folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[Found]:
        """See `base.Format`: the files that are called JSONL, or were before they were renamed or compressed."""
        for path in walk(folder, on_error, within):
            if NAMES.fullmatch(os.path.basename(path)):
                name = named(folder, path)
                session = f"{self.name}/{name.removesuffix('.jsonl')}"
                yield Found(path=path, name=name, format=self.name, agent=self.name, session=session)

    def recognises(self, head: bytes) -> bool:  # noqa: ARG002
        """See `base.Format`: whatever it is."""
        return True

    def labeller(self, lane: str) -> Labeller:
        """See `base.Format`."""
        return _Labeller(lane)


ANY = Jsonl()
