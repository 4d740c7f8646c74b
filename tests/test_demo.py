"""The demo: its fence is the one it imitates, its transcript is cut without loss, and its numbers are true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import shardstore
from shardstore.demo.fence import (
    EmbeddedAttemptSessionTakeoverError,
    FencedAttempt,
    SessionWriteLockTimeoutError,
    append_locked,
)
from shardstore.demo.generate import generate_transcript
from shardstore.demo.schedule import Timing, make_schedule
from shardstore.demo.transcript import cut, role_of

ROOT = Path(shardstore.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
DEADLINE_S = 120
ASSISTANT = b'{"type":"message","message":{"role":"assistant","content":"x"}}'
USER = b'{"type":"message","message":{"role":"user","content":"x"}}'
CLAUDE_CODE = [
    b'{"type":"user","message":{"role":"user","content":"fix it"},"uuid":"1"}',
    b'{"type":"assistant","message":{"id":"m1","role":"assistant","content":[],"usage":{"output_tokens":7}}}',
    b'{"type":"assistant","message":{"id":"m1","role":"assistant","content":[],"usage":{"output_tokens":7}}}',
    b'{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":"ok"}]}}',
    b'{"type":"assistant","message":{"id":"m2","role":"assistant","content":[],"usage":{"output_tokens":5}}}\r',
    b'{"type":"user","message":{"role":"user","content":"thanks"}}',
    b"not json at all",
    b'{"type":"assistant","message":{"id":"m3","role":"assistant","content":[],"usage":{"output_tokens":3}}}',
]


def demo(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run `shardstore demo` to its end."""
    words = [sys.executable, "-m", "shardstore", "demo", *arguments]
    done = subprocess.run(words, capture_output=True, env=ENVIRONMENT, timeout=DEADLINE_S)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert b"Traceback" not in done.stderr
    return done


# ------------------------------------------------------------------ the fence


@pytest.fixture
def session_file(tmp_path: Path) -> str:
    """A session file with one line."""
    file = tmp_path / "s.jsonl"
    file.write_bytes(USER + b"\n")
    return str(file)


def test_the_fence_forgives_assistant_entries_alone(session_file: str) -> None:
    """An attempt goes on after assistant entries were added, and its own writes never trip it."""
    attempt = FencedAttempt(session_file)
    attempt.write(USER)
    attempt.release_for_prompt()
    append_locked(session_file, [ASSISTANT, ASSISTANT])
    attempt.write(ASSISTANT)
    attempt.write(USER)
    attempt.close()
    assert Path(session_file).read_bytes().split(b"\n") == [USER, USER, ASSISTANT, ASSISTANT, ASSISTANT, USER, b""]


@pytest.mark.parametrize("what", ["heartbeat", "touch", "replace", "mixed"])
def test_the_fence_refuses_and_sticks(session_file: str, what: str) -> None:
    """After any other change the attempt's every later write fails, even once the file is as it was."""
    attempt = FencedAttempt(session_file)
    attempt.release_for_prompt()
    if what == "heartbeat":
        append_locked(session_file, [b'{"type":"custom","customType":"heartbeat"}'])
    elif what == "touch":
        os.utime(session_file, ns=(1, 1))
    elif what == "mixed":
        append_locked(session_file, [ASSISTANT, USER])
    else:
        copy = session_file + ".copy"
        Path(copy).write_bytes(Path(session_file).read_bytes())
        os.replace(copy, session_file)
    before = Path(session_file).read_bytes()
    for _ in range(2):
        with pytest.raises(
            EmbeddedAttemptSessionTakeoverError, match="session file changed while embedded prompt lock"
        ):
            attempt.write(ASSISTANT)
    assert Path(session_file).read_bytes() == before
    later = FencedAttempt(session_file)  # a new attempt is not touched by the old one's fate
    later.write(ASSISTANT)
    later.close()


def test_the_lock_excludes(session_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one attempt holds the lock, another writer waits and gives up at its timeout; afterwards it gets in."""
    monkeypatch.setattr("shardstore.demo.fence.LOCK_TIMEOUT_S", 0.05)
    attempt = FencedAttempt(session_file)
    with pytest.raises(SessionWriteLockTimeoutError):
        append_locked(session_file, [USER])
    attempt.close()
    append_locked(session_file, [USER])
    assert Path(session_file).read_bytes() == (USER + b"\n") * 2


# ------------------------------------------------------------------ the transcript


def test_a_transcript_is_cut_without_loss() -> None:
    """History, messages and replies together are the lines, in their order, and tokens count once a message."""
    script = cut(CLAUDE_CODE, turns=5, calls=2)
    turns = [[*turn.message, *(line for reply in turn.replies for line in reply.lines)] for turn in script.turns]
    assert [*script.history, *(line for turn in turns for line in turn)] == CLAUDE_CODE
    assert [role_of(line) for line in CLAUDE_CODE] == [
        "user", "assistant", "assistant", "tool", "assistant", "user", "other", "assistant",
    ]  # fmt: skip
    assert [[reply.tokens for reply in turn.replies] for turn in script.turns] == [[7], [5], [3]]


def test_a_transcript_without_a_conversation_is_refused() -> None:
    """Lines in which nobody answers anybody are an invalid request, whatever they hold."""
    for lines in ([], [b"\xff"], [USER], [ASSISTANT], [b"[1]", b'"x"', b"null", b'{"message":3,"type":4}']):
        with pytest.raises(shardstore.InvalidRequest):
            cut(lines, turns=5, calls=2)


def test_the_generated_transcript_depends_on_its_seed_alone() -> None:
    """The same seed gives the same bytes, another one others; ids chain from line to line."""
    lines = generate_transcript(turns=4, seed=7)
    assert lines == generate_transcript(turns=4, seed=7)
    assert lines != generate_transcript(turns=4, seed=8)
    entries = [json.loads(line) for line in lines]
    assert [entry["parentId"] for entry in entries[2:]] == [entry["id"] for entry in entries[1:-1]]
    assert Counter(map(role_of, lines)) == {"other": 1, "user": 4, "assistant": 8, "tool": 4}


def test_every_disturbance_falls_into_a_model_call() -> None:
    """Whatever the number of turns, each co-tenant writes while the main lane's model is thinking."""
    for turns in range(1, 8):
        schedule = make_schedule(generate_transcript(turns=turns), Timing(turns=6))
        main, second, *others = schedule.lanes
        spans = [(one.at_s, one.at_s + schedule.timing.turn_s(one.turn) - schedule.timing.gap_s) for one in main.turns]
        moments = [note.at_s for lane in others for note in lane.notes] + [second.turns[0].at_s]
        assert all(any(begin < moment < end for begin, end in spans) for moment in moments)


# ------------------------------------------------------------------ the whole


def lines_of(view: bytes) -> Counter[bytes]:
    """Return a file's lines, counted."""
    return Counter(view.split(b"\n")[:-1])


def check_honest(report: dict[str, Any], whole: Counter[bytes]) -> None:
    """What a report says was lost must be missing from the fence's file, and from nothing of shardstore's."""
    fence, ours = report["fence"], report["shardstore"]
    assert fence["turns_lost"] >= 1
    assert fence["replies_lost"] >= 1
    assert fence["errors"]
    assert ours["turns_lost"] == ours["replies_lost"] == ours["refused_writes"] == 0
    assert ours["replies_finished"] == ours["replies"]
    assert ours["acknowledged_missing"] == fence["acknowledged_missing"] == 0
    assert ours["history_intact"]
    assert fence["history_intact"]
    assert ours["compactions"] >= 1
    assert [one["kept"] for one in ours["tenants"]] == [one["written"] for one in ours["tenants"]]
    assert not [one for one in report["verify"] if one["severity"] == "damage"]
    with shardstore.open(report["store"], create=False) as store:
        ours_found = lines_of(store.session(report["session"], create=False).read_jsonl())
        assert not [finding for finding in store.verify() if finding.severity == "damage"]
    fence_found = lines_of(Path(report["fence_file"]).read_bytes())
    assert not whole - ours_found
    assert whole - fence_found
    assert sum(one["written"] for one in ours["tenants"]) == sum((ours_found - whole).values())
    assert not os.path.exists(report["fence_file"] + ".lock")


def test_the_demo_on_a_generated_transcript(tmp_path: Path) -> None:
    """The fence loses turns, shardstore none, and the report says what really lies in the two places."""
    folder = tmp_path / "demo"
    report = json.loads(demo("--json", "--call", "0.3", "--seed", "3", "--dir", str(folder)).stdout)
    assert report["shardstore"]["turns"] == 7
    assert report["fence"]["tokens_lost"] > 0 == report["shardstore"]["tokens_lost"]
    check_honest(report, Counter(generate_transcript(turns=19, seed=3)))
    assert b"empty folder" in demo("--dir", str(folder), code=4).stderr


def test_the_demo_on_a_transcript(tmp_path: Path) -> None:
    """A given transcript is only read, its lines are kept verbatim, and people are told where everything lies."""
    file = tmp_path / "given.jsonl"
    file.write_bytes(b"\n".join(CLAUDE_CODE))
    folder = tmp_path / "demo"
    told = demo(str(file), "--call", "0.3", "--dir", str(folder)).stdout.decode()
    assert "REFUSED" in told
    assert "EmbeddedAttemptSessionTakeoverError: session file changed" in told
    assert f"--store {folder}/store cat demo" in told
    assert file.read_bytes() == b"\n".join(CLAUDE_CODE)
    with shardstore.open(folder / "store", create=False) as store:
        found = lines_of(store.session("demo", create=False).read_jsonl())
    assert not Counter(CLAUDE_CODE) - found
    assert Counter(CLAUDE_CODE) - lines_of((folder / "demo.jsonl").read_bytes())
    file.write_bytes(b"{}\n")
    assert b"no message with an answer" in demo(str(file), code=2).stderr


def test_the_demo_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the demo with 130 and no word, ends its processes, and takes its unfinished folder away."""
    folder = tmp_path / "demo"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a child may inherit it as ignored
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "shardstore", "demo", "--dir", str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        while b"written" not in line:
            assert line
            line = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        assert process.communicate(timeout=DEADLINE_S)[1] == b""  # ends only when every process has let go of it
    assert process.returncode == 130
    assert not folder.exists()
