"""OpenClaw (up to 2026.7) and pi: where their transcripts lie; what a line is, `pi_lines` says.

OpenClaw keeps `<state>/agents/<agent>/sessions/`, flat (openclaw/openclaw: src/config/paths.ts, src/config/sessions/
paths.ts and artifacts.ts): `<id>.jsonl`, `<id>-topic-<topic>.jsonl`, `<time>_<id>.jsonl`, of each a
`.checkpoint.<uuid>.jsonl`, a `.trajectory.jsonl`, and archived forms `.jsonl.{reset,deleted,bak}.<time>` and
`.jsonl.bak-<pid>-<time>`, each perhaps with `.zst`; and `sessions.json`, which names the session key of each id. The
key tells the lane. Most files of cron jobs are not in it; they begin with the mark `[cron:<id> <name>]`, so a file that
`sessions.json` doesn't know is looked into. The state folder is `~/.openclaw`, formerly `~/.clawdbot`, `~/.moldbot` or
`~/.moltbot`.

pi keeps `~/.pi/agent/sessions/--<path>--/<time>_<id>.jsonl` (badlogic/pi-mono, packages/coding-agent: docs/session.md,
src/config.ts).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import islice

import msgspec

from .base import FILE, MAIN, Found, Labeller, Report, beginning, listing, pass_over, walk
from .pi_lines import (
    MIRRORS,
    REFUSED,
    OpenClawLabeller,
    PiLabeller,
    key_lane,
    read_entry,
    tenant_of,
)
from .reading import encodable, lenient, named

__all__ = ["OPENCLAW", "PI", "STORE", "first_lane"]

STATES = (".openclaw", ".clawdbot", ".moldbot", ".moltbot")
STORE = "sessions.json"
PACKED = ".zst"
STORE_BYTES_MAX = 64 << 20  # a larger sessions.json names no lanes
HEAD_BYTES_MAX = 64 << 10  # of a file that sessions.json doesn't know
HEAD_LINES_MAX = 32  # of a head, that are to tell whether it is pi's
DEFAULT_AGENT = "main"

TRANSCRIPT = re.compile(
    r"(?P<stem>(?P<id>[^.].*?)(?:-topic-[^/]+?)?)"
    r"(?:\.checkpoint\.[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?(?:\.trajectory)?"
    r"\.jsonl(?:\.(?:reset|deleted|bak)\.[0-9][0-9TZ:.+-]*|\.bak-[0-9-]+)?",
    re.DOTALL,
)
TIMED = re.compile(r"[0-9][0-9TZ:.+-]*_(.+)", re.DOTALL)
FOLDER_OF_PATH = re.compile(r"--.*--", re.DOTALL)
STORE_HEAD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:main|global|[^"]*:[^"]*)"\s*:\s*\{')

OWN_TYPES = {  # an entry of this type has a field of one of these names, whoever else uses the word
    "branch_summary": ("fromId",),
    "compaction": ("firstKeptEntryId", "firstKeptEntryIndex"),
    "custom": ("customType",),
    "custom_message": ("customType",),
    "label": ("targetId",),
    "leaf": ("targetId",),
    "model_change": ("modelId",),
    "session_info": ("name",),
    "thinking_level_change": ("thinkingLevel",),
}
OWN_ROLES = frozenset({"bashExecution", "custom", "hookMessage", "toolResult"})
FOREIGN = frozenset({"session_start", "session_meta", "system", "session.start"})  # headers of other formats


class _Kept(msgspec.Struct, gc=False, rename={"session": "sessionId", "file": "sessionFile"}):
    session: str | None = None
    file: str | None = None


class _OpenClaw:
    """OpenClaw up to 2026.7, Clawdbot and Moltbot."""

    name = "openclaw"

    def homes(self, home: str, environ: dict[str, str]) -> Sequence[str]:
        """Return the `agents` folders: that of the environment's state folder first, then the default ones."""
        home = _expanded(environ.get("OPENCLAW_HOME", ""), home) or home
        named = (_expanded(environ.get(name, ""), home) for name in ("OPENCLAW_STATE_DIR", "CLAWDBOT_STATE_DIR"))
        states = [state for state in named if state]
        profile = environ.get("OPENCLAW_PROFILE", "").strip()
        if profile and "/" not in profile and profile.lower() != "default":
            states.append(os.path.join(home, f"{STATES[0]}-{profile}"))
        states += [os.path.join(home, state) for state in STATES]
        return list(dict.fromkeys(os.path.join(state, "agents") for state in states))

    def find(self, folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[Found]:
        """Yield the transcripts of an `agents` folder, of one agent's folder, or of a `sessions` folder."""
        search = _Search(folder, on_error, within)
        folders, files = listing(folder, on_error)
        base = os.path.basename(os.path.abspath(folder))
        if base == "sessions" or any(map(_is_ours, files)):
            yield from search.sessions("", None)
        if base in ("sessions", "agents") or not {"sessions", "agents"} & set(folders):
            yield from search.agents(folders, "")
        elif "sessions" in folders:
            yield from search.sessions("sessions/", base)
        else:
            yield from search.agents(search.listing("agents/")[0], "agents/")

    def recognises(self, head: bytes) -> bool:
        """Say whether `head` has the lines of pi with a mark of OpenClaw, or is a trajectory or a sessions.json."""
        if STORE_HEAD.match(head) and b'"sessionId"' in head:
            return True
        return _is_pi(head) and _has_mark(head)

    def labeller(self, lane: str) -> Labeller:
        """Return a labeller for a file of this lane."""
        return OpenClawLabeller(lane)


class _Pi:
    """pi, the coding agent whose session manager OpenClaw uses."""

    name = "pi"

    def homes(self, home: str, environ: dict[str, str]) -> Sequence[str]:
        """Return the folders of sessions: those that the environment names first."""
        sessions = _expanded(environ.get("PI_CODING_AGENT_SESSION_DIR", ""), home)
        agent = _expanded(environ.get("PI_CODING_AGENT_DIR", ""), home)
        found = [sessions] if sessions else []
        found += [os.path.join(agent, "sessions")] if agent else []
        return list(dict.fromkeys([*found, os.path.join(home, ".pi", "agent", "sessions")]))

    def find(self, folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[Found]:
        """Yield every `.jsonl` file below `folder`."""
        base = os.path.basename(os.path.abspath(folder))
        above = [base] if FOLDER_OF_PATH.fullmatch(base) else []
        for path in walk(folder, on_error, within):
            name = named(folder, path)
            parts = above + name.split("/")
            if not name.endswith(".jsonl") or parts[-1].startswith("."):
                continue
            first = next((at for at, part in enumerate(parts[:-1]) if FOLDER_OF_PATH.fullmatch(part)), 0)
            session = encodable("/".join(["pi", *parts[first:]]).removesuffix(".jsonl"))
            yield Found(path=path, name=name, format=self.name, agent=self.name, session=session)

    def recognises(self, head: bytes) -> bool:
        """Say whether `head` has the lines of pi, and no mark of OpenClaw."""
        return _is_pi(head) and not _has_mark(head)

    def labeller(self, lane: str) -> Labeller:
        """Return a labeller for a file of this lane."""
        return PiLabeller(lane)


OPENCLAW = _OpenClaw()
PI = _Pi()


def _expanded(said: str, home: str) -> str:
    """Return the folder that a variable names, `~` being `home`; empty if it names none."""
    said = said.strip()
    if said == "~" or said.startswith(("~/", "~\\")):
        said = home + said[1:]
    return os.path.abspath(said) if said else ""


def _is_ours(name: str) -> bool:
    return name == STORE or TRANSCRIPT.fullmatch(name.removesuffix(PACKED)) is not None


class _Search:
    """One search of a folder; the parts below it are told as `main/sessions/`."""

    def __init__(self, folder: str, on_error: Report, within: str) -> None:
        self._folder = folder
        self._on_error = on_error
        self._within = named(folder, within) if within else ""

    def agents(self, agents: list[str], prefix: str) -> Iterator[Found]:
        """Yield the transcripts of the agents whose folders lie in the part `prefix`."""
        for agent in agents:
            yield from self.sessions(f"{prefix}{agent}/sessions/", agent)

    def sessions(self, prefix: str, agent: str | None) -> Iterator[Found]:
        """Yield the transcripts that lie in the part `prefix`, a folder of sessions."""
        if not self._is_within(prefix) and not self._within.startswith(prefix):
            return
        here = os.path.join(self._folder, prefix) if prefix else self._folder
        files = [name for name in self.listing(prefix)[1] if _is_ours(name)]
        keys = _keys(os.path.join(here, STORE)) if STORE in files else {}
        lanes = _lanes(keys)
        agent = encodable(agent or _agent_of(here, keys))
        for name in files:
            if not self._is_within(prefix + name):
                continue
            path = os.path.join(here, name)
            packed = name.endswith(PACKED)
            yield Found(
                path=path,
                name=prefix + name,
                format="openclaw",
                agent=f"openclaw/{agent}",
                session=encodable(f"openclaw/{agent}/{name.removesuffix('.jsonl')}"),
                lane=FILE if packed else _kept_lane(name, lanes) or _lane(path),
                inner=_kept_lane(name.removesuffix(PACKED), lanes) if packed else "",
            )

    def listing(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the folders and files in a part; nothing if it isn't there. One that can't be read is told."""
        path = os.path.join(self._folder, prefix.removesuffix("/")) if prefix else self._folder
        try:
            return ([], []) if os.path.islink(path) and prefix else listing(path, self._on_error)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except OSError as error:
            self._on_error(error)
            return [], []

    def _is_within(self, name: str) -> bool:
        return not self._within or f"{name}/".startswith(f"{self._within}/")


def _agent_of(sessions: str, keys: dict[str, _Kept]) -> str:
    """Return the agent whose `sessions` folder this is: `…/agents/<agent>/sessions`, or the one its keys name."""
    parts = os.path.abspath(sessions).split(os.sep)
    if parts[-1] == "sessions" and parts[-3:-2] == ["agents"]:
        return parts[-2]
    named = {key.split(":", 2)[1] for key in keys if key.startswith("agent:") and key.count(":") >= 2}
    return named.pop() or DEFAULT_AGENT if len(named) == 1 else DEFAULT_AGENT


def _keys(path: str) -> dict[str, _Kept]:
    """Return what a sessions.json says of each session key; nothing if it can't be read."""
    try:
        data = beginning(path, STORE_BYTES_MAX + 1)
        if len(data) > STORE_BYTES_MAX:
            return {}
        said = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=dict[str, msgspec.Raw])
    except (OSError, MemoryError, *REFUSED):
        return {}
    return {key: kept for key, raw in said.items() if (kept := _kept(raw)) is not None}


def _kept(raw: msgspec.Raw) -> _Kept | None:
    try:
        return msgspec.json.decode(raw, type=_Kept)
    except REFUSED:
        return None


def _lanes(keys: dict[str, _Kept]) -> dict[str, str]:
    """Return the lanes of session ids and of the names of their files; where several keys name one, main is it."""
    lanes: dict[str, str] = {}
    for key, kept in keys.items():
        lane = key_lane(key)
        file = re.split(r"[/\\]", kept.file or "")[-1].removesuffix(".jsonl")
        for name in {kept.session, file} - {None, ""}:
            if lane == MAIN or str(name) not in lanes:
                lanes[str(name)] = lane
    return lanes


def _kept_lane(name: str, lanes: dict[str, str]) -> str:
    """Return the lane of a file by its name or its session id, "" if nothing is known of them."""
    parsed = TRANSCRIPT.fullmatch(name)
    if parsed is None:
        return MAIN
    timed = TIMED.fullmatch(parsed["id"])
    names = (parsed["stem"], parsed["id"], timed[1] if timed else "")
    return next((lanes[known] for known in names if known in lanes), "")


def _lane(path: str) -> str:
    try:
        return first_lane(beginning(path, HEAD_BYTES_MAX))
    except OSError:
        return MAIN


def first_lane(head: bytes) -> str:
    """Return the lane of the cron job whose prompt the file begins with; main if it begins with anything else."""
    for entry in map(read_entry, BytesIO(head)):
        message = entry.message if entry is not None and entry.type == "message" else None
        if message is not None and message.role == "user":
            tenant = tenant_of(message.content)
            return tenant if tenant is not None and tenant.startswith("cron:") else MAIN
    return MAIN


def _objects(head: bytes) -> Iterator[dict[str, object]]:
    """Yield the objects of the lines of `head`."""
    return (found for line in BytesIO(head) if (found := lenient(line.strip())) is not None)


def _is_pi(head: bytes) -> bool:
    """Say whether the first line that tells is one of pi."""
    for found in islice(_objects(head), HEAD_LINES_MAX):
        if found.get("type") == "session":
            return isinstance(found.get("id"), str) and ("cwd" in found or "version" in found or "timestamp" in found)
        if str(found.get("type")) in FOREIGN:
            return False
        if found.get("traceSchema") == "openclaw-trajectory" or _is_own(found):
            return True
    return False


def _is_own(found: dict[str, object]) -> bool:
    """Say whether an entry is one that only pi writes."""
    message = found.get("message")
    if found.get("type") != "message" or not isinstance(message, dict):
        return any(name in found for name in OWN_TYPES.get(str(found.get("type")), ()))
    role, at = str(message.get("role")), message.get("timestamp")
    if role == "assistant":
        return "stopReason" in message and ("api" in message or "provider" in message)
    return role in OWN_ROLES or (role == "user" and isinstance(at, (int, float)) and not isinstance(at, bool))


@lru_cache(maxsize=1)  # both formats are asked about a head, one after the other
def _has_mark(head: bytes) -> bool:
    return any(map(_is_marked, _objects(head)))


def _is_marked(found: dict[str, object]) -> bool:
    """Say whether OpenClaw wrote the entry: by its folder, its custom types, its mirrors or its prompts."""
    if found.get("traceSchema") == "openclaw-trajectory":
        return True
    if found.get("type") == "session":
        return any(f"/{state}" in str(found.get("cwd")).replace("\\", "/") for state in STATES)
    custom = found.get("customType")
    if isinstance(custom, str):
        return custom == "model-snapshot" or custom.startswith("openclaw")
    message = found.get("message")
    if not isinstance(message, dict):
        return False
    return message.get("provider") == "openclaw" or str(message.get("model")) in MIRRORS or _is_prompt(message)


def _is_prompt(message: dict[str, object]) -> bool:
    if message.get("role") != "user":
        return False
    try:
        content = msgspec.Raw(msgspec.json.encode(message.get("content")))
    except (*REFUSED, TypeError):
        return False
    return tenant_of(content) is not None
