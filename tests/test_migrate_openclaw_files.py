"""Files of OpenClaw and pi: where they lie, what their places tell, and which are recognised as theirs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openclaw_samples import (
    ARCHIVED,
    CORPUS,
    GENERATOR,
    HEAD_BYTES,
    HEADER,
    HEARTBEAT,
    NO_CORPUS,
    NO_GENERATOR,
    OLD_HEADER,
    PI_FILES,
    UUID,
    entry,
    generator,
    message,
    mirror,
)
from shardstore_migrate import sources
from shardstore_migrate.sources import openclaw
from shardstore_migrate.sources.base import MAIN, Format, Found
from shardstore_migrate.sources.openclaw import OPENCLAW, PI
from shardstore_migrate.sources.pi_lines import key_lane, read_entry


def put(root: Path, *names: str, data: bytes = HEADER) -> None:
    """Write files below `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def store(root: Path, kept: object) -> None:
    """Write a sessions.json."""
    put(root, "sessions.json", data=json.dumps(kept, indent=2).encode())


def found(form: Format, folder: Path) -> dict[str, Found]:
    """Return what the format finds, by name, in the order in which it was found."""
    files = list(form.find(str(folder)))
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert Path(file.path) == folder / file.name
        assert Path(file.path).is_file()
    return {file.name: file for file in files}


OURS = [
    "a.checkpoint." + UUID + ".jsonl",
    "a.jsonl",
    "a.jsonl.bak-12-1772359200250",
    f"a.jsonl.bak.{ARCHIVED}",
    f"a.jsonl.deleted.{ARCHIVED}",
    f"a.jsonl.deleted.{ARCHIVED}.zst",
    f"a.jsonl.reset.{ARCHIVED}",
    "a.trajectory.jsonl",
    "sessions.json",
    "t-topic-7.jsonl",
    f"t-topic-7.jsonl.reset.{ARCHIVED}",
]
NOT_OURS = [
    ".hidden.jsonl",
    "a.jsonl.0f8f.tmp",
    "a.jsonl.lock",
    "sessions.json.zst",
    "a.trajectory-path.json",
    "notes.md",
    "sessions.json.bak.1772359200250",
    "sessions.json.lock",
]


def test_every_form_of_a_transcript_is_found(tmp_path: Path) -> None:
    """Of an agent's folder all transcripts and sessions.json are found, in order, and nothing else."""
    agents = tmp_path / "agents"
    put(agents / "main" / "sessions", *OURS, *NOT_OURS)
    put(agents / "work" / "sessions", "b.jsonl")
    put(agents, "work/agent/codex-home/sessions/2026/03/01/rollout-2026.jsonl", "empty/agent/auth.json")
    files = found(OPENCLAW, agents)
    assert list(files) == [f"main/sessions/{name}" for name in OURS] + ["work/sessions/b.jsonl"]
    assert {file.format for file in files.values()} == {"openclaw"}
    assert [file.agent for file in files.values()] == ["openclaw/main"] * len(OURS) + ["openclaw/work"]
    sessions = [file.session.removeprefix("openclaw/main/") for file in files.values()]
    assert sessions[:5] == ["a.checkpoint." + UUID, "a", *OURS[2:5]]
    assert sessions[7:10] == ["a.trajectory", "sessions.json", "t-topic-7"]


def test_a_copy_is_found_from_each_of_its_folders(tmp_path: Path) -> None:
    """The state folder, the folder of agents, of one agent and of its sessions lead to the same sessions."""
    sessions = tmp_path / "copy" / "agents" / "work" / "sessions"
    put(sessions, "b.jsonl")
    for folder in (tmp_path / "copy", sessions.parent.parent, sessions.parent, sessions):
        (file,) = OPENCLAW.find(str(folder))
        assert (file.session, file.agent) == ("openclaw/work/b", "openclaw/work")
        assert file.path == str(sessions / "b.jsonl")


def test_sessions_without_an_agents_folder(tmp_path: Path) -> None:
    """In a bare copy the agent is the one that sessions.json names, else the default one."""
    put(tmp_path, "b.jsonl")
    assert found(OPENCLAW, tmp_path)["b.jsonl"].agent == "openclaw/main"
    store(tmp_path, {"agent:work:main": {"sessionId": "b"}, "global": {"sessionId": "c"}})
    assert found(OPENCLAW, tmp_path)["b.jsonl"].agent == "openclaw/work"
    store(tmp_path, {"agent:work:main": {"sessionId": "b"}, "agent:home:main": {"sessionId": "c"}})
    assert found(OPENCLAW, tmp_path)["b.jsonl"].agent == "openclaw/main"


def test_lanes_come_from_the_session_keys(tmp_path: Path) -> None:
    """Each file has the lane of the key that names its id or its file; archived forms that of their session."""
    names = [*OURS, "c.jsonl", "u-topic-1.jsonl", "h.jsonl", "o.jsonl", "s.jsonl", f"s.jsonl.deleted.{ARCHIVED}"]
    timed = f"{ARCHIVED}_h.jsonl"
    put(tmp_path, *names, timed)
    kept = {
        "agent:main:cron:daily": {"sessionId": "a"},
        "agent:main:cron:daily:run:a": {"sessionId": "a", "skillsSnapshot": {"x": [1]}},
        "agent:main:hook:t": {"sessionId": "t"},
        "agent:main:hook:u": {"sessionId": "v", "sessionFile": "/elsewhere/u-topic-1.jsonl"},
        "agent:main:telegram:group:-1": {"sessionId": "u"},
        "agent:main:cron:other": {"sessionId": "c"},
        "agent:main:main": {"sessionId": "c"},
        f"hook:{UUID}": {"sessionId": "h"},
        "agent:main:subagent:s1": {"sessionFile": "C:\\x\\s.jsonl", "sessionId": None},
        "agent:main:odd": {"sessionId": 7},
        "agent:main:odder": None,
        "agent:main:main:heartbeat": {"sessionId": "o"},
    }
    store(tmp_path, kept)
    lanes = {name: file.inner or file.lane for name, file in found(OPENCLAW, tmp_path).items()}
    assert {lanes[name] for name in OURS if name.startswith("a.")} == {"cron:daily"}
    assert {lanes[name] for name in ("sessions.json", "c.jsonl")} == {MAIN}
    assert (lanes["h.jsonl"], lanes[timed], lanes["o.jsonl"]) == (f"hook:{UUID}", f"hook:{UUID}", "heartbeat")
    assert lanes["t-topic-7.jsonl"] == lanes[f"t-topic-7.jsonl.reset.{ARCHIVED}"] == "hook:t"
    assert lanes["u-topic-1.jsonl"] == "hook:u"
    assert lanes["s.jsonl"] == lanes[f"s.jsonl.deleted.{ARCHIVED}"] == "subagent:s1"


def test_orphans_of_a_job_are_known_by_their_first_prompt(tmp_path: Path) -> None:
    """A file that sessions.json doesn't name has the lane of the job whose prompt it begins with."""
    job = message("user", f"[cron:{UUID} Daily] do it")
    put(tmp_path, "job.jsonl", data=HEADER + b"torn\n" + entry("model_change", modelId="m") + job)
    put(tmp_path, "later.jsonl", data=HEADER + message("user", "hi") + job)
    put(tmp_path, "beat.jsonl", data=HEADER + message("user", HEARTBEAT))
    put(tmp_path, "empty.jsonl", data=b"")
    lanes = {name: file.lane for name, file in found(OPENCLAW, tmp_path).items()}
    assert lanes == {"beat.jsonl": MAIN, "empty.jsonl": MAIN, "job.jsonl": f"cron:{UUID}", "later.jsonl": MAIN}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"a":', b"\xff\xfe", b'{"agent:x:y":' + b"[" * 9000])
def test_a_damaged_sessions_json_hinders_nothing(tmp_path: Path, data: bytes) -> None:
    """Whatever sessions.json holds, it and the transcripts are found."""
    put(tmp_path, "a.jsonl")
    put(tmp_path, "sessions.json", data=data)
    assert {name: file.lane for name, file in found(OPENCLAW, tmp_path).items()} == {
        "a.jsonl": MAIN,
        "sessions.json": MAIN,
    }


def test_a_huge_sessions_json_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above its bound sessions.json names no lanes; at the bound it does."""
    put(tmp_path, "a.jsonl")
    store(tmp_path, {"cron:daily": {"sessionId": "a"}})
    size_bytes = (tmp_path / "sessions.json").stat().st_size
    for bound, lane in ((size_bytes, "cron:daily"), (size_bytes - 1, MAIN)):
        monkeypatch.setattr(openclaw, "STORE_BYTES_MAX", bound)
        assert found(OPENCLAW, tmp_path)["a.jsonl"].lane == lane


def test_names_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    """Agents and sessions are text that can be encoded; the path stays the file's own."""
    sessions = tmp_path / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    with open(os.fsencode(sessions) + b"/a\xff.jsonl", "wb"):
        pass
    (file,) = OPENCLAW.find(str(tmp_path))
    assert file.session == "openclaw/main/a\\udcff"
    assert os.path.exists(file.path)
    (file,) = PI.find(str(sessions))
    assert file.session == "pi/a\\udcff"


def test_pi_sessions_are_found(tmp_path: Path) -> None:
    """Every .jsonl file is found; a session is called the same from its folder's folder and from its own."""
    project = tmp_path / "--home-me-work--"
    put(project, "2026_a.jsonl", "sub/run.jsonl", "notes.md", "._2026_a.jsonl", "b.jsonl.tmp")
    put(tmp_path, "flat.jsonl", "old/--p--/c.jsonl")
    files = found(PI, tmp_path)
    expected = {
        "flat.jsonl": "pi/flat",
        "--home-me-work--/2026_a.jsonl": "pi/--home-me-work--/2026_a",
        "--home-me-work--/sub/run.jsonl": "pi/--home-me-work--/sub/run",
        "old/--p--/c.jsonl": "pi/--p--/c",
    }
    assert {name: file.session for name, file in files.items()} == expected
    assert list(files) == list(expected)
    assert {(file.agent, file.format, file.lane) for file in files.values()} == {("pi", "pi", MAIN)}
    assert [file.session for file in PI.find(str(project))] == list(expected.values())[1:3]


@pytest.mark.parametrize("form", [OPENCLAW, PI], ids=["openclaw", "pi"])
def test_only_the_folder_asked_for_must_be_readable(
    form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that isn't there raises; one below it that can't be read is left out."""
    with pytest.raises(OSError, match="gone"):
        list(form.find(str(tmp_path / "gone")))
    put(tmp_path, "main/sessions/a.jsonl", "work/sessions/b.jsonl")
    real = os.scandir

    def scandir(folder: str) -> Any:
        if "work" in Path(folder).parts:
            raise PermissionError(13, "no", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(found(form, tmp_path)) == ["main/sessions/a.jsonl"]


def test_homes_of_openclaw() -> None:
    """The default folders of all its names, and before them what the environment says."""
    default = [f"/h/{state}/agents" for state in (".openclaw", ".clawdbot", ".moldbot", ".moltbot")]
    assert OPENCLAW.homes("/h", {}) == default
    assert OPENCLAW.homes("/h", {"OPENCLAW_STATE_DIR": " ~/s ", "OPENCLAW_PROFILE": "default"}) == [
        "/h/s/agents",
        *default,
    ]
    assert OPENCLAW.homes("/h", {"CLAWDBOT_STATE_DIR": "/h/.clawdbot"})[0] == "/h/.clawdbot/agents"
    assert OPENCLAW.homes("/h", {"OPENCLAW_PROFILE": "dev"})[0] == "/h/.openclaw-dev/agents"
    assert OPENCLAW.homes("/h", {"OPENCLAW_HOME": "~/x"})[0] == "/h/x/.openclaw/agents"


def test_homes_of_pi() -> None:
    """The default folder, and before it what the environment says."""
    assert PI.homes("/h", {}) == ["/h/.pi/agent/sessions"]
    named = {"PI_CODING_AGENT_DIR": "~/a", "PI_CODING_AGENT_SESSION_DIR": "/s"}
    assert PI.homes("/h", named) == ["/s", "/h/a/sessions", "/h/.pi/agent/sessions"]


PI_HEADER = entry("session", version=3, cwd="/w")
HEADS = [  # the first bytes of a file -> the format that recognises it
    (HEADER, "openclaw"),
    (HEADER.replace(b".openclaw", b".clawdbot"), "openclaw"),
    (PI_HEADER, "pi"),
    (OLD_HEADER, "pi"),
    (b"\xef\xbb\xbf" + PI_HEADER.replace(b"\n", b"\r\n") + message("user", "x")[:20], "pi"),
    (PI_HEADER + entry("custom", customType="model-snapshot"), "openclaw"),
    (PI_HEADER + entry("custom_message", customType="openclaw.runtime-context"), "openclaw"),
    (PI_HEADER + mirror("gateway-injected"), "openclaw"),
    (PI_HEADER + message("user", HEARTBEAT), "openclaw"),
    (PI_HEADER + message("user", "look into ~/.openclaw/agents, please"), "pi"),
    (b"torn\n" + message("user", "x"), "pi"),
    (message("assistant", "x", api="a", provider="p", model="m", stopReason="stop"), "pi"),
    (message("toolResult", "x"), "pi"),
    (b'{"type":"message","timestamp":"x","message":{"role":"user","content":"v1","timestamp":1772359200250}}\n', "pi"),
    (entry("model_change", modelId="m", provider="p"), "pi"),
    (entry("compaction", summary="s", firstKeptEntryIndex=2), "pi"),
    (b'{"traceSchema":"openclaw-trajectory","type":"session.started","ts":"x"}\n', "openclaw"),
    (b'{\n  "agent:main:main": {\n    "sessionId": "x",\n', "openclaw"),
    (b'{"main":{"sessionId":"x"}}', "openclaw"),
    (b'{"sessionId":"x","messages":[]}', None),
    (b'{"type":"session","id":7}\n', None),
    (b'{"type":"session_start","id":"x"}\n' + message("toolResult", "x"), None),
    (b'{"type":"message","id":"1","message":{"role":"user","content":[{"type":"text","text":"x"}]}}\n', None),
    (b'{"type":"user","message":{"role":"user","content":"x"},"uuid":"u"}\n', None),
    (b'{"type":"session_start"}\n' + entry("custom", customType="openclaw.cache-ttl"), None),
    (b'{"type":"label"}\n', None),
    (b'{"agent:main', None),
    (b"", None),
    (b"\0" * 99, None),
]


@pytest.mark.parametrize(("head", "name"), HEADS, ids=range(len(HEADS)))
def test_a_file_is_recognised_by_its_head(head: bytes, name: str | None) -> None:
    """One of the two formats recognises a file, or none."""
    assert [form.name for form in (OPENCLAW, PI) if form.recognises(head)] == ([name] if name else [])


def formats() -> Iterator[Format]:
    """Yield all formats that exist."""
    for module in pkgutil.iter_modules(sources.__path__):
        names = vars(importlib.import_module(f"{sources.__name__}.{module.name}"))
        exported = (names[name] for name in names.get("__all__", ()))
        yield from (one for one in exported if hasattr(one, "recognises") and not isinstance(one, type))


KNOWN = {
    "session",
    "message",
    "model_change",
    "thinking_level_change",
    "compaction",
    "branch_summary",
    "custom_message",
}
UNKNOWN = {"agentsview": ["unknown_future_entry_type", None], "resume-skills": [None]}  # None: no JSON on the line


@pytest.mark.skipif(not PI_FILES, reason=NO_CORPUS)
def test_real_transcripts_are_recognised_and_known() -> None:
    """Each is pi's and nobody else's, and no line has an unknown type but those listed."""
    others = [form for form in formats() if form is not PI and not form.recognises(b'{"a":1}\n')]  # no catch-all
    for path in PI_FILES:
        data = path.read_bytes()
        assert PI.recognises(data[:HEAD_BYTES]), path
        assert [form.name for form in others if form.recognises(data[:HEAD_BYTES])] == [], path
        types = [entry.type if (entry := read_entry(line)) else None for line in data.splitlines()]
        allowed = next((unknown for start, unknown in UNKNOWN.items() if path.name.startswith(start)), [])
        assert set(types) - KNOWN <= set(allowed), path


@pytest.mark.skipif(not CORPUS.is_dir(), reason=NO_CORPUS)
def test_transcripts_of_others_are_not_taken() -> None:
    """No real transcript of another program is recognised."""
    for path in sorted(CORPUS.glob("*/*")):
        if path.is_file() and path.parent.name not in ("pi", "openclaw", "corrupt"):
            head = path.read_bytes()[:HEAD_BYTES]
            assert not PI.recognises(head), path
            assert not OPENCLAW.recognises(head), path


@pytest.mark.skipif(not GENERATOR.exists(), reason=NO_GENERATOR)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_synthetic_fleet_is_found_whole(tmp_path: Path) -> None:
    """Every file of a fleet is found, once, recognised, and has the lane of its key."""
    generator().fleet(str(tmp_path), 2, 60, 7, None)
    files = found(OPENCLAW, tmp_path)
    assert sorted(files) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert all(OPENCLAW.recognises(Path(file.path).read_bytes()[:HEAD_BYTES]) for file in files.values())
    for sessions in (tmp_path / "agents").glob("*/sessions"):
        for key, kept in json.loads((sessions / "sessions.json").read_bytes()).items():
            name = os.path.relpath(kept["sessionFile"], tmp_path)
            assert files[name].lane == key_lane(key)
    assert {file.lane.split(":")[0] for file in files.values()} >= {"main", "cron", "hook"}
