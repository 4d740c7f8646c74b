"""The lines that benchmarks write, the check of what is held of them, and the floor: the engine's bare system calls."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.checking import Check, Written, check
from benchmarks.lines import MIXES, bodies, line_of, lines, size_at
from benchmarks.subjects import SUBJECTS, Subject, subject
from benchmarks.workloads import WORKLOADS, Case
from benchmarks.workloads.append import APPEND

FLOORS = [one for one in SUBJECTS.values() if one.is_floor]
MIX = "openclaw"
APPENDS = """
import os, sys
from benchmarks.lines import line_of
from benchmarks.subjects import subject
handle = subject(sys.argv[1]).open(sys.argv[2])
for number in range(3):
    handle.append("s", line_of("openclaw", 0, number))
os.write(2, b"begin")
handle.append("s", line_of("openclaw", 0, 3))
os.write(2, b"end")
"""
LOOPS = """
import os, sys
from benchmarks.lines import line_of
from benchmarks.subjects import subject
handle = subject(sys.argv[1]).open(sys.argv[2])
handle.append("s", line_of("openclaw", 0, 0))
bare = handle.prepared()
os.write(2, b"warm")
assert bare("openclaw", 0, 60.0, 2)["count"] == 3
os.write(2, b"end")
"""


@pytest.mark.parametrize("mix", MIXES)
def test_sizes_are_those_of_the_mix(mix: str) -> None:
    """A ladder's worth of lines has the measured median, p90, p99 and maximum, and each line is one JSON object."""
    some = list(islice(lines(mix, 0), len(bodies(mix))))
    sizes = sorted(map(len, some))
    p50, p90, p99, most = MIXES[mix]
    assert statistics.median(sizes) == pytest.approx(p50, rel=0.02)
    assert sizes[int(len(sizes) * 0.9) - 2] == pytest.approx(p90, rel=0.05)
    assert sizes[int(len(sizes) * 0.99) - 2] == pytest.approx(p99, rel=0.05)
    assert sizes[-1] == pytest.approx(most, abs=4)
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 and json.loads(line)["id"] for line in some)


def test_sizes_grow_with_the_share() -> None:
    """The ladder of sizes rises from its least to the largest, without a step back."""
    found = [size_at(MIX, step / 100) for step in range(101)]
    assert found == sorted(found)
    assert found[-1] == MIXES[MIX][-1]


def test_lines_are_always_the_same_and_each_ones_own() -> None:
    """A line depends on its mix, writer and number alone, and no two lines are the same."""
    assert list(islice(lines(MIX, 3, first=5), 4)) == [line_of(MIX, 3, number) for number in range(5, 9)]
    assert len({line_of(MIX, writer, number) for writer in range(4) for number in range(300)}) == 1200


# -------------------------------------------------------------- checks


def entries(numbers: Sequence[tuple[int, int]]) -> list[object]:
    """Return the entries of some (writer, number)."""
    return [orjson.loads(line_of(MIX, *place)) for place in numbers]


@given(st.lists(st.integers(0, 2), max_size=20), st.data())
def test_check_counts_what_is_wrong(order: list[int], data: st.DataObject) -> None:
    """Interleaved writers are clean; what is taken out is lost, what is put in again doubled, what is changed torn."""
    places, counts = [], dict.fromkeys(range(3), 0)
    for writer in order:
        places.append((writer, counts[writer]))
        counts[writer] += 1
    written = {writer: Written(count) for writer, count in counts.items()}
    whole = entries(places)
    assert check(whole, MIX, written) == Check(acknowledged=len(order))
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        assert check(whole[:at] + whole[at + 1 :], MIX, written).lost == 1
        assert check([*whole[: at + 1], whole[at], *whole[at + 1 :]], MIX, written).duplicated == 1
        torn = check([*whole[:at], {"id": "0-0", "type": "x"}, *whole[at + 1 :]], MIX, written)
        assert (torn.torn, torn.lost) == (1, 1)
        assert not torn.is_clean


def test_check_sees_a_wrong_order_and_what_is_nobodys() -> None:
    """A writer's later line before his earlier one is reordered; a line that nobody wrote counts as torn."""
    assert check(entries([(0, 1), (0, 0)]), MIX, {0: Written(2)}).reordered == 1
    assert check(entries([(0, 0), (5, 0)]), MIX, {0: Written(1)}).torn == 1
    assert check(entries([(0, 0), (0, 7)]), MIX, {0: Written(1)}).torn == 1


def test_refused_lines_may_be_there_or_not() -> None:
    """A line whose writer was told that it was not taken is neither lost nor wrong."""
    for places in ([(0, 0), (0, 2)], [(0, 0), (0, 1), (0, 2)]):
        found = check(entries(places), MIX, {0: Written(3, [1])})
        assert found.is_clean
        assert (found.acknowledged, found.refused) == (2, 1)


# -------------------------------------------------------------- the floor


@pytest.mark.parametrize("has_compiler", [True, False])
@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor.name)
def test_floor_writes_what_is_checked(
    floor: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_compiler: bool
) -> None:
    """A floor's round says what made the calls, and every line is there afterwards, whole and in order."""
    if not has_compiler:
        monkeypatch.setenv("PATH", "")
    elif not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("there is no C compiler")
    case = Case("one", {"writers": 1, "mix": MIX, "seconds": 0.02})
    outcome = APPEND.run(floor, case, str(tmp_path))
    assert outcome.note.startswith("made from C" if has_compiler else "made from Python")
    assert outcome.check is not None
    assert outcome.check.is_clean
    assert outcome.check.acknowledged >= 2
    assert outcome.figures["p50"] <= outcome.figures["p99"] <= outcome.figures["max"]


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor.name)
def test_damage_to_what_a_floor_wrote_is_seen(floor: Subject, tmp_path: Path) -> None:
    """A line that was changed on the disk is found torn and lost: the floor is read back, not believed."""
    name = floor.name
    handle = subject(name).open(str(tmp_path))
    for number in range(4):
        handle.append("s", line_of(MIX, 0, number))
    handle.close()
    for path in [*tmp_path.glob("s.jsonl"), *tmp_path.glob("s/shards/*2.shard")]:
        path.write_bytes(path.read_bytes().replace(b'"message"', b'"massage"', 3))
    again = subject(name).open(str(tmp_path))
    found = check(again.load("s"), MIX, {0: Written(4)})
    again.close()
    assert not found.is_clean
    assert found.torn == found.lost > 0


def test_floors_take_part_in_one_workload() -> None:
    """Floors only append: no other workload has them, and it says why."""
    for workload in WORKLOADS.values():
        assert [workload.why_not(floor) is None for floor in FLOORS] == [workload.name == "append"] * len(FLOORS)


def calls(script: str, name: str, folder: Path, out: Path, begin: str) -> list[str]:
    """Return the system calls between two marks, each with its flags, by strace."""
    folder.mkdir()
    command = ["strace", "-o", str(out), sys.executable, "-c", script, name, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    text = out.read_text().partition(f'write(2, "{begin}"')[2].partition('write(2, "end"')[0]
    found = []
    for line in text.splitlines()[1:]:
        match = re.match(r"(\w+)\(", line)
        if match:
            flags = re.findall(r"\b(?:O|AT)_[A-Z_|]+\b", line)
            found.append(" ".join([match[1], *(flag for flag in flags if flag != "AT_FDCWD")]))
    return found


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("strace"), reason="strace is not here")
@pytest.mark.parametrize("kind", ["", "-unsynced"])
def test_the_record_floor_makes_the_engines_calls(tmp_path: Path, kind: str) -> None:
    """The floor of a file a record makes the very system calls of an append, in order, from Python and from C."""
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    engine = calls(APPENDS, f"shardstore{kind}", tmp_path / "engine", tmp_path / "engine.txt", "begin")
    floor = calls(APPENDS, f"floor-record{kind}", tmp_path / "floor", tmp_path / "floor.txt", "begin")
    assert len(engine) >= 7
    assert floor == engine
    if shutil.which("cc") or shutil.which("gcc"):
        loop = calls(LOOPS, f"floor-record{kind}", tmp_path / "loop", tmp_path / "loop.txt", "warm")
        assert "\n".join(engine * 2) in "\n".join(loop)
