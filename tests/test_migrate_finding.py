"""Finding transcripts: in homes, in named files and folders, with unique ids, whatever lies in the way."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openclaw_samples import CORPUS, GENERATOR, NO_CORPUS, NO_GENERATOR, generator
from shardstore_migrate.finding import Problem, find, quoted_bytes
from shardstore_migrate.sources import FORMATS, Found, format_of
from shardstore_migrate.sources.base import beginning

import shardstore

UUID = "0d8ae3b4-6f1c-4a77-9b11-1f0e2d3c4b5a"
CLAUDE = b'{"type":"user","uuid":"u","sessionId":"s","isSidechain":false,"message":{"role":"user","content":"hi"}}\n'
CODEX = b'{"timestamp":"2026-01-01T00:00:00Z","type":"session_meta","payload":{"id":"x"}}\n'
PI = b'{"type":"session","version":3,"id":"b","timestamp":"2026-01-01","cwd":"/w"}\n'
OPENCLAW = PI.replace(b'"/w"', b'"/h/.openclaw/workspace"')
UNKNOWN = b'{"role":"user","content":"hi"}\n'
QWEN = b'{"uuid":"u","sessionId":"s","timestamp":"2026-01-01","type":"user","message":{"role":"user","parts":[]}}\n'
OLD = "old.jsonl.deleted.2026-01-01T00-00-00.000Z.zst"
WORK = f".claude/projects/-w/{UUID}"
HOMES = {  # a file of each format in its home: its content, session and lane
    ".openclaw/agents/main/sessions/a.jsonl": (OPENCLAW, "openclaw/main/a", "main"),
    ".openclaw/agents/main/sessions/sessions.json": (b"{}", "openclaw/main/sessions.json", "main"),
    f".openclaw/agents/main/sessions/{OLD}": (b"\x28\xb5\x2f\xfd", f"openclaw/main/{OLD}", "file"),
    ".pi/agent/sessions/--w--/b.jsonl": (PI, "pi/--w--/b", "main"),
    ".qwen/projects/p/chats/q.jsonl": (b"", "qwen-code/p/q", "main"),
    f"{WORK}.jsonl": (CLAUDE, f"claude-code/-w/{UUID}", "main"),
    f"{WORK}/subagents/agent-1.jsonl": (CLAUDE, f"claude-code/-w/{UUID}/subagents/agent-1", "subagent:1"),
    f"{WORK}/tool-results/x.txt": (b"x", f"claude-code/-w/{UUID}/tool-results/x.txt", "file"),
    ".codex/sessions/2026/01/02/rollout-c.jsonl": (CODEX, "codex/2026/01/02/rollout-c", "main"),
    ".codex/archived_sessions/rollout-d.jsonl.zst": (b"\x28\xb5", "codex/archived/rollout-d.zst", "file"),
    ".copilot/session-state/s/events.jsonl": (b"", "copilot-cli/s", "main"),
    ".gemini/tmp/p/chats/session-1.jsonl": (b"", "gemini-cli/p/session-1", "main"),
    ".factory/sessions/-w/f.jsonl": (b"", "factory/-w/f", "main"),
}


def put(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def put_homes(root: Path) -> None:
    """Write a home that holds files of every format, and others."""
    put(root, {name: data for name, (data, _, _) in HOMES.items()})
    put(root, {".claude/history.jsonl": UNKNOWN, ".codex/history.jsonl": UNKNOWN, "notes.txt": b"x"})


def search(home: Path, *paths: Path | str, **environ: str) -> tuple[dict[str, Found], list[Problem]]:
    """Return what is found, by the path below `home`, and the problems."""
    found, problems = find([str(path) for path in paths], home=str(home), environ=environ)
    assert [os.fsencode(one.path) for one in found] == sorted({os.fsencode(one.path) for one in found})
    assert len({one.session for one in found}) == len(found)
    assert all(os.path.realpath(one.path) == one.path and one.path.endswith(one.name) for one in found)
    assert all(quoted_bytes(one.session) <= 255 for one in found)
    assert problems == sorted(problems, key=lambda problem: problem.path)
    return {os.path.relpath(one.path, home): one for one in found}, problems


def test_homes(tmp_path: Path) -> None:
    """Without paths each format finds what lies in its home, companions and compressed files too, and nothing else."""
    put_homes(tmp_path)
    found, problems = search(tmp_path)
    assert {name: (one.session, one.lane) for name, one in found.items()} == {
        name: (session, lane) for name, (_, session, lane) in HOMES.items()
    }
    assert problems == []
    assert {one.format for one in found.values()} == {form.name for form in FORMATS} - {"jsonl"}
    archive = next(one for name, one in found.items() if ".deleted." in name)
    assert (archive.format, archive.agent) == ("openclaw", "openclaw/main")
    assert search(tmp_path / "nobody") == ({}, [])


def test_homes_that_are_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is reached by two names is looked at once, and its files have one path."""
    looked: list[str] = []
    codex = type(format_of("codex"))
    monkeypatch.setattr(codex, "find", lambda *most, real=codex.find: looked.append(most[1]) or real(*most))
    put(tmp_path, {"data/cx/sessions/rollout-a.jsonl": CODEX})
    (tmp_path / ".codex").symlink_to(tmp_path / "data" / "cx")
    for home in (str(tmp_path / "data/cx"), str(tmp_path / ".codex"), "/nowhere"):
        found, problems = search(tmp_path, CODEX_HOME=home)
        assert [one.session for one in found.values()] == ["codex/rollout-a"]
        assert set(found) == {"data/cx/sessions/rollout-a.jsonl"}
        assert len(looked) == 1
        looked.clear()
        assert problems == []


@pytest.mark.parametrize(
    "folder", ["", ".openclaw", ".pi/agent", ".qwen", ".claude", ".codex", ".copilot/session-state"]
)
def test_a_home_that_is_named(tmp_path: Path, folder: str) -> None:
    """Of a home, what is in it, above it, or a copy of it the ids are those of a search without paths."""
    home = tmp_path / "copies" / "home"
    put_homes(home)
    for user in (home, tmp_path):
        found, problems = search(user, home / folder)
        found = {os.path.relpath(one.path, home): one for one in found.values()}
        known = {name: HOMES[name][1:] for name in HOMES if name.startswith(folder)}
        assert {name: (found[name].session, found[name].lane) for name in known} == known
        others = {name: one.session for name, one in found.items() if name not in known}
        assert set(others) == {
            name for name in (".claude/history.jsonl", ".codex/history.jsonl") if name.startswith(folder)
        }
        assert all(session.startswith("jsonl/") for session in others.values())
        assert problems == []


@pytest.mark.parametrize(
    "name", [name for name in HOMES if not name.endswith((".json", ".txt")) and ".deleted." not in name]
)
def test_a_file_or_a_part_of_a_home_that_is_named(tmp_path: Path, name: str) -> None:
    """A file, and the folder that it lies in, get what a search of the home gives; also in a copy of it."""
    put_homes(tmp_path / "copy")
    for user in (tmp_path / "copy", tmp_path):
        for path in (tmp_path / "copy" / name, (tmp_path / "copy" / name).parent):
            found, problems = search(user, path)
            one = found[os.path.relpath(tmp_path / "copy" / name, user)]
            assert (one.session, one.lane) == HOMES[name][1:]
            assert problems == []


def test_a_file_anywhere(tmp_path: Path) -> None:
    """The head of a file tells its format; its id is what the format calls it in its folder, or its bare name."""
    put(tmp_path, {"x/a.jsonl": CLAUDE, "x/b.log": CODEX, "x/c.jsonl": UNKNOWN, "x/d": b"", "x/agent-7.jsonl": CLAUDE})
    put(tmp_path, {"old/agents/work/sessions/e.jsonl": OPENCLAW, "x/rollout-f.jsonl": CODEX})
    found, problems = search(tmp_path, *sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    assert {name: (one.format, one.session, one.name) for name, one in found.items()} == {
        "old/agents/work/sessions/e.jsonl": ("openclaw", "openclaw/work/e", "e.jsonl"),
        "x/a.jsonl": ("claude-code", "claude-code/x/a", "a.jsonl"),
        "x/agent-7.jsonl": ("claude-code", "claude-code/x/agent-7", "agent-7.jsonl"),
        "x/b.log": ("codex", "codex/b.log", "b.log"),
        "x/c.jsonl": ("jsonl", "jsonl/c", "c.jsonl"),
        "x/d": ("jsonl", "jsonl/d", "d"),
        "x/rollout-f.jsonl": ("codex", "codex/rollout-f", "rollout-f.jsonl"),
    }
    assert found["x/agent-7.jsonl"].lane == "subagent:7"
    assert problems == []


def test_a_folder_of_anything(tmp_path: Path) -> None:
    """Heads decide where several formats claim a file; what they don't decide goes with what lies around it."""
    mixed = tmp_path / "mixed"
    files = {
        "claude/a.jsonl": (CLAUDE, "claude-code"),
        "claude/empty.jsonl": (b"", "claude-code"),
        "claude/nul.jsonl": (b"\0" * 4096, "claude-code"),
        "claude/other.jsonl": (UNKNOWN, "jsonl"),
        f"claude/{UUID}/tool-results/o.txt": (b"text", "claude-code"),
        f"claude/{UUID}/tool-results/o.jsonl": (PI, "claude-code"),
        "claw/c.jsonl": (OPENCLAW, "openclaw"),
        "claw/sessions.json": (b"{}", "openclaw"),
        "claw/unmarked.jsonl": (PI, "openclaw"),
        "claw/z.jsonl.reset.2026-01-01.gz": (b"\x1f\x8b", "openclaw"),
        "logs/d.jsonl": (UNKNOWN, "jsonl"),
        "logs/e.ndjson": (CODEX, "codex"),
        "logs/empty.jsonl": (b"", "jsonl"),
        "logs/settings.json": (b"{}", None),
        "pi/b.jsonl": (PI, "pi"),
        "pi/x/y/torn.jsonl": (b'{"type":"mess', "pi"),
        "qwen/chats/q.jsonl": (QWEN, "qwen-code"),
        "readme.md": (b"# hi\n", None),
    }
    put(mixed, {name: data for name, (data, _) in files.items()})
    found, problems = search(mixed, mixed)
    assert {name: one.format for name, one in found.items()} == {
        name: form for name, (_, form) in files.items() if form
    }
    assert found["logs/d.jsonl"].session == "jsonl/mixed/logs/d"
    assert found["logs/e.ndjson"].session == "codex/mixed/logs/e.ndjson"
    assert found["claw/z.jsonl.reset.2026-01-01.gz"].lane == "file"
    assert problems == []


def test_ids_are_unique_and_stable(tmp_path: Path) -> None:
    """Files with one proposal are numbered by their paths, around ids that others propose themselves."""
    for name in ("c", "a", "b", "d"):
        put(tmp_path, {f"{name}/x.jsonl": UNKNOWN})
    put(tmp_path, {"e/x~2.jsonl": UNKNOWN})
    paths = [tmp_path / f"{name}/x.jsonl" for name in "dbca"] + [tmp_path / "e/x~2.jsonl"]
    found, _ = search(tmp_path, *paths)
    names = ["jsonl/x", "jsonl/x~3", "jsonl/x~4", "jsonl/x~5", "jsonl/x~2"]
    assert [one.session for one in found.values()] == names
    assert search(tmp_path, *reversed(paths)) == (found, [])
    assert search(tmp_path, *paths, *paths) == (found, [])


def test_ids_that_are_too_long(tmp_path: Path) -> None:
    """A long id keeps its start and its end, and is told apart from the others like it."""
    long = ["k" * 240, "k" * 239 + "l", "Ж" * 120, "Ж" * 119 + "Ш"]
    put(tmp_path, {f"{folder}/{name}.jsonl": UNKNOWN for folder in "ab" for name in long})
    for paths in ([tmp_path], [tmp_path / folder / f"{name}.jsonl" for folder in "ab" for name in long]):
        found, problems = search(tmp_path, *paths)
        assert (len(found), problems) == (8, [])
        for name, one in found.items():
            assert one.session.startswith("jsonl/")
            assert name.removesuffix(".jsonl")[-10:] in one.session


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """They get ids that a store takes, each its own; the path stays the file's."""
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(raw)
    for name in (b"/a\xff.jsonl", b"/a\xfe.jsonl", b"/a\\udcff.jsonl"):
        Path(os.fsdecode(raw + name)).write_bytes(UNKNOWN)
    store = shardstore.open(tmp_path / "store")
    for paths in ([os.fsdecode(raw)], sorted(os.fsdecode(raw + b"/" + name) for name in os.listdir(raw))):
        found, problems = find(paths, home=str(tmp_path), environ={})
        assert {os.fsencode(one.path) for one in found} == {raw + b"/" + name for name in os.listdir(raw)}
        assert len({store.session(one.session).id for one in found}) == 3
        assert problems == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    """Return a store to ask."""
    return shardstore.open(tmp_path_factory.mktemp("ids") / "store")


@given(st.text(max_size=300) | st.text("aZ.~é", max_size=300).map(lambda text: "." + text))
def test_the_length_of_an_id_is_the_stores(store: shardstore.Store, session: str) -> None:
    """A store takes an id if it is not empty and its quoted length is at most 255 bytes, and no other."""
    try:
        session.encode()
    except UnicodeEncodeError:
        return
    for text in (session, session[:85], session[:-1] + "x" * (255 - quoted_bytes(session[:-1]))):
        try:
            store.session(text)
        except shardstore.InvalidRequest:
            assert not text or quoted_bytes(text) > 255
        else:
            assert 0 < quoted_bytes(text) <= 255


def test_links_are_told_and_not_followed(tmp_path: Path) -> None:
    """A symlink in a tree is one problem if it hides something; a named one is followed, a loop is a problem."""
    put(tmp_path, {"in/a.jsonl": UNKNOWN, "in/d/b.jsonl": UNKNOWN, "out/d/c.jsonl": UNKNOWN, "out/x.txt": b""})
    links = {"in/inside": "d", "in/a-again.jsonl": "a.jsonl", "in/folder": "../out/d", "in/loop.jsonl": "loop.jsonl"}
    links |= {"in/dangling.jsonl": "gone", "in/text": "../out/x.txt", "in/up": "..", "named": "out", "round": "round"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    found, problems = search(tmp_path, tmp_path / "in", tmp_path / "round", tmp_path / "in")
    assert set(found) == {"in/a.jsonl", "in/d/b.jsonl"}
    told = {os.path.relpath(problem.path, tmp_path): problem.reason for problem in problems}
    assert set(told) == {"in/dangling.jsonl", "in/folder", "in/loop.jsonl", "in/up", "round"}
    assert told["in/folder"] == "a symbolic link: not followed"
    found, problems = search(tmp_path, tmp_path / "named", tmp_path / "in" / "a-again.jsonl")
    assert set(found) == {"out/d/c.jsonl", "in/a.jsonl"}
    assert problems == []


def test_what_is_no_file(tmp_path: Path) -> None:
    """Pipes, sockets, devices, missing files and names that are no path are problems; the rest is found."""
    put(tmp_path, {"d/a.jsonl": UNKNOWN, ".claude/projects/p/b.jsonl": CLAUDE})
    for name in ("d/pipe.jsonl", "d/pipe", ".claude/projects/p/sessions.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "sessions").write_bytes(b"no folder")
    os.mknod(tmp_path / "d" / "socket.jsonl", stat.S_IFSOCK | 0o600)
    named: Sequence[str] = [str(tmp_path / "d" / "pipe"), str(tmp_path / "gone"), "a\0b", "", "/dev/null", "\ud800"]
    found, problems = search(tmp_path, tmp_path / "d", *named)
    assert set(found) == {"d/a.jsonl"}
    told = {problem.path: problem.reason for problem in problems}
    assert set(told) == {*named, str(tmp_path / "d" / "pipe.jsonl"), str(tmp_path / "d" / "socket.jsonl")}
    assert all(reason and reason[0].islower() for reason in told.values())
    found, problems = search(tmp_path)
    assert set(found) == {".claude/projects/p/b.jsonl"}
    told = {problem.path: problem.reason for problem in problems}
    assert set(told) == {str(tmp_path / name) for name in (".claude/projects/p/sessions.json", ".codex/sessions")}


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    """A file that has become a pipe since it was listed is refused, not waited for."""
    os.mkfifo(tmp_path / "pipe")
    refused: list[object] = []

    def read() -> None:
        with pytest.raises(OSError, match="not a regular file") as caught:
            beginning(str(tmp_path / "pipe"), 10)
        refused.append(caught.value.filename)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=30)
    assert refused == [str(tmp_path / "pipe")]


def failing(real: Any, code: int, is_bad: Any) -> Any:
    """Return a system call that fails for some."""

    def call(where: Any, *rest: Any, **more: Any) -> Any:
        if is_bad(where):
            raise OSError(code, os.strerror(code), where if isinstance(where, str) else None)
        return real(where, *rest, **more)

    return call


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOENT, errno.EIO])
def test_what_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A folder or a file that can't be read, or vanishes meanwhile, is a problem of its own; the rest is found."""
    put_homes(tmp_path)
    put(tmp_path, {f"x/{name}/{kind}.jsonl": UNKNOWN for name in ("good", "bad") for kind in ("good", "bad")})
    put(tmp_path, {".claude/projects/bad/x.jsonl": b"", ".openclaw/agents/bad/sessions/y.jsonl": OPENCLAW})
    put(tmp_path, {"x/good/broken.jsonl": UNKNOWN})
    broken = (tmp_path / "x/good/broken.jsonl").stat()
    monkeypatch.setattr(os, "scandir", failing(os.scandir, code, lambda path: "/bad/" in f"{path}/"))
    monkeypatch.setattr(os, "open", failing(os.open, code, lambda path: Path(path).name == "bad.jsonl"))
    monkeypatch.setattr(os, "read", failing(os.read, code, lambda file: os.path.samestat(os.fstat(file), broken)))
    found, problems = search(tmp_path, tmp_path / "x", tmp_path / "x" / "good" / "bad.jsonl")
    assert set(found) == {"x/good/good.jsonl"}
    told = {os.path.relpath(problem.path, tmp_path) for problem in problems}
    assert told == {"x/bad", "x/good/bad.jsonl", "x/good/broken.jsonl"}
    assert {problem.reason for problem in problems} == {os.strerror(code).lower()}
    found, problems = search(tmp_path)
    assert set(found) == set(HOMES)
    told = {os.path.relpath(problem.path, tmp_path) for problem in problems}
    assert told == {".claude/projects/bad"} | ({".openclaw/agents/bad/sessions"} if code != errno.ENOENT else set())


def test_a_home_that_can_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a problem, unlike one that is not there."""
    monkeypatch.setattr(
        os, "lstat", failing(os.lstat, errno.EACCES, lambda path: str(path).endswith("/.codex/sessions"))
    )
    assert search(tmp_path) == ({}, [Problem(str(tmp_path / ".codex/sessions"), "permission denied")])


def test_folders_that_lie_too_deep(tmp_path: Path) -> None:
    """What lies deeper than a search goes is told."""
    deep = tmp_path.joinpath(*["d"] * 40)
    put(deep, {"a.jsonl": UNKNOWN})
    found, problems = search(tmp_path, tmp_path)
    assert [*found, *(problem.path for problem in problems)] == [str(tmp_path.joinpath(*["d"] * 33))]
    assert set(search(tmp_path, deep)[0]) == {os.path.relpath(deep / "a.jsonl", tmp_path)}


def test_heads_are_read_only_where_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home's files are found without opening them, but for those of OpenClaw that sessions.json does not know."""
    put_homes(tmp_path)
    opened = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.append(Path(path).name) or real(path, *rest, **more)
    )
    assert set(search(tmp_path)[0]) == set(HOMES)
    assert opened == ["sessions.json", "a.jsonl"]


@pytest.mark.skipif(not CORPUS.is_dir(), reason=NO_CORPUS)
def test_the_corpus_is_found_whole(tmp_path: Path) -> None:
    """Every JSONL file of the real transcripts is found, most as what their folders are called."""
    corpus = CORPUS.resolve()
    found, problems = search(corpus, corpus)
    assert problems == []
    jsonl = {str(path.relative_to(corpus)) for path in corpus.rglob("*.jsonl") if path.is_file()}
    assert jsonl <= set(found)
    for name, one in found.items():
        folder = name.split("/")[0].replace("_", "-")
        wanted = {"factory-droid": "factory", "corrupt": one.format, "openclaw": one.format}.get(folder, folder)
        assert one.format in (wanted, "jsonl"), name
        alone, _ = search(corpus, one.path)
        assert alone[name].format == one.format
    unknown = [name for name, one in found.items() if one.format == "jsonl"]
    assert len(unknown) == 2, unknown  # fragments without a line of their program


@pytest.mark.skipif(not GENERATOR.exists(), reason=NO_GENERATOR)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_fleet_and_damaged_files(tmp_path: Path) -> None:
    """A fleet is found whole whatever of it is named; damaged files belong to OpenClaw, among whose files they lie."""
    generator().fleet(str(tmp_path / "f"), 2, 30, 7, None)
    every = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    found, problems = search(tmp_path, tmp_path / "f")
    assert (set(found), {one.format for one in found.values()}, problems) == (every, {"openclaw"}, [])
    for below in ("f/agents", *(f"f/agents/{path.name}" for path in (tmp_path / "f" / "agents").iterdir())):
        part, _ = search(tmp_path, tmp_path / below)
        assert {name: (one.session, one.lane) for name, one in part.items()} == {
            name: (one.session, one.lane) for name, one in found.items() if name.startswith(below)
        }
    generator().corrupt(str(tmp_path / "bad"), 1)
    found, problems = search(tmp_path, tmp_path / "bad")
    assert problems == []
    assert set(found) == {f"bad/{name}" for name in os.listdir(tmp_path / "bad") if name.endswith(".jsonl")}
    assert {one.format for one in found.values()} == {"openclaw"}
