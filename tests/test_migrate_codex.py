"""Codex rollouts: what each line is, where the files lie, and which files are Codex's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shardstore_migrate.sources.base import EVENT, MAIN, TURN, Label
from shardstore_migrate.sources.codex import CODEX, ENVELOPES, ITEMS

ROOT = Path(__file__).parent.parent
CORPUS = ROOT.parent / "shared" / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*.json*") if path.is_file())
NO_CORPUS = f"no transcripts at {CORPUS}"
HEAD_BYTES = 64 << 10
NOT_CODEX = ("session_branch.jsonl", "session_toolcall.jsonl")  # made by hand: bare roles, which no Codex has written
TIME = "2026-03-01T10:00:00.250Z"
TIME_MS = 1_772_359_200_250


def line(kind: str, payload: object, **more: object) -> bytes:
    """Return a line as Codex writes it."""
    return json.dumps({"timestamp": TIME, "type": kind, "payload": payload} | more).encode() + b"\n"


def bare(**fields: object) -> bytes:
    """Return a line of the older form."""
    return json.dumps(fields).encode() + b"\n"


def item(kind: str, **fields: object) -> bytes:
    """Return a line that holds an item."""
    return line("response_item", {"type": kind, **fields})


def meta(**fields: object) -> bytes:
    """Return a header."""
    return line("session_meta", {"id": "0199-a", "cwd": "/w", "originator": "codex_cli_rs", **fields})


ROLLOUT = [
    (meta(source="cli", timestamp="2026-03-01T09:59:59Z"), EVENT),
    (line("turn_context", {"cwd": "/w", "model": "m"}), EVENT),
    (line("world_state", {"full": True, "state": {}}, ordinal=3), EVENT),
    (line("event_msg", {"type": "task_started"}), EVENT),
    (item("message", role="developer", content=[]), TURN),
    (item("message", role="user", content=[{"type": "input_text", "text": "hi"}]), TURN),
    (line("event_msg", {"type": "user_message", "message": "hi"}), EVENT),
    (item("message", role="system", content=[]), EVENT),
    (item("reasoning", summary=[], encrypted_content="x"), TURN),
    (line("event_msg", {"type": "agent_reasoning", "text": "x"}), EVENT),
    (item("function_call", name="shell", arguments="{}", call_id="c1"), TURN),
    (item("function_call_output", call_id="c1", output="ok"), TURN),
    (item("custom_tool_call", name="apply_patch", input="", call_id="c2"), TURN),
    (item("custom_tool_call_output", call_id="c2", output="ok"), TURN),
    (item("local_shell_call", status="completed"), TURN),
    (item("web_search_call", status="completed"), TURN),
    (item("image_generation_call", status="completed"), TURN),
    (item("tool_search_call", call_id="c3"), TURN),
    (item("tool_search_output", call_id="c3"), TURN),
    (item("additional_tools", tools=[]), TURN),
    (item("agent_message", author="a", recipient="b"), TURN),
    (item("compaction", encrypted_content="x"), TURN),
    (item("context_compaction", encrypted_content="x"), TURN),
    (item("ghost_snapshot", ghost_commit={}), EVENT),
    (item("compaction_trigger"), EVENT),
    (item("other"), EVENT),
    (item("an_item_of_tomorrow"), TURN),
    (line("response_item", {"role": "assistant", "content": []}), TURN),
    (line("response_item", "no object"), EVENT),
    (line("compacted", {"message": "so far", "replacement_history": []}), TURN),
    (line("inter_agent_communication", {"author": "a"}), TURN),
    (line("inter_agent_communication_metadata", {"trigger_turn": False}), EVENT),
    (line("rollout_reference", {"path": "x"}), EVENT),
    (line("event_msg", {"type": "token_count", "info": None}), EVENT),
    (line("event_msg", {"type": "turn_aborted", "reason": "interrupted"}), EVENT),
    (line("event_msg", {"type": "an_event_of_tomorrow"}), EVENT),
    (line("a_line_of_tomorrow", {"type": "message", "role": "user"}), EVENT),
]
OLD = [
    (bare(id="0198", timestamp=TIME, instructions=None, git={}), EVENT, TIME_MS),
    (bare(record_type="state"), EVENT, None),
    (bare(type="message", id=None, role="user", content=[{"type": "input_text", "text": "hi"}]), TURN, None),
    (bare(type="message", id=None, role="user", content=[{"type": "input_text", "text": "hi"}]), TURN, None),
    (bare(type="reasoning", id="rs", summary=[]), TURN, None),
    (bare(type="function_call", name="shell", arguments="{}", call_id="c"), TURN, None),
    (bare(type="function_call_output", call_id="c", output="ok"), TURN, None),
    (bare(type="message", role="system", content=[]), EVENT, None),
    (bare(type="message", role="assistant", content=[], timestamp=1_772_359_200), TURN, 1_772_359_200_000),
    (bare(type="what", role="user"), EVENT, None),
]


def labels(lines: list[bytes], lane: str = MAIN) -> list[Label]:
    """Return the labels of the lines of one file."""
    labeller = CODEX.labeller(lane)
    return [labeller.label(each) for each in lines]


def test_each_line_of_a_rollout() -> None:
    """Kind, lane and time of every line type, counted by hand: 20 turns, 17 events."""
    found = labels([each for each, _ in ROLLOUT])
    assert found == [Label(kind, MAIN, TIME_MS) for _, kind in ROLLOUT]
    assert Counter(label.kind for label in found) == {TURN: 20, EVENT: 17}


def test_each_line_of_the_older_form() -> None:
    """Bare items are turns, the header and the state are events; what repeats stays: 6 turns, 4 events."""
    found = labels([each for each, _, _ in OLD])
    assert found == [Label(kind, MAIN, at_ms) for _, kind, at_ms in OLD]
    assert Counter(label.kind for label in found) == {TURN: 6, EVENT: 4}


@pytest.mark.parametrize(
    ("fields", "lane"),
    [
        ({"source": "cli"}, "main"),
        ({"source": "exec"}, "main"),
        ({"source": "vscode", "forked_from_id": "0198"}, "main"),
        ({"source": {"custom": "bot"}}, "main"),
        ({"source": None}, "main"),
        ({}, "main"),
        ({"source": {"subagent": "review"}}, "subagent:review"),
        ({"source": {"subagent": "compact"}}, "subagent:compact"),
        ({"source": {"subagent": {"other": "guardian"}}}, "subagent:guardian"),
        ({"source": {"subagent": {"thread_spawn": {"agent_nickname": "Ada", "agent_role": "r"}}}}, "subagent:Ada"),
        ({"source": {"subagent": {"thread_spawn": {"agent_path": None, "agent_role": "worker"}}}}, "subagent:worker"),
        ({"source": {"subagent": {"thread_spawn": {"depth": 1}}}}, "subagent:0199-a"),
        ({"source": {"subagent": {"of_tomorrow": 1}}}, "subagent:0199-a"),
        ({"source": {"subagent": "a\nb\ud800" + "c" * 300}}, "subagent:a b" + " " + "c" * 187),
        ({"source": {"internal": "memory_consolidation"}}, "subagent:memory_consolidation"),
        ({"thread_source": "subagent", "agent_nickname": "Bo"}, "subagent:Bo"),
    ],
)
def test_a_header_tells_the_lane(fields: dict[str, Any], lane: str) -> None:
    """The header and all after it get the lane of the subagent that it names, cleaned; anybody else is main."""
    found = labels([meta(**fields), item("message", role="user", content=[])])
    assert [label.source for label in found] == [lane, lane]


def test_a_fork_keeps_its_own_lane() -> None:
    """The header that a fork copies from its origin doesn't end the lane of the subagent, and a resumed labeller
    goes on with it.
    """
    own = meta(source={"subagent": {"thread_spawn": {"agent_nickname": "Ada"}}}, forked_from_id="0198")
    labeller = CODEX.labeller(MAIN)
    assert [labeller.label(each).source for each in (own, meta(source="cli"))] == ["subagent:Ada"] * 2
    again = CODEX.labeller(labeller.lane)
    assert again.label(meta(source={"subagent": "review"})).source == "subagent:Ada"
    assert CODEX.labeller("cron:x").label(meta(source={"subagent": "review"})).source == "cron:x"


def test_the_time_of_the_payload_stands_in() -> None:
    """The line's own time comes first, then that of what it holds; what is no time is none."""
    payload = {"type": "message", "role": "user", "timestamp": "2026-03-01T11:00:00.250+01:00"}
    lines = [
        bare(type="response_item", payload=payload),
        line("response_item", payload, timestamp="2026-03-01T10:00:01Z"),
        line("response_item", payload, timestamp="[trimmed]"),
        line("response_item", payload, timestamp=True),
        line("response_item", {**payload, "timestamp": -5}, timestamp=[]),
    ]
    assert [each.at_ms for each in labels(lines)] == [TIME_MS, TIME_MS + 750, TIME_MS, TIME_MS, None]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", EVENT),
        (b"\n", EVENT),
        (b"null\n", EVENT),
        (b"[]\n", EVENT),
        (b"3\n", EVENT),
        (b"\x00" * 4096, EVENT),
        (b'{"type":"compacted","payload":{}}{"type":"compacted","payload":{}}\n', EVENT),
        (b'{"type":"compacted","payl', EVENT),
        (b'{"type":"compacted","payload":[]}\n', EVENT),
        (b'{"type":["compacted"],"payload":{}}\n', EVENT),
        (b"[" * 100_000, EVENT),
        (b'{"a":' * 100_000, EVENT),
        (b'{"type":"compacted","payload":{"a":NaN}}\n', TURN),
        (b'{"type":"compacted","payload":{"a":"\xff"}}\r\n', TURN),
        (b'\xef\xbb\xbf{"type":"compacted","payload":{}}\n', TURN),
        (b'{"type":"compacted","payload":{"role":7}}\n', TURN),
        (b'{"timestamp":' + b"9" * 500 + b',"type":"compacted","payload":{}}\n', TURN),
        (b'{"timestamp":' + b"9" * 5000 + b',"type":"compacted","payload":{}}\n', EVENT),
        (b'{"type":"response_item","payload":{"type":"\\ud800"}}\n', TURN),
    ],
)
def test_damaged_lines(data: bytes, kind: str) -> None:
    """What can't be read is an event; what can, in spite of damage, keeps its kind. None has a time."""
    assert labels([data]) == [Label(kind, MAIN, None)]


def test_a_long_line() -> None:
    """A line of 6 MiB keeps its kind and its time."""
    assert labels([item("message", role="user", content="x" * (6 << 20))]) == [Label(TURN, MAIN, TIME_MS)]


SAMPLES = [each for each, _ in ROLLOUT] + [each for each, _, _ in OLD] + [meta(source={"subagent": "review"})]


def check(data: bytes) -> None:
    """Label a line, and check that the label is one."""
    label = CODEX.labeller(MAIN).label(data)
    assert label.kind in (TURN, EVENT)
    assert label.source.isprintable()
    assert 0 < len(label.source.encode()) <= 200
    assert label.at_ms is None or 0 <= label.at_ms < 1 << 48


@given(st.binary(max_size=300))
def test_any_bytes_get_a_label(data: bytes) -> None:
    """No bytes are an obstacle, neither to the label nor to recognition."""
    check(data)
    CODEX.recognises(data)


@given(st.sampled_from(SAMPLES), st.integers(0, 200), st.integers(0, 20), st.binary(max_size=20))
@example(SAMPLES[0], 0, 0, b"\xef\xbb\xbf")
def test_any_changed_line_gets_a_label(sample: bytes, start: int, removed: int, added: bytes) -> None:
    """Nor are lines that were changed anywhere."""
    data = sample[:start] + added + sample[start + removed :]
    check(data)
    CODEX.recognises(data)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["session_meta", "response_item", "compacted", "message"]), JSONS, JSONS, JSONS)
def test_fields_of_any_type_get_a_label(kind: str, timestamp: object, role: object, source: object) -> None:
    """Nor are fields of a wrong type."""
    payload = {"type": kind, "role": role, "timestamp": timestamp, "source": source, "id": role}
    subagent = {**payload, "source": {"subagent": source}, "thread_source": "subagent"}
    for each in (payload, subagent, source):
        data = bare(timestamp=timestamp, type=kind, role=role, payload=each)
        check(data)
        CODEX.recognises(data)


def test_homes() -> None:
    """The folder that CODEX_HOME names comes first, and none comes twice."""
    usual = ["/h/.codex/sessions", "/h/.codex/archived_sessions"]
    assert CODEX.homes("/h", {}) == usual
    assert CODEX.homes("/h", {"CODEX_HOME": ""}) == usual
    assert CODEX.homes("/h", {"CODEX_HOME": "/h/.codex"}) == usual
    assert CODEX.homes("/h", {"CODEX_HOME": "/c"}) == ["/c/sessions", "/c/archived_sessions", *usual]


def put(root: Path, *names: str) -> None:
    """Write empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_find(tmp_path: Path) -> None:
    """Live and archived rollouts are found, plain and compressed, each under an id of its own; nothing else is."""
    root = tmp_path / ".codex"
    put(root, "sessions/2026/03/01/rollout-b.jsonl", "sessions/2026/03/01/rollout-a.jsonl.zst")
    put(root, "sessions/2026/03/01/rollout-b.jsonl.zst", "archived_sessions/rollout-c.jsonl", "history.jsonl")
    put(root, "sessions/2026/03/01/rollout-d.json", "sessions/2026/03/01/notes.jsonl", "sessions/rollout-.txt")
    (root / "sessions" / "rollout-link.jsonl").symlink_to(root / "archived_sessions" / "rollout-c.jsonl")
    found = {each.name: each for each in CODEX.find(str(root))}
    assert {name: each.session for name, each in found.items()} == {
        "archived_sessions/rollout-c.jsonl": "codex/archived/rollout-c",
        "sessions/2026/03/01/rollout-a.jsonl.zst": "codex/2026/03/01/rollout-a.zst",
        "sessions/2026/03/01/rollout-b.jsonl": "codex/2026/03/01/rollout-b",
        "sessions/2026/03/01/rollout-b.jsonl.zst": "codex/2026/03/01/rollout-b.zst",
    }
    assert list(found) == sorted(found)
    assert {(each.format, each.agent, each.lane) for each in found.values()} == {("codex", "codex", MAIN)}
    assert all(each.path == str(root / name) for name, each in found.items())


@pytest.mark.parametrize(
    ("folder", "name", "session"),
    [
        ("h/sessions", "2026/03/01/rollout-a.jsonl", "codex/2026/03/01/rollout-a"),
        ("h/sessions/2026/03", "01/rollout-a.jsonl", "codex/2026/03/01/rollout-a"),
        ("h/archived_sessions", "rollout-a.jsonl.zst", "codex/archived/rollout-a.zst"),
        ("copy", "rollout-a.jsonl", "codex/rollout-a"),
        ("copy", "laptop/sessions/2026/03/01/rollout-a.jsonl", "codex/2026/03/01/rollout-a"),
        ("copy", "x/y/rollout-a.jsonl", "codex/x/y/rollout-a"),
    ],
)
def test_a_session_has_the_same_id_wherever_the_search_begins(
    tmp_path: Path, folder: str, name: str, session: str
) -> None:
    """The id is the path below `sessions`, or below the folder where there is none of that name."""
    put(tmp_path / folder, name)
    assert [each.session for each in CODEX.find(str(tmp_path / folder))] == [session]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """The caller hears of a folder that is not there."""
    with pytest.raises(FileNotFoundError):
        list(CODEX.find(str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("head", "recognised"),
    [
        (meta(source="cli"), True),
        (meta(source="cli", instructions="x" * HEAD_BYTES)[:HEAD_BYTES], True),
        (b"\xef\xbb\xbf" + meta(instructions="x" * HEAD_BYTES).replace(b": ", b":")[:HEAD_BYTES], True),
        (bare(type="session_meta", payload={"id": "a"}), True),
        (bare(id="0198", timestamp=TIME, instructions=None), True),
        (bare(record_type="state"), True),
        (OLD[2][0], True),
        (OLD[5][0], True),
        (b"junk\n\n" + ROLLOUT[5][0], True),
        (b"", False),
        (b"{}\n", False),
        (bare(role="user", content="hi"), False),
        (bare(type="message", role="user", content="hi"), False),
        (bare(type="message", message={"role": "user", "content": []}), False),
        (bare(type="user", message={"content": '{"type":"session_meta","payload":{}}'}), False),
        (bare(type="session", id="a", timestamp=TIME), False),
        (bare(type="session_meta", payload="x"), False),
    ],
)
def test_recognition(head: bytes, recognised: bool) -> None:
    """Codex's lines are recognised, also where the head cuts them; lines of other programs are not."""
    assert CODEX.recognises(head) is recognised


@pytest.mark.skipif(not FILES, reason=NO_CORPUS)
def test_the_corpus_is_recognised_as_what_it_is() -> None:
    """Of all real transcripts those of Codex are recognised, and no other."""
    found = {path for path in FILES if CODEX.recognises(path.read_bytes()[:HEAD_BYTES])}
    assert found == {path for path in FILES if path.parent.name == "codex" and not path.name.endswith(NOT_CODEX)}


@pytest.mark.skipif(not FILES, reason=NO_CORPUS)
def test_the_corpus_has_no_unknown_line() -> None:
    """Every line of the real rollouts is of a known type, and has a time where it shows one."""
    seen: Counter[tuple[str, str]] = Counter()
    for path in FILES:
        if path.parent.name != "codex" or path.name.endswith(NOT_CODEX):
            continue
        labeller = CODEX.labeller(MAIN)
        for data in path.read_bytes().splitlines(keepends=True):
            entry = json.loads(data)
            assert entry["type"] in ENVELOPES | ITEMS
            label = labeller.label(data)
            seen[path.name[-13:], label.kind] += 1
            shown = str(entry.get("timestamp") or entry["payload"].get("timestamp"))
            assert (label.at_ms is not None) == shown.startswith("20")
    assert (seen["abbca08.jsonl", TURN], seen["abbca08.jsonl", EVENT]) == (395, 428)  # the one recorded rollout
    assert (seen["__small.jsonl", TURN], seen["__small.jsonl", EVENT]) == (27, 91)
