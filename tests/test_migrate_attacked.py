"""What an attack on the migration found: two runs at once, times before 1970, sources that can't be read, plain words.

Rule: each test plays one case that went wrong, with real files and a real store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from cli_runner import call
from migrate_back import below
from migrate_run import ENVIRONMENT, GOOD, HEADER, USER, Commands, commands, put
from shardstore_migrate import importing
from shardstore_migrate.catalog import Catalog, Entry, text_of
from shardstore_migrate.expanding import expand
from shardstore_migrate.finding import find
from shardstore_migrate.following import Mirror
from shardstore_migrate.importing import Importer
from shardstore_migrate.running import import_files
from shardstore_migrate.salvaging import salvaged
from shardstore_migrate.sources import Found

import shardstore
from shardstore import Store

assert commands  # a fixture
UNTIMED = b'{"role":"user","content":"hi"}\n'
GLUED = HEADER + USER[:-1] + USER


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store."""
    with shardstore.open(tmp_path / "store", record_bytes_max=1 << 28) as opened:
        yield opened


def found_in(folder: Path) -> list[Found]:
    """Return the transcripts in a folder."""
    return find([str(folder)], home=str(folder), environ={})[0]


def entries_of(store: Store) -> dict[str, Entry]:
    """Return the latest entry of each session."""
    catalog = Catalog(store)
    catalog.refresh()
    return {entry.session: entry for entry in catalog.entries()}


# ------------------------------------------------------------------ two runs at once


def test_a_file_that_another_run_imports_meanwhile_has_one_session(store: Store, tmp_path: Path) -> None:
    """A run that has seen its files as new, and begins them after another run, finds their sessions and adds none."""
    for name in ("a.jsonl", "b.jsonl"):
        put(tmp_path / "home" / name, GOOD)
    files = found_in(tmp_path / "home")
    slow, new = Importer(store, Catalog(store)), list[Found]()
    assert list(slow.known(files, new)) == []
    assert {outcome.status for outcome in import_files(store, files)} == {"imported"}
    before = entries_of(store)
    store.session(next(iter(before))).event(b"somebody's own\n", source="heartbeat")
    assert {outcome.status for outcome in slow.first(new)} == {"unchanged"}
    assert entries_of(store) == before


def test_what_another_run_made_beside_a_file_stays_its_own(store: Store, tmp_path: Path) -> None:
    """A run that begins a file after another run has salvaged it does not make its entry forget the sibling."""
    put(tmp_path / "home" / "a.jsonl", GLUED)
    files = found_in(tmp_path / "home")
    slow, new = Importer(store, Catalog(store)), list[Found]()
    assert list(slow.known(files, new)) == []
    list(import_files(store, files, salvage=True))
    before = entries_of(store)
    assert [len(entry.derived) for entry in before.values()] == [1]
    list(slow.first(new))
    assert entries_of(store) == before


def test_two_salvages_at_once_make_one_sibling(store: Store, tmp_path: Path) -> None:
    """A run that knew a file before another run salvaged it finds the sibling that this one made."""
    put(tmp_path / "home" / "a.jsonl", GLUED)
    (outcome,) = import_files(store, found_in(tmp_path / "home"))
    for _ in range(2):
        assert salvaged(store, Catalog(store), outcome).error is None
    assert [list(entry.derived) for entry in entries_of(store).values()] == [
        [f"{next(iter(entries_of(store)))}.salvaged"]
    ]


def test_two_expansions_at_once_make_one_session(store: Store, tmp_path: Path) -> None:
    """A run that imported a compressed file before another run expanded it finds the session that this one made."""
    put(tmp_path / "home" / "a.jsonl.zst", zstandard.compress(GOOD))
    files = found_in(tmp_path / "home")
    outcomes = list(Importer(store, Catalog(store)).run(files))
    for _ in range(2):
        assert [one.error for one in expand(store, Catalog(store), files, outcomes)] == [None]
    assert [len(entry.derived) for entry in entries_of(store).values()] == [1]


# ------------------------------------------------------------------ files that are written anew


def test_a_follower_leaves_the_index_to_a_run(store: Store, tmp_path: Path) -> None:
    """sessions.json, which is written anew with every message, begins no session each time while a follower runs."""
    folder = tmp_path / ".openclaw" / "agents" / "main" / "sessions"
    put(folder / "a.jsonl", GOOD)
    mirror = Mirror(store, Catalog(store), [], home=str(tmp_path), environ={})
    for number in range(3):
        put(folder / "sessions.json", b'{"agent:main:main":{"sessionId":"4f2a","updatedAt":%d}}\n' % number)
        mirror.round()
    assert mirror.behind_bytes() == 0
    mirror.close()
    assert list(entries_of(store)) == ["openclaw/main/a"]
    list(import_files(store, found_in(tmp_path)))
    assert list(entries_of(store)) == ["openclaw/main/a", "openclaw/main/sessions.json"]


def test_a_file_without_a_free_id_hinders_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has begun as many sessions as one may is told, each time, and what else is new is imported."""
    monkeypatch.setattr(importing, "IDS_MAX", 3)
    folder = tmp_path / "home"
    for number in range(4):
        put(folder / "a.jsonl", b'{"n":%d}\n' % (10**number) + GOOD)
        put(folder / f"new{number}.jsonl", GOOD)
        outcomes = {os.path.basename(one.path): one.status for one in import_files(store, found_in(folder))}
        assert outcomes[f"new{number}.jsonl"] == "imported"
        assert outcomes["a.jsonl"] == ("imported" if number < 2 else "failed")


# ------------------------------------------------------------------ odd sources


def test_a_file_from_before_1970(commands: Commands, tmp_path: Path) -> None:
    """A time before the epoch is exported as it was; lines without one of their own are of 1970, also later ones."""
    home = tmp_path / "home"
    plain, zipped = put(home / "a.jsonl", UNTIMED), put(home / "b.jsonl.zst", zstandard.compress(UNTIMED))
    for path in (plain, zipped):
        os.utime(path, ns=(0, -500_000_000_001))
    assert commands.run(home).statuses == {"imported"}
    commands.assert_holds(home, tmp_path / "out")
    plain.write_bytes(UNTIMED * 2)
    os.utime(plain, ns=(0, -400_000_000_001))
    assert [file["status"] for file in commands.run(home).files if file["lines_new"]] == ["grown"]
    commands.assert_holds(home, tmp_path / "later")


def test_check_goes_on_past_a_source_that_cannot_be_read(commands: Commands, tmp_path: Path) -> None:
    """What hinders reading one source is told as its own difference; the others are compared all the same."""
    home = tmp_path / "home"
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        put(home / name, GOOD)
    commands.run(home)
    (home / "a.jsonl").unlink()
    (home / "a.jsonl").symlink_to("a.jsonl")  # a loop: even root can't open it
    (home / "c.jsonl").unlink()
    told = {os.path.basename(one["path"]): (one["status"], bool(one["error"])) for one in commands("check", code=1)}
    assert told == {"a.jsonl": ("unreadable", True), "c.jsonl": ("gone", False)}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv")
def test_a_named_path_that_may_not_be_read_hinders_no_other(commands: Commands, tmp_path: Path) -> None:
    """One of several named files may not be read: it is told, with exit code 1, and the other is imported."""
    good, shut = put(tmp_path / "good.jsonl", GOOD), put(tmp_path / "shut.jsonl", GOOD)
    shut.chmod(0)
    less = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", sys.executable, "-m", "shardstore"]
    command += ["--store", str(commands.store), "migrate", "run", str(shut), str(good)]
    answer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False, text=True)
    assert answer.returncode == 1, answer
    assert "permission denied" in answer.stderr
    assert [entry.path for entry in commands.catalog()] == [str(good)]


def test_a_report_never_takes_the_place_of_a_transcript(commands: Commands, tmp_path: Path) -> None:
    """A report replaces a report, and an empty file that is no source; anything else is refused before the import."""
    home = tmp_path / "home"
    path, empty, report = put(home / "a.jsonl", GOOD), put(home / "b.jsonl", b""), put(tmp_path / "r.json", b"")
    (tmp_path / "link").symlink_to(path)
    for bad in (path, tmp_path / "link", empty, tmp_path / "absent" / "r.json", put(tmp_path / "notes", b"mine")):
        command = ("migrate", "run", str(home), "--report", str(bad))
        before = bad.read_bytes() if bad.exists() else None
        assert call(commands.capture, commands.store, *command).code in (2, 5)
        assert (bad.read_bytes() if bad.exists() else None, commands.store.exists()) == (before, False)
    for _ in range(2):
        ran = commands.run(home, "--report", report)
        assert json.loads(report.read_text("ascii"))["files"] == ran.files


# ------------------------------------------------------------------ true answers


def test_json_spells_a_path_in_one_way(commands: Commands, tmp_path: Path) -> None:
    """A name is the same in the JSON of all commands, told from every other, and leads back to its file."""
    home = tmp_path / "home"
    names = [b"a\nb.jsonl", b"a\\nb.jsonl", b"\xff.jsonl", b"\\udcff.jsonl", "\u2028é.jsonl".encode()]
    paths = [put(home / os.fsdecode(name), GOOD) for name in names]
    texts = {text_of(str(path)) for path in paths}
    assert len(texts) == len(names)
    assert {file["path"] for file in commands("plan", home)[0]["files"]} == texts
    assert {file["path"] for file in commands.run(home).files} == texts
    assert {file["path"] for file in commands("list")} == texts
    assert {line["path"] for line in commands("export", tmp_path / "out")} == {
        text_of(str(below(tmp_path / "out", path))) for path in paths
    }
    for path in paths:
        path.unlink()
    assert {line["path"] for line in commands("check", code=1)} == texts


def test_a_plan_says_nothing_of_turns_that_it_did_not_count(commands: Commands, tmp_path: Path) -> None:
    """The turns of a file that was imported, or not read, are unknown, not 0; so are lines and damage of the latter."""
    home = tmp_path / "home"
    put(home / "a.jsonl", GOOD)
    (file,) = commands("plan", home)[0]["files"]
    assert (file["lines"], file["turns"]) == (3, 2)
    (file,) = commands("plan", "--quick", home)[0]["files"]
    assert (file["lines"], file["turns"], file["damage"]) == (None, None, None)
    commands.run(home)
    (file,) = commands("plan", home)[0]["files"]
    assert (file["status"], file["lines"], file["turns"]) == ("unchanged", 3, None)


def test_a_run_that_finds_nothing_says_so(commands: Commands, tmp_path: Path) -> None:
    """Where no transcript lies, a run says that, as a plan does, instead of showing a table without rows."""
    (tmp_path / "home").mkdir()
    answer = call(commands.capture, commands.store, "migrate", "run", str(tmp_path / "home"))
    assert (answer.code, answer.stdout.startswith(b"no transcripts found")) == (0, True)


def test_export_of_one_session_takes_no_paths(commands: Commands, tmp_path: Path) -> None:
    """`--session` and paths together are a mistake, and nothing is written."""
    path = put(tmp_path / "home" / "a.jsonl", GOOD)
    (file,) = commands.run(path).files
    target = tmp_path / "out.jsonl"
    answer = call(
        commands.capture, commands.store, "migrate", "export", str(target), str(path), "--session", file["session"]
    )
    assert (answer.code, target.exists()) == (2, False)


def test_check_tells_the_line_of_a_damaged_record(commands: Commands, tmp_path: Path) -> None:
    """Where a record in the middle of a segment is damaged, the first line that the store lacks is its own, not 1."""
    path = put(tmp_path / "home" / "a.jsonl", b"".join(b'{"role":"user","n":%d}\n' % number for number in range(50)))
    (file,) = commands.run(path).files
    (segment,) = (path for path in commands.store.rglob("*.segment") if path.parts[-3] != "shardstore-migrate")
    data = segment.read_bytes()
    segment.chmod(0o600)
    segment.write_bytes(data.replace(b'"n":30}', b'"n":31}'))
    (difference,) = commands("check", code=1)
    assert (difference["session"], difference["status"]) == (file["session"], "lacks")
    assert (difference["seq"], difference["line"], difference["offset"]) == (
        31,
        31,
        path.read_bytes().index(b'{"role":"user","n":30}'),
    )


def test_a_deleted_catalog(commands: Commands, tmp_path: Path) -> None:
    """Without its catalog a store takes no imports: it says why at once, and what to do."""
    path = put(tmp_path / "home" / "a.jsonl", GOOD)
    commands.run(path)
    with shardstore.open(commands.store) as opened:
        opened.session("shardstore-migrate").delete()
    for words in (["run", str(path)], ["check"], ["plan", str(path)]):
        answer = call(commands.capture, commands.store, "migrate", *words)
        assert answer.code not in (0, 70)
        assert b"another store" in answer.stderr, words
