"""Compressed transcripts: the file is kept exactly, and its lines become a session that reads like the plain file's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cli_runner import call
from migrate_run import ANSWER, GOOD, HEADER, USER, Commands, commands, fleet, killed_at, put, state_of
from shardstore_migrate import expanding, running, unpacking
from shardstore_migrate.catalog import Catalog
from shardstore_migrate.finding import find
from shardstore_migrate.importing import Importer
from shardstore_migrate.unpacking import Unpacked

import shardstore
from shardstore import NewRecord, OutcomeUnknown, Unavailable

assert commands  # a fixture
META = b'{"timestamp":"2026-01-01T00:00:01Z","type":"session_meta","payload":{"id":"x","cwd":"/w"}}\n'
ITEM = b'{"timestamp":"2026-01-01T00:00:02Z","type":"response_item","payload":{"type":"message","role":"user"}}\n'
EVENT = b'{"timestamp":"2026-01-01T00:00:03Z","type":"event_msg","payload":{"type":"agent_message"}}\n'
ROLLOUT = META + ITEM + EVENT
CRON = GOOD.replace(b'"content":"hi"', b'"content":"[cron:7f3a daily] report"').replace(b'"/w"', b'"/h/.openclaw"')
SKIPPED = b"\x50\x2a\x4d\x18\x05\0\0\0abcde"
ARCHIVED = "a.jsonl.deleted.2026-01-01T00-00-00.000Z"
KILLS = 24


def packed(data: bytes, level: int = 3) -> bytes:
    """Return a frame with a checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(data)


def noise(count: int) -> bytes:
    """Return lines that hardly compress."""
    chance = random.Random(5)
    return b"".join(b'{"role":"user","content":"%s"}\n' % chance.randbytes(300).hex().encode() for _ in range(count))


def records(commands: Commands, session: str) -> list[tuple[object, ...]]:
    """Return all that tells the records of a session apart."""
    with shardstore.open(commands.store, record_bytes_max=1 << 30) as store:
        found = store.session(session, create=False).records()
        return [(one.seq, one.kind, one.source, one.at_ms, one.payload) for one in found]


def only(ran: Any) -> dict[str, Any]:
    """Return what became of the one file, which has one derived session at most."""
    (file,) = ran.files
    assert len(file["derived"]) <= 1
    return {**file, "derived": "".join(file["derived"])}


# ------------------------------------------------------------------ as the plain file


PLACES = {
    "codex": (".codex/archived_sessions/rollout-2026.jsonl", ROLLOUT),
    "openclaw": (".openclaw/agents/main/sessions/a.jsonl", GOOD + EVENT[:-1]),
    "a cron job": (".openclaw/agents/main/sessions/a.jsonl", CRON),
    "archived": (f".openclaw/agents/main/sessions/{ARCHIVED}", CRON),
    "anybody's": ("somewhere/b.jsonl", ROLLOUT),
    "unknown": ("somewhere/c.ndjson", b'{"role":"user","content":"hi"}\n' * 9),
    "empty": (".codex/sessions/2026/01/01/rollout-e.jsonl", b""),
}


@pytest.mark.parametrize("name", PLACES)
def test_it_reads_like_the_plain_file(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Kinds, sources, times and lines are those of the plain file in its place; both files come back exact."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place, data = PLACES[name]
    path = put(tmp_path / "home" / place, data)
    before = Commands(commands.capture, tmp_path / "before")
    plain = only(before.run(path.parent))
    path.unlink()
    path = put(path.with_name(path.name + ".zst"), packed(data))
    file = only(commands.run(path.parent))
    assert (file["status"], file["error"]) == ("imported", None)
    assert file["derived"] == (plain["session"] if name != "anybody's" else "jsonl/somewhere/b")
    assert records(commands, file["derived"]) == records(before, plain["session"])
    commands.assert_holds(path.parent, tmp_path / "out")
    assert commands.view(file["session"]) == packed(data)


@pytest.mark.parametrize("named", [None, "", "a.jsonl.zst"], ids=["home", "folder", "file"])
def test_sessions_json_tells_the_lane(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """The lane of a compressed file is that of its session's key, whichever way it is found; the list names both."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".openclaw" / "agents" / "main" / "sessions"
    put(folder / "sessions.json", json.dumps({"agent:main:cron:7f3a": {"sessionId": "a"}}).encode())
    put(folder / "a.jsonl.zst", packed(GOOD))
    where = [] if named is None else [folder / named]
    (file,) = (file for file in commands.run(*where).files if file["derived"])
    assert (file["session"], file["derived"]) == ("openclaw/main/a.jsonl.zst", ["openclaw/main/a"])
    assert {row[2] for row in records(commands, "openclaw/main/a")} == {"cron:7f3a"}
    listed = call(commands.capture, commands.store, "migrate", "list").stdout.decode().split("\n")
    assert [line.split()[-1] for line in listed if line.split()[:1] == ["openclaw/main/a"]] == ["3"]


def test_beside_the_plain_file(commands: Commands, tmp_path: Path) -> None:
    """Where the plain file lies beside it, that has the id, whichever is imported first."""
    folder = tmp_path / ".codex" / "sessions"
    plain, other = folder / "rollout-a.jsonl", folder / "rollout-b.jsonl"
    put(Path(f"{plain}.zst"), packed(ROLLOUT))
    put(plain, ROLLOUT)
    put(Path(f"{other}.zst"), packed(ROLLOUT))
    derived = {os.path.basename(file["path"]): file["derived"] for file in commands.run(folder).files}
    expected = {"rollout-a.jsonl": [], "rollout-a.jsonl.zst": ["codex/rollout-a~2"]}
    assert derived == expected | {"rollout-b.jsonl.zst": ["codex/rollout-b"]}
    put(other, ROLLOUT)
    (new,) = (file for file in commands.run(folder).files if file["status"] == "imported")
    assert (new["path"], new["session"]) == (str(other), "codex/rollout-b~2")
    commands.assert_holds(folder, tmp_path / "out")
    assert len(commands.ids()) == 6


def test_long_ids(commands: Commands, tmp_path: Path) -> None:
    """An id without room is shortened."""
    home = tmp_path / ("x" * 120)
    path = put(home / ("Y" * 120 + ".jsonl.zst"), packed(GOOD))
    put(path.with_name("Y" * 120 + ".jsonl"), GOOD)
    files = commands.run(home).files
    assert sorted(len(file["derived"]) for file in files) == [0, 1]
    assert len(commands.ids()) == 3


def test_undo_removes_the_expanded_session(commands: Commands, tmp_path: Path) -> None:
    """It goes with the file's own, unless somebody appended to it; then the next run makes another one."""
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD))
    file = only(commands.run(path))
    assert {line["status"] for line in commands("undo", path, "--yes")} == {"undone"}
    assert commands.ids() == set()
    again = only(commands.run(path))
    assert (again["session"], again["derived"]) == (file["session"] + "~2", file["derived"] + "~2")
    with shardstore.open(commands.store) as store:
        store.session(again["derived"]).event(b"{}\n", source="heartbeat")
    told = {line["session"]: line["status"] for line in commands("undo", "--yes", code=1)}
    assert told == {again["session"]: "undone", again["derived"]: "stays"}
    assert only(commands.run(path))["derived"] == file["derived"] + "~3"


# ------------------------------------------------------------------ what lies in the stream

LINES = noise(40)
HALF = packed(LINES, level=1)
STREAMS = {  # what lies in the file, and what is read of it; None: whole lines, but not all
    "frames": (packed(GOOD) + packed(USER), GOOD + USER, False),
    "a line across frames": (packed(GOOD[:-20]) + packed(GOOD[-20:]), GOOD, False),
    "frames without content": (packed(b"") + packed(GOOD) + packed(b""), GOOD, False),
    "skippable frames": (SKIPPED + packed(GOOD) + SKIPPED, GOOD, False),
    "no final newline": (packed(GOOD[:-1]), GOOD[:-1], False),
    "garbage": (packed(GOOD) + b"garbage", GOOD, True),
    "garbage in a line": (packed(GOOD + USER[:9]) + b"garbage", GOOD, True),
    "cut in a checksum": (packed(GOOD)[:-2], GOOD, True),
    "another frame, cut": (packed(GOOD) + packed(LINES)[:40], GOOD, True),
    "a wrong checksum": (packed(GOOD)[:-1] + bytes([packed(GOOD)[-1] ^ 1]), None, True),
    "plain": (GOOD, b"", True),
    "cut at once": (packed(GOOD)[:3], b"", True),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams(commands: Commands, tmp_path: Path, name: str) -> None:
    """The whole lines that can be read are there, what is wrong is counted as damage, the file itself is exact."""
    data, lines, is_torn = STREAMS[name]
    path = put(tmp_path / "home" / "a.jsonl.zst", data)
    for _ in range(2):
        file = only(commands.run(path))
        assert (file["damage"].get("torn-stream", 0), file["error"]) == (int(is_torn), None)
        if lines is not None:
            assert bool(file["derived"]) == bool(lines)
            assert not lines or commands.view(file["derived"]) == lines
    assert commands.view(file["session"]) == data
    commands.assert_holds(path.parent, tmp_path / "out")


def test_a_stream_cut_anywhere() -> None:
    """What is read of a stream is a prefix of its lines, longer where more of it is there."""
    whole = noise(2000)
    stream = b"".join(packed(whole[at : at + 100_000], level=1) for at in range(0, len(whole), 100_000))
    before = 0
    for end in [*range(0, len(stream), len(stream) // 60), len(stream)]:
        unpacked = Unpacked([stream[:end]], bytes_max=1 << 30)
        lines = [line for batch in unpacked.lines() for line in batch]
        assert whole.startswith(b"".join(lines))
        assert all(line.endswith(b"\n") for line in lines)
        assert len(lines) >= before
        before = len(lines)
    assert (b"".join(lines), unpacked.torn) == (whole, "")


def test_a_bomb(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What expands beyond all measure ends there; a line that has no end, too; what came before stays."""
    monkeypatch.setattr(expanding, "EXPANDED_BYTES_MIN", 1 << 20)
    monkeypatch.setattr(expanding, "EXPANDED_TIMES_MAX", 10)
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD) + packed(USER * 1_000_000))
    file = only(commands.run(path))
    size = len(commands.view(file["derived"]))
    assert len(GOOD) < size <= 1 << 20
    assert file["damage"]["torn-stream"] == 1
    monkeypatch.setattr(unpacking, "LINE_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(expanding, "EXPANDED_BYTES_MIN", 1 << 30)
    path = put(tmp_path / "b.jsonl.zst", packed(GOOD) + packed(bytes(100 << 20)))
    assert commands.view(only(commands.run(path))["derived"]) == GOOD


def test_a_window_that_is_too_large(commands: Commands, tmp_path: Path) -> None:
    """A stream that asks for more memory than is given is not read, and the file is imported."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = put(tmp_path / "a.jsonl.zst", frame.compress(GOOD) + frame.flush())
    file = only(commands.run(path))
    assert (file["status"], file["derived"], file["damage"]) == ("imported", "", {"torn-stream": 1})


def test_damage_in_its_lines_is_counted(commands: Commands, tmp_path: Path) -> None:
    """The lines are inspected as those of a plain file; that the file is compressed is no damage."""
    path = put(tmp_path / "a.jsonl.zst", packed(HEADER + USER[:-1] + ANSWER))
    assert only(commands.run(path))["damage"] == {"glued": 1}
    assert only(commands.run(path, "--salvage"))["damage"] == {"glued": 1}
    put(path.with_name("b.jsonl.zst"), packed(GOOD))
    (document,) = commands("plan", path.parent)
    found = [(file["status"], file["damage"]) for file in document["files"]]
    assert found == [("unchanged", {"glued": 1}), ("new", {})]


# ------------------------------------------------------------------ again, later, killed


def test_a_file_that_changes(commands: Commands, tmp_path: Path) -> None:
    """One that grew, or holds other bytes, is expanded again, into another session; renamed, it keeps the one."""
    path = put(tmp_path / "home" / "a.jsonl.zst", packed(GOOD) + SKIPPED[:-1] + b"\n")
    first = only(commands.run(path))["derived"]
    put(path, path.read_bytes() + packed(USER))
    (file,) = commands.run(path).files
    assert (file["status"], file["derived"]) == ("grown", [first, f"{first}~2"])
    assert (commands.view(first), commands.view(f"{first}~2")) == (GOOD, GOOD + USER)
    path = path.rename(path.with_name("b.jsonl.zst"))
    (file,) = commands.run(path).files
    assert (file["status"], file["derived"]) == ("moved", [first, f"{first}~2"])
    put(path, packed(USER))
    assert commands.view(only(commands.run(path))["derived"]) == USER
    commands.assert_holds(path.parent, tmp_path / "out")
    assert {line["status"] for line in commands("undo", "--yes")} == {"undone"}
    assert commands.ids() == set()


def test_without_the_library(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Files are imported, and those that were not expanded are named with what to install; once it is, run again."""
    paths = [put(tmp_path / "home" / f"{name}.jsonl.zst", packed(GOOD)) for name in "ab"]
    put(tmp_path / "home" / "c.jsonl", GOOD)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zstandard", None)
        for status in ("imported", "unchanged"):
            (document,) = commands("run", tmp_path / "home")
            assert {file["status"] for file in document["files"]} == {status}
            assert document["unexpanded"] == [str(path) for path in paths]
            assert not any(file["derived"] for file in document["files"])
        answer = call(capfdbinary, commands.store, "migrate", "run", str(tmp_path / "home"))
        assert answer.code == 0
        assert answer.stderr.count(b"pip install 'shardstore[zstd]'") == 1
        assert all(str(path).encode() in answer.stderr.replace(b"\n", b"") for path in paths)
    (document,) = commands("run", tmp_path / "home")
    assert document["unexpanded"] == []
    assert sorted(len(file["derived"]) for file in document["files"]) == [0, 1, 1]


@pytest.mark.parametrize("name", ["link", "pread"])
def test_killed_anywhere(commands: Commands, tmp_path: Path, name: str) -> None:
    """Killed at any such call and run again, each file is expanded once, exactly, and nothing else is there."""
    home = tmp_path / "home"
    for number in range(4):
        put(home / f"{number}.jsonl.zst", packed(GOOD * number + noise(3)))

    def run() -> None:
        with shardstore.open(commands.store, record_bytes_max=1 << 30) as store:
            found, _ = find([str(home)], home=str(tmp_path), environ={})
            assert not [one for one in running.import_files(store, found, jobs=1) if one.error]

    at, killed, chance = 1, 0, random.Random(name)
    while code := killed_at(name, at * chance.choice([1, -1]), run):
        assert code == -signal.SIGKILL
        killed += 1
        at = at + chance.randrange(1, 4) if killed < KILLS else 1 << 30
    assert killed
    assert len(commands.ids()) == 8
    for number, entry in enumerate(sorted(commands.catalog(), key=lambda entry: entry.path)):
        (derived,) = entry.derived
        assert commands.view(derived) == GOOD * number + noise(3)
        assert hashlib.sha256(commands.view(entry.session)).hexdigest() == entry.sha256
    commands.assert_holds(home, tmp_path / "out")


def test_a_run_that_did_not_tell_the_catalog(commands: Commands, tmp_path: Path) -> None:
    """A session with exactly its lines, appended to since or not, is taken over; one with others is somebody else's."""
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD))
    with shardstore.open(commands.store) as store:
        lines = GOOD.splitlines(keepends=True)
        store.import_session("jsonl/a", [NewRecord(payload=line) for line in lines[:2]])
        store.import_session("jsonl/a~2", [*lines, b"more\n"])
    file = only(commands.run(path))
    assert file["derived"] == "jsonl/a~2"
    (entry,) = commands.catalog()
    assert entry.derived == {"jsonl/a~2": [(1, 3)]}
    told = {line["session"]: line["status"] for line in commands("undo", "--yes", code=1)}
    assert told == {file["session"]: "undone", "jsonl/a~2": "stays"}


def test_a_file_whose_own_session_is_gone(commands: Commands, tmp_path: Path) -> None:
    """Where somebody deleted the file's session before it was expanded, that is told, and nothing is made."""
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD))
    found, _ = find([str(path)], home=str(tmp_path), environ={})
    with shardstore.open(commands.store) as store:
        (outcome,) = Importer(store, Catalog(store)).run(found)
        assert outcome.entry is not None
        store.session(outcome.entry.session).delete()
    file = only(commands.run(path, code=1))
    assert (file["status"], file["derived"]) == ("unchanged", "")
    assert "deleted" in file["error"]
    assert commands.ids() == set()


def test_after_it_was_followed(commands: Commands, tmp_path: Path) -> None:
    """A follower leaves what has no newline yet, as the end of a stream hardly has; a run brings it in and expands."""
    path = put(tmp_path / "home" / "a.jsonl.zst", packed(noise(20)))
    commands("follow", path, "--once")
    assert commands.view("jsonl/a.jsonl.zst") != path.read_bytes()
    file = only(commands.run(path))
    assert (file["status"], commands.view(file["derived"])) == ("grown", noise(20))
    commands.assert_holds(path.parent, tmp_path / "out")


def test_a_store_that_fails(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store refuses is told of that file; the import stands, and the next run expands it."""
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD))
    commands.store.parent.mkdir(exist_ok=True)
    real = shardstore.Store.import_sessions
    for error in (Unavailable("the disk is full"), OutcomeUnknown("perhaps")):

        def failing(self: shardstore.Store, sessions: Any, fault: Exception = error) -> Any:
            for id_, of in sessions:
                own = id_.partition("~")[0].endswith(".zst")
                yield from real(self, [(id_, of)]) if own else [shardstore.Imported(id_, 0, fault)]

        with monkeypatch.context() as patch:
            patch.setattr(shardstore.Store, "import_sessions", failing)
            file = only(commands.run(path, code=1))
        assert str(error) in file["error"]
        assert (file["status"] in ("imported", "unchanged"), file["derived"]) == (True, "")
    assert commands.view(only(commands.run(path))["derived"]) == GOOD


def test_spoiled_on_the_way(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that does not read back as the lines is told and not recorded; the next run makes another one."""
    path = put(tmp_path / "a.jsonl.zst", packed(GOOD))
    real = expanding.Expansion.records

    def spoiled(self: expanding.Expansion) -> Any:
        for record in real(self):
            yield NewRecord(payload=record.payload.upper())

    with monkeypatch.context() as patch:
        patch.setattr(expanding.Expansion, "records", spoiled)
        file = only(commands.run(path, code=1))
    assert (file["status"], file["derived"]) == ("imported", "")
    assert only(commands.run(path))["derived"] == "jsonl/a~2"


def test_many(commands: Commands, tmp_path: Path) -> None:
    """A fleet of compressed files, by several processes, is expanded once each, and a repeat changes nothing."""
    home = fleet(tmp_path / ".openclaw", 90)
    plain = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for path, data in plain.items():
        path.unlink()
        put(Path(f"{path}.zst"), packed(data))
    files = commands.run(home, "--jobs", "2").files
    assert {file["format"] for file in files} == {"openclaw"}
    for file in files:
        (derived,) = file["derived"]
        assert commands.view(derived) == plain[Path(file["path"].removesuffix(".zst"))]
    before = state_of(commands.store)
    assert commands.run(home).statuses == {"unchanged"}
    assert state_of(commands.store) == before
