"""Sessions made from a file beside its own: the catalog knows them, undo removes them, nothing else looks at them."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import msgspec
import pytest
from migrate_run import ANSWER, GOOD, HEADER, USER, Commands, commands, killed_at, put, state_of
from shardstore_migrate import running, salvaging
from shardstore_migrate.catalog import Catalog, Entry
from shardstore_migrate.finding import find
from shardstore_migrate.undoing import undo

import shardstore
from shardstore import Unavailable

assert commands  # a fixture
GLUED = HEADER + USER[:-1] + ANSWER
KILLS = 24


def append(commands: Commands, session: str, line: bytes = b"{}\n", **options: str) -> None:
    """Append to a session as somebody else."""
    with shardstore.open(commands.store) as store:
        store.session(session, create=False).append(line, **options)


def undone(commands: Commands, *paths: Path | str, code: int = 0) -> dict[str, str]:
    """Undo; return what became of each session."""
    return {line["session"]: line["status"] for line in commands("undo", *paths, "--yes", code=code)}


def entry_of(commands: Commands, session: str) -> Entry:
    """Return the latest entry of a session."""
    return {entry.session: entry for entry in commands.catalog()}[session]


# ------------------------------------------------------------------ salvaged sessions


def test_an_entry_of_an_earlier_version_still_reads(commands: Commands, tmp_path: Path) -> None:
    """An entry without the fields that name derived sessions has none."""
    commands.run(put(tmp_path / "a.jsonl", GOOD))
    (entry,) = commands.catalog()
    old = {key: value for key, value in msgspec.to_builtins(entry).items() if key not in ("derived", "expanded")}
    again = msgspec.json.decode(msgspec.json.encode(old), type=Entry)
    assert (again.derived, again.expanded, again) == ({}, 0, entry)


def test_undo_removes_what_was_salvaged(commands: Commands, tmp_path: Path) -> None:
    """The catalog names the session of what was salvaged and its seqs; undo removes both, check and export neither."""
    path = put(tmp_path / "home" / "a.jsonl", GLUED)
    (file,) = commands.run(path, "--salvage").files
    own = file["session"]
    assert file["derived"] == [f"{own}.salvaged"]
    assert entry_of(commands, own).derived == {f"{own}.salvaged": [(1, 2)]}
    before = state_of(commands.store)
    commands.run(path, "--salvage")
    assert state_of(commands.store) == before
    commands.assert_holds(path.parent, tmp_path / "out")
    assert undone(commands) == {own: "undone", f"{own}.salvaged": "undone"}
    assert commands.ids() == set()
    (again,) = commands.run(path, "--salvage").files
    assert (again["session"], again["derived"]) == (f"{own}~2", [f"{own}~2.salvaged"])


@pytest.mark.parametrize("which", ["", ".salvaged"], ids=["own", "salvaged"])
def test_undo_leaves_what_others_appended_to(commands: Commands, tmp_path: Path, which: str) -> None:
    """Each session stays by itself if somebody appended to it; undo is told so, and may be asked again."""
    path = put(tmp_path / "a.jsonl", GLUED)
    own = commands.run(path, "--salvage").files[0]["session"]
    append(commands, own + which, source="heartbeat")
    expected = {own: "undone", f"{own}.salvaged": "undone"} | {own + which: "stays"}
    assert undone(commands, path, code=1) == expected
    assert commands.ids() == {own + which}
    assert undone(commands, path, code=1) == {own + which: "stays"}
    if not which:
        assert commands.run(path, "--salvage").files[0]["derived"] == [f"{own}.salvaged~2"]


def test_appended_between_what_was_salvaged(commands: Commands, tmp_path: Path) -> None:
    """What others appended before more was salvaged is theirs: the seqs are remembered one by one."""
    path = put(tmp_path / "a.jsonl", GLUED)
    own = commands.run(path, "--salvage").files[0]["session"]
    append(commands, f"{own}.salvaged")
    put(path, GLUED + ANSWER[:-1] + USER)
    commands.run(path, "--salvage")
    assert entry_of(commands, own).derived == {f"{own}.salvaged": [(1, 2), (4, 5)]}
    assert undone(commands, code=1) == {own: "undone", f"{own}.salvaged": "stays"}


def test_salvaging_into_an_id_that_is_taken(commands: Commands, tmp_path: Path) -> None:
    """Another file's session, or somebody's, is never salvaged into: the next id is taken, again and again the same."""
    home = tmp_path / "home"
    glued = put(home / "a.jsonl", GLUED)
    other = put(home / "a.salvaged.jsonl", GOOD)
    own = {file["path"]: file["session"] for file in commands.run(home).files}
    assert own[str(other)] == f"{own[str(glued)]}.salvaged"
    with shardstore.open(commands.store) as store:
        store.session(f"{own[str(glued)]}.salvaged~2").append(b"mine\n")
    for _ in range(2):
        files = {file["path"]: file for file in commands.run(home, "--salvage").files}
        assert files[str(glued)]["derived"] == [f"{own[str(glued)]}.salvaged~3"]
    assert commands.view(own[str(other)]) == GOOD
    commands.assert_holds(home, tmp_path / "out")


def test_salvaging_killed_anywhere(commands: Commands, tmp_path: Path) -> None:
    """Killed at any link, and run again, each entry is there once, and undo leaves nothing behind."""
    home = tmp_path / "home"
    for number in range(3):
        put(home / f"{number}.jsonl", GLUED + ANSWER[:-1] + USER)

    def run() -> None:
        with shardstore.open(commands.store) as store:
            found, _ = find([str(home)], home=str(tmp_path), environ={})
            assert not [one for one in running.import_files(store, found, jobs=1, salvage=True) if one.error]

    at, killed, chance = 1, 0, random.Random(7)
    while code := killed_at("link", at * chance.choice([1, -1]), run):
        assert code == -signal.SIGKILL
        killed += 1
        at = at + chance.randrange(1, 4) if killed < KILLS else 1 << 30
    assert killed
    entries = commands.catalog()
    assert [entry.derived for entry in entries] == [{f"{entry.session}.salvaged": [(1, 4)]} for entry in entries]
    for entry in entries:
        assert commands.view(f"{entry.session}.salvaged") == USER + ANSWER + ANSWER + USER
    assert set(undone(commands).values()) == {"undone"}
    assert commands.ids() == set()


def test_a_salvage_that_fails_is_one_outcome(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is imported, once; what hindered the salvage is told and decides the exit code; a repeat is whole."""
    path = put(tmp_path / "a.jsonl", GLUED)

    def full(_: bytes) -> list[bytes]:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(salvaging, "rescued", full)
        (file,) = commands.run(path, "--salvage", code=1).files
    assert (file["status"], file["derived"]) == ("imported", [])
    assert "the disk is full" in file["error"]
    (file,) = commands.run(path, "--salvage").files
    assert (file["status"], file["error"], len(file["derived"])) == ("unchanged", None, 1)


# ------------------------------------------------------------------ UTF-16


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["bom", "bare"])
def test_a_file_in_utf_16(commands: Commands, tmp_path: Path, codec: str, mark: str) -> None:
    """Its entries lie in a session beside it as UTF-8, labelled; the file's own session is the file."""
    text = mark + GOOD.decode().replace("hi", "h\u00ef \u65e5 \U0001f600")
    path = put(tmp_path / "home" / "a.jsonl", text.encode(codec))
    assert commands.run(path).files[0]["derived"] == []
    for _ in range(2):
        (file,) = commands.run(path, "--salvage").files
        (beside,) = file["derived"]
        assert beside == f"{file['session']}.salvaged"
        assert commands.view(beside).decode() == text.removeprefix("\ufeff")
    with shardstore.open(commands.store) as store:
        assert [record.kind for record in store.session(beside).records()] == ["event", "turn", "turn"]
    commands.assert_holds(path.parent, tmp_path / "out")
    assert set(undone(commands)) == {file["session"], beside}
    assert commands.ids() == set()


def test_a_file_in_utf_16_that_is_too_long(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not searched is told, not passed over."""
    monkeypatch.setattr(salvaging, "LINE_BYTES_MAX", 100)
    path = put(tmp_path / "a.jsonl", b"\xff\xfe" + GOOD.decode().encode("utf-16-le"))
    (file,) = commands.run(path, "--salvage", code=1).files
    assert file["status"] == "imported"
    assert "UTF-16" in file["error"]


# ------------------------------------------------------------------ generations


def test_undo_removes_older_generations(commands: Commands, tmp_path: Path) -> None:
    """What a path held before goes too, with what was salvaged from it, unless somebody appended to it."""
    home = tmp_path / "home"
    path, other = put(home / "a.jsonl", GLUED), put(home / "b.jsonl", GOOD)
    own, beside = (file["session"] for file in commands.run(home, "--salvage").files)
    put(path, HEADER + ANSWER)
    put(other, HEADER + USER)
    commands.run(home)
    put(path, HEADER)
    commands.run(home)
    append(commands, beside)
    assert undone(commands, path) == dict.fromkeys([own, f"{own}.salvaged", f"{own}~2", f"{own}~3"], "undone")
    assert undone(commands, home, code=1) == {beside: "stays", f"{beside}~2": "undone"}
    assert commands.ids() == {beside}
    assert [line["session"] for line in commands("list")] == []


@pytest.mark.parametrize("name", ["link", "rename"])
def test_undo_killed_anywhere(commands: Commands, tmp_path: Path, name: str) -> None:
    """Killed at any such call and repeated, undo leaves no session behind, derived or older ones neither."""
    path = put(tmp_path / "a.jsonl", GLUED)
    commands.run(path, "--salvage")
    put(path, HEADER + GLUED)
    own = commands.run(path, "--salvage").files[0]["session"].removesuffix("~2")

    def run() -> None:
        with shardstore.open(commands.store) as store:
            catalog = Catalog(store)
            catalog.refresh()
            assert {result.status for result in undo(store, catalog.entries())} == {"undone"}

    at, killed = 1, 0
    while code := killed_at(name, (at + 1) // 2 * (1 if at % 2 else -1), run):
        assert code == -signal.SIGKILL
        killed += 1
        at += 1
    assert killed >= 2
    assert commands.ids() == set()
    assert {entry.session: (entry.state, entry.derived) for entry in commands.catalog()} == {
        own: ("undone", {}),
        f"{own}~2": ("undone", {}),
    }


def test_undo_of_one_generation(commands: Commands, tmp_path: Path) -> None:
    """A session that is named goes alone."""
    path = put(tmp_path / "a.jsonl", GOOD)
    own = commands.run(path).files[0]["session"]
    put(path, HEADER + USER)
    commands.run(path)
    assert undone(commands, own) == {own: "undone"}
    assert commands.ids() == {f"{own}~2"}
    assert commands.run(path).statuses == {"unchanged"}


def test_a_new_file_never_takes_a_derived_session(commands: Commands, tmp_path: Path) -> None:
    """A file that holds just what was salvaged, under that very id, becomes a session of its own."""
    glued = put(tmp_path / ".pi" / "agent" / "sessions" / "--w--" / "a.jsonl", GLUED)
    own = commands.run(glued.parent, "--salvage").files[0]["session"]
    put(glued.with_name("a.salvaged.jsonl"), USER + ANSWER)
    (new,) = (file for file in commands.run(glued.parent).files if file["status"] == "imported")
    assert new["session"] == f"{own}.salvaged~2"
    with shardstore.open(commands.store) as store:
        catalog = Catalog(store)
        catalog.refresh()
        assert catalog.taken() == {own, f"{own}.salvaged", f"{own}.salvaged~2"}
