"""A whole run, and back: what is found is brought in, proved, checked and given back byte for byte, whatever it is.

Real transcripts lie outside the project, in ../shared; where they are absent, files made by hand remain.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from migrate_back import below, facts
from migrate_run import (
    ANSWER,
    DAMAGED,
    GENERATOR,
    GOOD,
    HEADER,
    SHARED,
    USER,
    Commands,
    commands,
    damaged,
    fleet,
    put,
    state_of,
)  # fmt: skip
from msgspec.structs import replace
from shardstore_migrate import running
from shardstore_migrate.catalog import Catalog
from shardstore_migrate.finding import find
from shardstore_migrate.importing import Importer

import shardstore

assert commands  # a fixture
DAMAGES = {
    "torn.jsonl": {"torn-last-line": 1},
    "no final newline.jsonl": {"no-final-newline": 1},
    "glued.jsonl": {"glued": 1},
    "crlf.jsonl": {"crlf": 3},
    "empty.jsonl": {"empty-file": 1},
    "clean.jsonl": {},
}


# ------------------------------------------------------------------ everything, once


def test_every_damage_goes_in_and_comes_back(commands: Commands, tmp_path: Path) -> None:
    """Files with every damage are imported, counted by kind, found equal, and exported with modes and times."""
    home = damaged(tmp_path / "home")
    ran = commands.run(home)
    assert (ran.statuses, ran.problems, len(ran.files)) == ({"imported"}, [], len(DAMAGED))
    found = {os.path.basename(file["path"]): file["damage"] for file in ran.files}
    assert {name: found[name] for name in DAMAGES} == DAMAGES
    assert sum(file["bytes_new"] for file in ran.files) == sum(map(len, DAMAGED.values()))
    commands.assert_holds(home, tmp_path / "out")


def test_real_and_synthetic_files(commands: Commands, tmp_path: Path) -> None:
    """All of the corpus and of the generator's damaged files, documents (.json) named one by one, come back equal."""
    if not (SHARED / "corpus").is_dir():
        pytest.skip(f"no transcripts at {SHARED}")
    home = tmp_path / "home"
    shutil.copytree(SHARED / "corpus", home / "corpus", copy_function=shutil.copy)
    made = [sys.executable, str(GENERATOR), "corrupt", "-o", str(home / "synthetic")]
    assert subprocess.run(made, capture_output=True, check=True).stdout.strip() == b"39 files"
    files = sorted(path for path in home.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        path.chmod(0o600 + number % 3 * 0o44)
        os.utime(path, ns=(number, 1_700_000_000_000_000_001 + number))
    wanted = {path: facts(path) for path in files}
    lines = [path for path in files if ".jsonl" in path.name]
    rest = [path for path in files if path not in lines]
    ran = commands.run(home, *rest)
    assert (ran.statuses, ran.problems, len(ran.files)) == ({"imported"}, [], len(files))
    assert commands.run(home, *rest).statuses == {"unchanged"}
    assert commands("check") == []
    assert {line["status"] for line in commands("export", tmp_path / "out")} == {"written"}
    assert {path: facts(below(tmp_path / "out", path)) for path in files} == wanted
    assert {path: facts(path) for path in files} == wanted


def test_documents_that_are_named(commands: Commands, tmp_path: Path) -> None:
    """A file that holds no lines is taken when it is named, pretty JSON and plain text too; nothing in it is odd."""
    put(tmp_path / "home" / "a.json", json.dumps([{"a": 1}, {"b": [2]}], indent=2).encode())
    put(tmp_path / "home" / "notes.txt", b"no JSON\r\nat all")
    files = sorted((tmp_path / "home").iterdir())
    assert [file["damage"] for file in commands.run(*files).files] == [{}, {}]
    assert commands.run(*files).statuses == {"unchanged"}
    assert commands("check") == []
    commands("export", tmp_path / "out")
    assert all(facts(below(tmp_path / "out", path)) == facts(path) for path in files)


def test_several_processes_do_the_same(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes bring in what one does: the same sessions with the same records; what fails is told as well."""
    home = fleet(damaged(tmp_path / "home"), 40)
    alone = Commands(commands.capture, tmp_path / "alone")
    one = alone.run(home, "--jobs", "1")
    monkeypatch.setattr(running, "WORTH_FILES", 1)
    monkeypatch.setattr(running, "SHARE_FILES", 16)
    with shardstore.open(commands.store) as store:  # what a process of the pool meets comes back through a pipe
        store.session("jsonl/home/0/clean").append(b"mine\n")
    two = commands.run(home, "--jobs", "2")
    assert sorted((f["path"], f["sha256"], f["lines_new"]) for f in one.files) == sorted(
        (f["path"], f["sha256"], f["lines_new"]) for f in two.files
    )
    entries = {entry.path: (entry.ranges, entry.damage, entry.mtime_ns) for entry in alone.catalog()}
    assert entries == {entry.path: (entry.ranges, entry.damage, entry.mtime_ns) for entry in commands.catalog()}
    commands.assert_holds(home, tmp_path / "out")


def test_failures_in_several_processes(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file meets in a process of the pool comes back as its own failure, and the others are imported."""
    home = fleet(tmp_path / "home", 24)
    found, _ = find([str(home)], home=str(tmp_path), environ={})
    os.unlink(found[3].path)
    monkeypatch.setattr(running, "WORTH_FILES", 1)
    monkeypatch.setattr(running, "SHARE_FILES", 8)
    with shardstore.open(commands.store) as store:
        importer = running.Importer(store, Catalog(store))
        monkeypatch.setattr(importer, "known", lambda files, new: new.extend(files) or iter(()))
        monkeypatch.setattr(running, "Importer", lambda *_, **__: importer)
        outcomes = {one.path: one for one in running.import_files(store, found, jobs=2)}
    assert isinstance(outcomes[found[3].path].error, FileNotFoundError)
    assert sorted(one.status for one in outcomes.values()) == ["failed"] + ["imported"] * 23


# ------------------------------------------------------------------ ids that are taken


@pytest.mark.parametrize(
    ("mine", "taken_over"),
    [
        ([b"mine\n"], False),
        ([GOOD], False),  # the same bytes, other records
        ([HEADER, USER, ANSWER], True),
        ([HEADER], True),
        ([HEADER, USER, ANSWER, b"more\n"], True),
        ([HEADER, b"mine\n"], False),
    ],
)
def test_a_session_has_the_id_already(commands: Commands, tmp_path: Path, mine: list[bytes], taken_over: bool) -> None:
    """A session with other records is left alone; one that begins with the file's is what a killed run left."""
    path = put(tmp_path / "home" / "a.jsonl", GOOD)
    (proposal,) = (fact["session"] for fact in commands("plan", path)[0]["files"])
    with shardstore.open(commands.store) as store:
        for line in mine:
            store.session(proposal).append(line)
    (file,) = commands.run(tmp_path / "home").files
    assert (file["status"], file["lines_new"]) == ("imported", 3)
    assert file["session"] == (proposal if taken_over else f"{proposal}~2")
    assert commands.view(proposal).startswith(b"".join(mine))
    commands.assert_holds(tmp_path / "home", tmp_path / "out")
    assert len(commands.ids()) == (1 if taken_over else 2)


def test_two_equal_files_that_take_one_id(commands: Commands, tmp_path: Path) -> None:
    """A session that is one file's by now is not taken for another's, though it holds the same bytes."""
    paths = [put(tmp_path / "home" / name, GOOD) for name in ("a", "b")]
    found, _ = find([str(path) for path in paths], home=str(tmp_path), environ={})
    one, two = (replace(file, session="same") for file in found)
    with shardstore.open(commands.store) as store:
        catalog = Catalog(store)
        refresh = catalog.refresh
        looks = iter([lambda: None])  # it looked before the other one told the catalog
        catalog.refresh = lambda: next(looks, refresh)()  # type: ignore[method-assign]
        assert [outcome.status for outcome in Importer(store, Catalog(store)).first([one])] == ["imported"]
        assert [outcome.status for outcome in Importer(store, catalog).first([two])] == ["imported"]
    current = {entry.path: entry.session for entry in commands.catalog()}
    assert current == {str(paths[0]): "same", str(paths[1]): "same~2"}


def test_others_append_before_it_is_read_back(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that gets a record of somebody else's between its birth and the proof is imported all the same."""
    found, _ = find([str(put(tmp_path / "home" / "a", GOOD))], home=str(tmp_path), environ={})
    with shardstore.open(commands.store) as store:
        bear = store.import_sessions

        def meddled(sessions: Any) -> Iterator[shardstore.Imported]:
            for result in bear(sessions):
                store.session(result.session).append(b"theirs\n")
                yield result

        monkeypatch.setattr(store, "import_sessions", meddled)
        (outcome,) = Importer(store, Catalog(store)).first(found)
    assert (outcome.status, outcome.error) == ("imported", None)
    commands.assert_holds(tmp_path / "home", tmp_path / "out", count=0)
    assert [line["status"] for line in commands("undo", "--yes", code=1)] == ["stays"]


def test_what_does_not_read_back_is_not_imported(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is not the file, byte for byte, is a failure and no entry; the next run begins another one."""
    found, _ = find([str(put(tmp_path / "home" / "a", GOOD))], home=str(tmp_path), environ={})
    with shardstore.open(commands.store) as store:
        bear = store.import_sessions

        def spoiled(sessions: Any) -> Iterator[shardstore.Imported]:
            return bear((id_, (replace(one, payload=one.payload.upper()) for one in of)) for id_, of in sessions)

        monkeypatch.setattr(store, "import_sessions", spoiled)
        (outcome,) = Importer(store, Catalog(store)).first(found)
    assert isinstance(outcome.error, shardstore.Corrupt)
    assert commands.catalog() == []
    (file,) = commands.run(tmp_path / "home" / "a").files
    assert (file["status"], file["session"]) == ("imported", f"{found[0].session}~2")


def test_undone_and_deleted_sessions(commands: Commands, tmp_path: Path) -> None:
    """What was undone is brought in again under a new id; what somebody deleted is told, and undo makes it free."""
    home = tmp_path / "home"
    path, other = put(home / "a.jsonl", GOOD), put(home / "b.jsonl", GOOD)
    first = commands.run(home)
    assert [line["status"] for line in commands("undo", path, "--yes")] == ["undone"]
    (again,) = (file for file in commands.run(home).files if file["status"] == "imported")
    assert again["session"] == first.files[0]["session"] + "~2"
    with shardstore.open(commands.store) as store:
        store.session(again["session"]).delete()
    assert [line["status"] for line in commands("check", home, code=1)] == ["lacks"]
    put(path, GOOD + USER)
    put(other, GOOD + USER)
    ran = commands.run(home, code=1)
    assert sorted(file["status"] for file in ran.files) == ["failed", "grown"]
    assert [line["status"] for line in commands("undo", path, "--yes")] == ["undone"]
    (third,) = (file for file in commands.run(home).files if file["status"] == "imported")
    assert third["session"] == first.files[0]["session"] + "~3"
    commands.assert_holds(home, tmp_path / "out")


def test_ids_that_are_as_long_as_they_may_be(commands: Commands, tmp_path: Path) -> None:
    """A file whose id has no room for a suffix may be rewritten and salvaged all the same."""
    home = tmp_path / "home"
    path = put(home / ("x" * 120) / ("Y" * 120 + ".jsonl"), HEADER + USER[:-1] + ANSWER)
    assert commands.run(home, "--salvage").statuses == {"imported"}
    put(path, HEADER + ANSWER)
    assert commands.run(home).statuses == {"imported"}
    commands.assert_holds(home, tmp_path / "out")
    assert len(commands.ids()) == 3


# ------------------------------------------------------------------ salvaging


def test_salvaging_twice(commands: Commands, tmp_path: Path) -> None:
    """Whole entries of damaged lines lie in a session beside, once each, also if it is asked for later or again."""
    home = tmp_path / "home"
    glued = put(home / "glued.jsonl", HEADER + USER[:-1] + ANSWER)
    put(home / "nul.jsonl", HEADER + bytes(9) + USER)
    put(home / "nan.jsonl", HEADER + b'{"a":NaN}\n')
    first = commands.run(home)
    names = {file["path"]: file["session"] for file in first.files}
    assert not any(id_.endswith(".salvaged") for id_ in commands.ids())
    for _ in range(2):
        assert commands.run(home, "--salvage").statuses == {"unchanged"}
        assert commands.view(names[str(glued)] + ".salvaged") == USER + ANSWER
        assert commands.view(names[str(home / "nul.jsonl")] + ".salvaged") == USER
        assert len(commands.ids()) == 5  # the line with NaN is whole: nothing was cut out of it
    put(glued, glued.read_bytes() + ANSWER[:-1] + USER)
    assert commands.run(home, "--salvage").statuses == {"unchanged", "grown"}
    assert commands.view(names[str(glued)] + ".salvaged") == (USER + ANSWER) + (ANSWER + USER)
    commands.assert_holds(home, tmp_path / "out")


# ------------------------------------------------------------------ commands


def test_json_and_exit_codes(commands: Commands, tmp_path: Path) -> None:
    """Every command's JSON parses; its code says whether anything failed; a report holds what JSON shows."""
    home = damaged(tmp_path / "home")
    (plan,) = commands("plan", home)
    assert not commands.store.exists()
    assert {fact["status"] for fact in plan["files"]} == {"new"}
    for nothing in (("list",), ("check",), ("undo", "--yes"), ("export", tmp_path / "out")):
        commands(*nothing, code=3)
    assert not commands.store.exists()
    ran = commands.run(home, tmp_path / "absent", "--report", tmp_path / "report.json", code=1)
    assert [problem["path"] for problem in ran.problems] == [str(tmp_path / "absent")]
    report = json.loads((tmp_path / "report.json").read_text("ascii"))
    assert report == {"files": ran.files, "problems": ran.problems, "unexpanded": []}
    (plan,) = commands("plan", home)
    assert {fact["status"] for fact in plan["files"]} == {"unchanged"}
    assert len(commands("list")) == len(DAMAGED)
    assert len(commands("list", home / "0" / "clean.jsonl")) == 1
    commands("check", tmp_path / "elsewhere", code=3)
    commands("run", "--jobs", "0", code=2)
    put(below(tmp_path / "out", home / "0" / "clean.jsonl"), b"mine")
    answers = commands("export", tmp_path / "out", code=1)
    assert sorted({answer["status"] for answer in answers}) == ["failed", "written"]
    with shardstore.open(commands.store) as store:
        store.session(ran.files[0]["session"]).append(b"mine\n")
    assert sorted({answer["status"] for answer in commands("undo", "--yes", code=1)}) == ["stays", "undone"]
    assert len(commands("list")) == 1


def test_a_plan_changes_nothing(commands: Commands, tmp_path: Path) -> None:
    """Neither sources nor a store that has no catalog yet are changed by looking."""
    home = damaged(tmp_path / "home")
    with shardstore.open(commands.store) as store:
        store.session("mine").append(b"mine\n")
    wanted = state_of(commands.store), {path: facts(path) for path in home.rglob("*") if path.is_file()}
    commands("plan", home)
    commands("list")
    assert wanted == (state_of(commands.store), {path: facts(path) for path in home.rglob("*") if path.is_file()})


def test_folders_named_by_a_symlink(commands: Commands, tmp_path: Path) -> None:
    """What was imported through a symlink is found again under that name by list, check, export and undo."""
    put(tmp_path / "home" / "a.jsonl", GOOD)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "home")
    assert commands.run(link).statuses == {"imported"}
    assert len(commands("list", link / "a.jsonl")) == 1
    assert commands("check", link) == []
    assert len(commands("export", tmp_path / "out", link)) == 1
    assert [line["status"] for line in commands("undo", link, "--yes")] == ["undone"]


def test_one_session_is_exported(commands: Commands, tmp_path: Path) -> None:
    """A session goes into one file as it is today; what lies there is kept unless --force renames it."""
    put(tmp_path / "home" / "a.jsonl", GOOD)
    session = commands.run(tmp_path / "home").files[0]["session"]
    target = tmp_path / "one.jsonl"
    assert [line["status"] for line in commands("export", target, "--session", session)] == ["written"]
    assert target.read_bytes() == GOOD
    target.write_bytes(b"mine")
    commands("export", target, "--session", session, code=4)
    assert target.read_bytes() == b"mine"
    assert [line["status"] for line in commands("export", target, "--session", session, "--force")] == ["written"]
    assert target.read_bytes() == GOOD
