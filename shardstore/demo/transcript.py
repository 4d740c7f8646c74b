"""A transcript's lines, cut into history, turns and model calls. The bytes of a line are never touched.

A turn begins with a user's message; its reply is everything from the first assistant entry to the next turn, cut into
at most a few model calls, each of which begins with an assistant entry. Roles are found where the common gateways and
agents put them (pi and OpenClaw, Claude Code, Codex, Copilot, Droid, Gemini), without knowing any one format. Where a
transcript has one question and a long chain of tools, tool results open turns as well: they are what the model is
called with.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import shardstore

__all__ = ["Reply", "Script", "Turn", "cut", "output_tokens", "read_transcript", "role_of"]

TRANSCRIPT_BYTES_MAX = 256 << 20
ASSISTANT_TYPES = ("assistant", "gemini", "agent_message", "agent_reasoning", "reasoning", "function_call", "tool_call")
TOOL_TYPES = ("function_call_output", "tool_result", "toolResult", "custom_tool_call_output", "tool.")


@dataclass(frozen=True)
class Reply:
    """What one model call brings: whole lines, and the output tokens they say they cost (None: they don't say)."""

    lines: tuple[bytes, ...]
    tokens: int | None


@dataclass(frozen=True)
class Turn:
    """A message and the model calls that answer it."""

    message: tuple[bytes, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Script:
    """A transcript cut up: what lay there before, and the turns to live through."""

    history: tuple[bytes, ...]
    turns: tuple[Turn, ...]


def read_transcript(path: str) -> list[bytes]:
    r"""Return a file's lines without their \n; blank lines are left out."""
    file = Path(path)
    if file.stat().st_size > TRANSCRIPT_BYTES_MAX:
        raise shardstore.InvalidRequest(
            _facts("the transcript is too long for the demo", path=path, limit_bytes=TRANSCRIPT_BYTES_MAX)
        )
    return [line for line in file.read_bytes().split(b"\n") if line.strip()]


def _facts(sentence: str, **facts: object) -> str:
    """Return an error message as shardstore words them."""
    return " ".join([sentence, *(f"{name}={value!r}" for name, value in facts.items())])


def cut(lines: Sequence[bytes], *, turns: int, calls: int) -> Script:
    """Return the last `turns` turns of a transcript, of at most `calls` model calls each, and what came before.

    Fewer where the transcript has fewer. Raises InvalidRequest where no message with an answer is recognised.
    """
    roles = [role_of(line) for line in lines]
    starts: list[int] = []
    for opening in (("user",), ("user", "tool")):
        starts = list(_turn_starts(roles, opening))
        if len(starts) >= turns:
            break
    if not starts:
        raise shardstore.InvalidRequest(
            _facts("no message with an answer is recognised in this transcript", lines=len(lines))
        )
    starts = starts[-turns:]
    ends = [*starts[1:], len(lines)]
    found = [_turn(lines[start:end], roles[start:end], calls) for start, end in zip(starts, ends, strict=True)]
    return Script(history=tuple(lines[: starts[0]]), turns=tuple(found))


def _turn_starts(roles: Sequence[str], opening: Collection[str]) -> Iterator[int]:
    """Yield where turns begin: at the first opening line of each run that an assistant entry answers."""
    start: int | None = None
    for place, role in enumerate(roles):
        if role == "assistant":
            if start is not None:
                yield start
            start = None
        elif role in opening and start is None:
            start = place


def _turn(lines: Sequence[bytes], roles: Sequence[str], calls: int) -> Turn:
    """Cut one turn's lines into its message and its model calls."""
    first = roles.index("assistant")
    steps = [
        place
        for place in range(first, len(lines))
        if roles[place] == "assistant" and (place == first or roles[place - 1] != "assistant")
    ]
    count = min(calls, len(steps))
    starts = [steps[number * len(steps) // count] for number in range(count)]
    ends = [*starts[1:], len(lines)]
    replies = tuple(_reply(lines[start:end]) for start, end in zip(starts, ends, strict=True))
    return Turn(message=tuple(lines[:first]), replies=replies)


def _reply(lines: Sequence[bytes]) -> Reply:
    return Reply(lines=tuple(lines), tokens=output_tokens(lines))


def role_of(line: bytes) -> str:
    """Return who speaks in a line: `user`, `assistant`, `tool`, or `other`."""
    entry = _decode(line)
    for part in (entry, entry.get("message"), entry.get("payload"), entry.get("data")):
        if isinstance(part, dict) and isinstance(part.get("role"), str):
            return _role_by_name(part)
    inner = entry.get("payload") if isinstance(entry.get("payload"), dict) else entry
    kind = inner.get("type") if isinstance(inner, dict) else None
    return _role_by_type(kind) if isinstance(kind, str) else "other"


def _role_by_name(part: dict[str, object]) -> str:
    """Return the role of a message that names it; a user's message that only carries tool results is a tool's."""
    role = part["role"]
    if role == "user":
        content = part.get("content")
        blocks = content if isinstance(content, list) else []
        only_results = bool(blocks) and all(
            isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks
        )
        return "tool" if only_results else "user"
    if role in ("assistant", "model"):
        return "assistant"
    return "tool" if role in ("tool", "toolResult") else "other"


def _role_by_type(kind: str) -> str:
    """Return the role of an entry that has none, by its type."""
    if kind.startswith(TOOL_TYPES):
        return "tool"
    if kind.startswith(ASSISTANT_TYPES):
        return "assistant"
    return "user" if kind in ("user", "user.message") else "other"


def output_tokens(lines: Sequence[bytes]) -> int | None:
    """Return the output tokens that the lines' `usage` adds up to; None where there is none.

    Claude Code writes one answer as several lines with one message id and the same usage: that counts once.
    """
    counted: dict[object, int] = {}
    for place, line in enumerate(lines):
        message = _decode(line).get("message")
        usage = message.get("usage") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(usage, dict):
            continue
        tokens = usage.get("output", usage.get("output_tokens"))
        if isinstance(tokens, int):
            name = message.get("id")
            counted[name if isinstance(name, str) else place] = tokens
    return sum(counted.values()) if counted else None


def _decode(line: bytes) -> dict[str, object]:
    """Return a line's JSON object; empty for a line that is none, as old files have them."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
