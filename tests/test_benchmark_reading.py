"""The benchmarks that read, list, import and grow: what they measure is what was written, and what is wrong is told.

Rule: each runs for real, small, in fresh processes, with shardstore and a plain file; damage is done to a store's files
between the making and the reading.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("orjson")

from benchmarks.lines import line_of
from benchmarks.subjects import SUBJECTS
from benchmarks.workloads import Case, Scale, Workload, filling, growth, many, reading

MIX = "openclaw"
SCALES: tuple[Scale, ...] = ("quick", "usual", "full")
SMALL: dict[str, tuple[Workload, dict[str, Any]]] = {
    "load": (reading.LOAD, {"mix": MIX, "entries": 120, "loads": 2, "fill_seconds_max": 60.0}),
    "last": (
        reading.LAST,
        {"mix": MIX, "entries": 120, "appended": 7, "processes": 2, "seconds": 0.0, "fill_seconds_max": 60.0},
    ),
    "readback": (reading.READBACK, {"mix": MIX, "entries": 1_000, "seconds": 0.0}),
    "open-list": (many.OPEN_LIST, {"mix": MIX, "sessions": 12, "seconds": 0.0, "fill_seconds_max": 60.0}),
    "import": (many.IMPORT, {"mix": MIX, "files": 5, "size": 4_000}),
    "footprint": (growth.FOOTPRINT, {"mix": MIX, "entries": 60, "seconds_max": 60.0}),
    "growth": (growth.GROWTH, {"mix": "codex", "entries": 100, "seconds": 0.01}),
}


@pytest.mark.parametrize("subject", ["shardstore", "jsonl-unsynced"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_each_runs_and_is_clean(name: str, subject: str, tmp_path: Path) -> None:
    """A round yields the main figure, only figures that are declared, and a clean check of what there is."""
    workload, arguments = SMALL[name]
    done = workload.run(SUBJECTS[subject], Case("small", arguments), str(tmp_path))
    declared = [figure.name for figure in workload.figures]
    assert workload.name == name
    assert declared[0] in done.figures
    assert set(done.figures) <= set(declared)
    assert all(value > 0 for value in done.figures.values())
    assert done.check is not None
    assert done.check.is_clean
    assert done.check.acknowledged > 0
    assert done.quantiles_us == sorted(done.quantiles_us)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("scale", SCALES)
def test_plans_name_cases_apart_and_give_the_same_arguments(name: str, scale: Scale) -> None:
    """Every scale has cases; their names differ, and each gives what a round needs."""
    workload, arguments = SMALL[name]
    plan = workload.plan(scale)
    assert plan.rounds > 0
    names = [case.name for case in plan.cases]
    assert names
    assert len(set(names)) == len(names)
    for case in plan.cases:
        assert set(case.arguments) == set(arguments)


def test_the_million_is_planned_at_full_alone() -> None:
    """Only the longest scale takes a million entries."""
    for workload in (reading.LOAD, growth.GROWTH):
        largest = {scale: max(case.x or 0 for case in workload.plan(scale).cases) for scale in SCALES}
        assert largest["full"] == 1_000_000
        assert largest["usual"] < 1_000_000


# ------------------------------------------------------------------ what is wrong is told


def plain(folder: Path, entries: int) -> Path:
    """Make a plain file with a session's lines; return its path."""
    assert filling.make("jsonl-unsynced", str(folder), 60.0, MIX, entries, 1, 0) == ""
    return Path(filling.store_of(str(folder)), filling.NAME + ".jsonl")


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "lost": lambda lines: lines[:20] + lines[21:],
    "duplicated": lambda lines: [*lines[:21], lines[20], *lines[21:]],
    "reordered": lambda lines: [*lines[:20], lines[21], lines[20], *lines[22:]],
    "torn": lambda lines: [*lines[:20], lines[20].replace(b"timestamp", b"timestamq"), *lines[21:]],
}


@pytest.mark.parametrize("kind", sorted(DAMAGES))
def test_a_load_tells_damage(kind: str, tmp_path: Path) -> None:
    """A line that is lost, doubled, moved or changed is told by the load that read it."""
    path = plain(tmp_path, 60)
    path.write_bytes(b"".join(DAMAGES[kind](path.read_bytes().splitlines(keepends=True))))
    answer = reading.load("jsonl-unsynced", str(tmp_path), MIX, 60, True)
    assert answer["check"][kind] == 1


def test_a_further_load_tells_what_is_missing(tmp_path: Path) -> None:
    """A load whose entries are not compared one by one still tells that one is missing, or the last one another."""
    path = plain(tmp_path, 60)
    lines = path.read_bytes().splitlines(keepends=True)
    assert not reading.load("jsonl-unsynced", str(tmp_path), MIX, 60, False)["check"]["error"]
    for wrong in (lines[1:], [*lines[:-1], line_of(MIX, 0, 7)]):
        path.write_bytes(b"".join(wrong))
        assert reading.load("jsonl-unsynced", str(tmp_path), MIX, 60, False)["check"]["error"]


def test_last_tells_other_entries(tmp_path: Path) -> None:
    """Each answer is compared: with the last two lines in another order all of them are wrong."""
    path = plain(tmp_path, 60)
    *lines, one, other = path.read_bytes().splitlines(keepends=True)
    assert reading.last("jsonl-unsynced", str(tmp_path), MIX, 60, 0.0)["wrong"] == 0
    path.write_bytes(b"".join([*lines, other, one]))
    answer = reading.last("jsonl-unsynced", str(tmp_path), MIX, 60, 0.0)
    assert answer["wrong"] == len(answer["fresh_us"]) + len(answer["open_us"]) > 0


def test_growth_tells_other_ends(tmp_path: Path) -> None:
    """Of a long session what was appended is compared, and what was there before it."""
    path = plain(tmp_path, 60)
    assert growth.ending("jsonl-unsynced", str(tmp_path), MIX, 60, 20)["error"] == ""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:45] + lines[46:]))
    assert growth.ending("jsonl-unsynced", str(tmp_path), MIX, 60, 20)["error"]
    assert growth.ending("jsonl-unsynced", str(tmp_path), MIX, 60, 10)["error"] == ""


def test_names_are_compared() -> None:
    """A list of sessions has every name once, in any order, and no other."""
    names = [filling.name_of(number) for number in range(9)]
    assert many.names_check(names[::-1], 9).is_clean
    assert many.names_check(names[1:], 9).lost == 1
    assert many.names_check([*names, names[0]], 9).duplicated == 1
    assert many.names_check([*names, "another"], 9).torn == 1


def test_looking_tells_a_session_that_is_another(tmp_path: Path) -> None:
    """A session whose file holds another's line is told, and so is one that the list lacks."""
    assert filling.make("jsonl-unsynced", str(tmp_path), 60.0, MIX, 1, 5, 0) == ""
    store = Path(filling.store_of(str(tmp_path)))
    (store / "s000002.jsonl").write_bytes(line_of(MIX, 1, 0))
    found = many.look("jsonl-unsynced", str(tmp_path), MIX, 5, 0.0)["check"]
    assert (found["torn"], found["lost"]) == (1, 1)
    (store / "more.jsonl").write_bytes(line_of(MIX, 1, 0))
    assert many.look("jsonl-unsynced", str(tmp_path), MIX, 5, 0.0)["check"]["torn"] == 2


# ------------------------------------------------------------------ making


def test_making_gives_up_where_it_would_take_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fill that can't end within its seconds ends early, with a reason; no part of the rest was handed out."""
    monkeypatch.setattr(filling, "PATIENCE_S", 0.0)
    reason = filling.make("jsonl-unsynced", str(tmp_path), 0.0, MIX, 10_000, 1, 0)
    assert "to make it would take" in reason
    held = Path(filling.store_of(str(tmp_path)), filling.NAME + ".jsonl").read_bytes()
    assert held.count(b"\n") < filling.LINES_AT_ONCE


def test_making_wants_room_on_the_disk(tmp_path: Path) -> None:
    """More lines than the disk has room for are not begun; the reason is told, and there is no figure."""
    lines = 1 << 44
    subject = SUBJECTS["jsonl-unsynced"]
    assert "have to be free" in filling.made(subject, str(tmp_path), seconds_max=60.0, mix=MIX, entries=lines)
    arguments = {"mix": MIX, "entries": lines, "loads": 1, "fill_seconds_max": 60.0}
    done = reading.LOAD.run(SUBJECTS["jsonl"], Case("too many", arguments), str(tmp_path))
    assert "have to be free" in done.note
    assert not done.figures
    assert done.check is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subject", ["shardstore-unsynced", "jsonl-unsynced"])
def test_what_is_made_is_filled_and_then_appended(subject: str, tmp_path: Path) -> None:
    """Each of several sessions has its own writer's lines, the last ones appended one by one."""
    assert filling.make(subject, str(tmp_path), 60.0, MIX, 9, 3, 4) == ""
    handle = SUBJECTS[subject].open(filling.store_of(str(tmp_path)))
    for number in range(3):
        assert filling.whole(handle.load(filling.name_of(number)), MIX, 9, number).is_clean
    handle.close()


def test_twins_differ_in_durability_alone() -> None:
    """The twin of a subject is of its class, and durable if it is not."""
    assert filling.twin_of(SUBJECTS["jsonl"]) is SUBJECTS["jsonl-unsynced"]
    assert filling.twin_of(SUBJECTS["shardstore-unsynced"]) is SUBJECTS["shardstore"]
    assert filling.twin_of(SUBJECTS["floor-file"]) is SUBJECTS["floor-file-unsynced"]
    assert filling.twin_of(SUBJECTS["maildir"]) is None


def test_what_reads_by_the_same_code_is_read_once() -> None:
    """Who reads by an earlier one's methods is told so; ours are both read, for all others are compared with them."""
    for name in ("jsonl-unsynced", "filelock", "gateway-fence"):
        assert SUBJECTS["jsonl"].label in str(filling.reads_alike(SUBJECTS[name]))
    for name in ("shardstore", "shardstore-unsynced", "jsonl", "sqlite-full", "maildir"):
        assert filling.reads_alike(SUBJECTS[name]) is None


def test_what_fills_by_the_same_code_is_imported_once() -> None:
    """Only one of the same durability stands for another, and none whose import is its own appends."""
    assert SUBJECTS["jsonl"].label in str(filling.fills_alike(SUBJECTS["filelock"]))
    for name in ("shardstore", "shardstore-unsynced", "jsonl", "jsonl-unsynced", "sqlite-normal", "strands"):
        assert filling.fills_alike(SUBJECTS[name]) is None


def test_of_twins_the_unsynced_one_shows_the_room() -> None:
    """A durable subject's room is its twin's; of shardstore both are looked at, and who has no twin is."""
    assert SUBJECTS["jsonl-unsynced"].label in str(growth.rooms_alike(SUBJECTS["jsonl"]))
    for name in ("shardstore", "shardstore-unsynced", "jsonl-unsynced", "maildir"):
        assert growth.rooms_alike(SUBJECTS[name]) is None


def test_transcripts_have_their_size_and_no_line_twice(tmp_path: Path) -> None:
    """Each file of an import is as long as it says, reaches its size with its last line, and shares none."""
    counts = many.make_files(str(tmp_path / "source"), MIX, 4, 5_000)
    found = [path.read_bytes().splitlines(keepends=True) for path in sorted((tmp_path / "source").iterdir())]
    assert [len(lines) for lines in found] == counts
    assert all(sum(map(len, lines[:-1])) < 5_000 <= sum(map(len, lines)) for lines in found)
    assert len(set(itertools.chain(*found))) == sum(counts)


def test_room_counts_each_inode_once(tmp_path: Path) -> None:
    """A second name of a file takes no room, a hole none on the disk."""
    (tmp_path / "one").write_bytes(b"x" * 8_192)
    os.link(tmp_path / "one", tmp_path / "two")
    on_disk, apparent, inodes = growth.room(str(tmp_path))
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 20)
    after = growth.room(str(tmp_path))
    assert inodes == 2
    assert after[2] == 3
    assert after[1] - apparent >= 1 << 20
    assert after[0] - on_disk < 1 << 20


def test_a_percentile_is_one_of_the_samples() -> None:
    """The share is counted from the least sample, and the whole of them is the greatest."""
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert filling.at(samples, 0.0) == 1.0
    assert filling.at(samples, 0.5) == 3.0
    assert filling.at(samples, 1.0) == 5.0
