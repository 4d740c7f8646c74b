"""Codex: `sessions/Y/M/D/rollout-*.jsonl` below `~/.codex`, `archived_sessions/`, and both as `.jsonl.zst`.

Rule: a line `{timestamp, type, payload}` is a turn if Codex rebuilds the model's history from it, else an event. From
openai/codex (codex-rs/core/src/session/rollout_reconstruction.rs): history is what `response_item`,
`inter_agent_communication` and `compacted` lines hold; `session_meta`, `turn_context`, `world_state` and `event_msg`
(which repeats messages for the screen) are not sent. Of the items, core/src/context_manager/history.rs leaves out
`ghost_snapshot`, what it doesn't know itself (`other`) and messages whose role is `system`; rollout/src/policy.rs does
the same with `compaction_trigger`; a `token_count` that other writers put among the items is none. In older versions
the items lie bare on the lines, below a header `{id, timestamp, instructions}` and between `{"record_type": "state"}`.

Which lane: protocol/src/protocol.rs gives `session_meta.payload.source` as a word (`cli`, `vscode`, `exec`, `mcp`) or
as `{"subagent": "review" | {"thread_spawn": {agent_nickname, agent_role, …}} | {"other": "guardian"}}`. A forked file
repeats the lines of its origin, header included, below its own: so a header of a subagent starts its lane, and no
later header ends it.

Codex compresses old files to `.jsonl.zst` and prefers the plain one where both lie (rollout/src/compression.rs). Here
both are found, the compressed one under a session of its own that ends with `.zst`: nothing proves that they are the
same, and its lines may want the plain one's id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .base import EVENT, MAIN, TURN, Found, Label, Labeller, Report, pass_over, walk
from .reading import lane_of, lenient, named, objects, time_of

__all__ = ["CODEX"]

ARCHIVED = "archived_sessions"
SESSIONS = "sessions"
ENVELOPES = frozenset({"compacted", "event_msg", "inter_agent_communication", "response_item", "session_meta"})
ENVELOPES |= {"inter_agent_communication_metadata", "rollout_reference", "turn_context", "world_state"}
ITEMS = frozenset({"message", "reasoning", "function_call", "function_call_output", "local_shell_call"})
ITEMS |= {"custom_tool_call", "custom_tool_call_output", "web_search_call", "compaction_summary"}
UNSENT_ITEMS = frozenset({"compaction_trigger", "ghost_snapshot", "other", "token_count"})
FIELD = rb'"[a-z]+"\s*:\s*(?:"[^"\\]{0,64}"|\d{1,20})\s*,\s*'
CUT_LINE = re.compile(rb"\{\s*(?:" + FIELD + rb'){0,3}"type"\s*:\s*"(\w{1,40})"\s*,\s*"payload"\s*:\s*\{')

Time = str | int | float | None


class _Payload(msgspec.Struct, gc=False):
    type: str = ""
    role: str = ""
    timestamp: Time = None


class _Line(msgspec.Struct, gc=False):
    type: str = ""
    role: str = ""
    timestamp: Time = None
    payload: _Payload | None = None


_decode = msgspec.json.Decoder(_Line).decode


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _loose(line: bytes) -> _Line:
    """Return what can be read of a line that is not as it should be."""
    found = lenient(line) or {}
    payload = found.get("payload")
    inner = None
    if isinstance(payload, dict):
        inner = _Payload(_text(payload.get("type")), _text(payload.get("role")), payload.get("timestamp"))
    return _Line(_text(found.get("type")), _text(found.get("role")), found.get("timestamp"), inner)


def _is_sent(kind: str, role: str) -> bool:
    """Say whether an item is sent to the model."""
    return kind not in UNSENT_ITEMS and not (role == "system" and kind in {"", "message"})


def _is_turn(line: _Line) -> bool:
    payload = line.payload
    if line.type == "response_item":
        return payload is not None and _is_sent(payload.type, payload.role)
    if line.type in {"compacted", "inter_agent_communication"}:
        return payload is not None
    return line.type in ITEMS and _is_sent(line.type, line.role)


def _subagent(payload: dict[str, Any]) -> str | None:
    """Return the lane of the subagent whose header holds `payload`; None if it is no subagent's."""
    source = payload.get("source")
    if not isinstance(source, dict):
        return lane_of("subagent", _named(payload)) if payload.get("thread_source") == "subagent" else None
    kind = source.get("subagent", source.get("internal"))
    if isinstance(kind, dict):
        spawned, other = kind.get("thread_spawn"), kind.get("other")
        kind = _named({**payload, **spawned}) if isinstance(spawned, dict) else other or _named(payload)
    return None if kind is None else lane_of("subagent", kind)


def _named(fields: dict[str, Any]) -> str | None:
    names = (fields.get(name) for name in ("agent_nickname", "agent_path", "agent_role", "id"))
    return next((name for name in names if isinstance(name, str) and name.strip()), None)


class _Labeller:
    """Labels the lines of one rollout."""

    __slots__ = ("lane",)

    def __init__(self, lane: str) -> None:
        self.lane = lane

    def label(self, line: bytes) -> Label:
        """See `base.Labeller`."""
        try:
            found = _decode(line)
        except (ValueError, RecursionError):
            found = _loose(line)
        if found.type == "session_meta":
            self._enter(line)
        at_ms = time_of(found.timestamp)
        if at_ms is None and found.payload is not None:
            at_ms = time_of(found.payload.timestamp)
        return Label(TURN if _is_turn(found) else EVENT, self.lane, at_ms)

    def _enter(self, line: bytes) -> None:
        payload = (lenient(line) or {}).get("payload")
        if self.lane == MAIN and isinstance(payload, dict):
            self.lane = _subagent(payload) or MAIN


def _session(folder: str, name: str) -> str:
    """Return the id for the file `name` below `folder`: its path below `sessions`, wherever the search began."""
    plain = name.removesuffix(".zst").removesuffix(".jsonl")
    above, below = os.path.abspath(folder).split(os.sep), plain.split("/")
    while above and above[-1].isdecimal():  # a search that began in a year, a month or a day
        below.insert(0, above.pop())
    below = above[-1:] + below
    for mark, prefix in ((ARCHIVED, "codex/archived"), (SESSIONS, "codex")):
        if mark in below[:-1]:
            return "/".join([prefix, *below[below.index(mark) + 1 :]])
    return f"codex/{plain}"


class Codex:
    """The rollouts of Codex."""

    name = "codex"

    def homes(self, home: str, environ: dict[str, str]) -> Sequence[str]:
        """See `base.Format`: `CODEX_HOME` and `~/.codex`, in each the live sessions and the archived ones."""
        roots = [environ.get("CODEX_HOME") or "", os.path.join(home, ".codex")]
        folders = [os.path.join(root, below) for root in roots if root for below in (SESSIONS, ARCHIVED)]
        return list(dict.fromkeys(folders))

    def find(self, folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[Found]:
        """See `base.Format`."""
        for path in walk(folder, on_error, within):
            base = os.path.basename(path)
            if not base.startswith("rollout-") or not base.endswith((".jsonl", ".jsonl.zst")):
                continue
            name = named(folder, path)
            session = _session(folder, name) + (".zst" if name.endswith(".zst") else "")
            yield Found(path=path, name=name, format=self.name, agent=self.name, session=session)

    def recognises(self, head: bytes) -> bool:
        """See `base.Format`. A line may be longer than `head`: how it begins is enough."""
        cut = CUT_LINE.match(head.removeprefix(b"\xef\xbb\xbf").lstrip())
        if cut is not None and cut[1].decode("ascii", "replace") in ENVELOPES:
            return True
        return any(_is_codex(found) for found in objects(head))

    def labeller(self, lane: str) -> Labeller:
        """See `base.Format`."""
        return _Labeller(lane)


def _is_codex(found: dict[str, Any]) -> bool:
    kind = found.get("type")
    if isinstance(kind, str) and kind in ENVELOPES:
        return isinstance(found.get("payload"), dict)
    if kind is None:
        return found.get("record_type") == "state" or {"id", "timestamp", "instructions"} <= found.keys()
    if kind == "message":
        return "role" in found and _holds_items(found.get("content"))
    return kind in ("function_call", "function_call_output") and "call_id" in found


def _holds_items(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("input_text", "output_text") for part in content
    )


CODEX = Codex()
