"""The contenders of `python -m benchmarks`: each holds what it was given, in order, alone and with others beside it.

Those that are not installed are skipped; nothing stands in for them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import fresh
from benchmarks.checking import Written, check
from benchmarks.lines import line_of, lines
from benchmarks.subjects import SUBJECTS, Handle, Refused, Subject, TurnFailed, agents, gateway, locked, sqlite
from benchmarks.workloads.base import checked

MIX = "openclaw"
COUNT = 60
ROUNDS = 25  # appends of each of several writers
TOGETHER = 2
STORES = [one for one in SUBJECTS.values() if not one.is_floor]
SEVERAL = [one for one in STORES if one.name != "strands"]  # which several writers may not use at once


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    """A contender, if it is installed."""
    one: Subject = request.param
    if reason := one.missing():
        pytest.skip(reason)
    return one


@pytest.fixture
def handle(subject: Subject, tmp_path: Path) -> Iterator[Handle]:
    """A contender's store in an empty folder."""
    opened = subject.open(str(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fresh processes import what this one imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def named(one: Subject) -> str:
    """Return what a test with a contender is called."""
    return one.name


def entries(writer: int, count: int) -> list[Any]:
    """Return a writer's first lines, decoded."""
    return [orjson.loads(line) for line in islice(lines(MIX, writer), count)]


@pytest.mark.parametrize("subject", STORES, ids=named, indirect=True)
def test_what_is_appended_comes_back(subject: Subject, tmp_path: Path) -> None:
    """Every line comes back once, in order, through the handle that wrote it and another; so do the last."""
    handle = subject.open(str(tmp_path))
    for line in islice(lines(MIX, 0), COUNT):
        handle.append("one", line)
    handle.append("other", line_of(MIX, 1, 0))
    assert handle.last("one", 1) == entries(0, COUNT)[-1:]
    handle.close()
    handle = subject.open(str(tmp_path))
    assert handle.load("one") == entries(0, COUNT)
    assert handle.last("one", 50) == entries(0, COUNT)[-50:]
    assert handle.last("one", 2 * COUNT) == entries(0, COUNT)
    assert handle.since("one", COUNT - 2) == entries(0, COUNT)[-2:]
    assert handle.since("one", COUNT) == []
    assert handle.load("other") == entries(1, 1)
    assert check(handle.load("one"), MIX, {0: Written(COUNT)}).is_clean
    handle.close()


@pytest.mark.parametrize("subject", STORES, ids=named, indirect=True)
def test_sessions_are_listed_or_it_is_said_why_not(subject: Subject, handle: Handle) -> None:
    """Names come back as they were given, or the subject takes no part where they are asked for."""
    names = ["a", "a b", "aa", "b"]
    for name in names:
        handle.append(name, line_of(MIX, 0, 0))
    if "open-list" in subject.cannot:
        with pytest.raises(NotImplementedError):
            handle.sessions()
    else:
        assert sorted(handle.sessions()) == names


@pytest.mark.parametrize("subject", STORES, ids=named, indirect=True)
def test_fill_goes_before_what_is_appended_then(subject: Subject, handle: Handle) -> None:
    """Many sessions that were brought in at once are there whole, and grow, before and after their upkeep."""
    names = [f"s{number}" for number in range(3)]
    handle.fill_many((name, islice(lines(MIX, number), COUNT)) for number, name in enumerate(names))
    for number, name in enumerate(names):
        assert handle.load(name) == entries(number, COUNT)
        handle.append(name, line_of(MIX, number, COUNT))
        handle.compact(name)
        handle.append(name, line_of(MIX, number, COUNT + 1))
        assert handle.load(name) == entries(number, COUNT + 2)
        assert handle.last(name, 2) == entries(number, COUNT + 2)[-2:]


@pytest.mark.parametrize("subject", STORES, ids=named, indirect=True)
def test_upkeep_that_is_left_is_done_by_compact(subject: Subject, handle: Handle) -> None:
    """A handle that leaves its upkeep to `compact` holds the same."""
    handle.leave_upkeep()
    for line in islice(lines(MIX, 0), COUNT):
        handle.append("one", line)
    handle.compact("one")
    assert handle.load("one") == entries(0, COUNT)


def write(member: int, subject: str, folder: str, spread: bool) -> dict[str, Any]:
    """Open a store that may not be there yet, and append to it."""
    fresh.gate()
    handle = SUBJECTS[subject].open(folder)
    for line in islice(lines(MIX, member), ROUNDS):
        handle.append(f"s{member}" if spread else "s", line)
    handle.close()
    return {"count": ROUNDS, "refused": []}


@pytest.mark.parametrize("subject", SEVERAL, ids=named, indirect=True)
@pytest.mark.usefixtures("modules")
def test_several_processes_share_a_session(subject: Subject, tmp_path: Path) -> None:
    """All open an empty folder at one moment, append to one session, and nothing is lost, doubled, moved or torn."""
    answers = fresh.crew(write, TOGETHER, subject=subject.name, folder=str(tmp_path), spread=False)
    found = checked(subject, str(tmp_path), "s", MIX, answers)
    assert found.is_clean
    assert found.acknowledged == TOGETHER * ROUNDS


@pytest.mark.parametrize("subject", STORES, ids=named, indirect=True)
@pytest.mark.usefixtures("modules")
def test_several_processes_have_a_session_each(subject: Subject, tmp_path: Path) -> None:
    """The same with a session for each: Strands, too, keeps all of it."""
    fresh.crew(write, TOGETHER, subject=subject.name, folder=str(tmp_path), spread=True)
    handle = subject.open(str(tmp_path))
    for member in range(TOGETHER):
        assert handle.load(f"s{member}") == entries(member, ROUNDS)
    handle.close()


@pytest.mark.parametrize("subject", [SUBJECTS["strands"]], ids=named, indirect=True)
def test_what_strands_loses_is_seen(subject: Subject, tmp_path: Path) -> None:
    """Of two that have one agent open, each replaces what the other acknowledged, and the check says so."""
    first, second = subject.open(str(tmp_path)), subject.open(str(tmp_path))
    for number in range(3):
        first.append("s", line_of(MIX, 0, number))
        second.append("s", line_of(MIX, 1, number))
    found = check(first.load("s"), MIX, {0: Written(3), 1: Written(3)})
    assert isinstance(first, agents.Strands)
    assert not found.is_clean
    assert (found.acknowledged, found.lost) == (6, 2)


def test_who_is_missing_is_named_with_the_extra() -> None:
    """A contender that is not installed says what is missing and which extra brings it."""
    gone = Subject("gone", "gone", True, lambda folder: Handle(), ("json", "no_such_module"))
    assert gone.missing() == "no_such_module: pip install 'shardstore[bench]'"
    assert SUBJECTS["sqlite-full"].missing() is None


def test_who_is_there_for_one_workload_takes_part_in_no_other() -> None:
    """The lock with the times of the turns would give up too early elsewhere."""
    from benchmarks.workloads import WORKLOADS

    takes = [name for name, one in WORKLOADS.items() if one.why_not(SUBJECTS["gateway-lock"]) is None]
    assert takes == ["turns"]


# ------------------------------------------------------------------ turns

TURN = [("nobody", [], True), ("a user", [1], False), ("an assistant", [0], True), ("both", [0, 1], False)]


@pytest.mark.parametrize(("numbers", "is_kept"), [one[1:] for one in TURN], ids=[one[0] for one in TURN])
def test_the_fence_throws_a_reply_away(tmp_path: Path, numbers: list[int], is_kept: bool) -> None:
    """A reply is written if nobody, or nobody but an assistant, wrote meanwhile, as OpenClaw has it."""
    agent, tenant = (SUBJECTS["gateway-fence"].open(str(tmp_path)) for _ in range(2))
    agent.append("s", line_of(MIX, 0, 1))
    begun = agent.begin("s")
    for number in numbers:
        tenant.append("s", line_of(MIX, 1, number))
    reply = line_of(MIX, 0, 2)
    if is_kept:
        agent.finish("s", begun, reply)
    else:
        with pytest.raises(gateway.EmbeddedAttemptSessionTakeoverError):
            agent.finish("s", begun, reply)
    assert (orjson.loads(reply) in agent.load("s")) == is_kept
    assert os.listdir(tmp_path) == ["s.jsonl"]  # no lock is left


def test_the_fence_sees_a_touch(tmp_path: Path) -> None:
    """A time that changed is a change."""
    handle = SUBJECTS["gateway-fence"].open(str(tmp_path))
    handle.append("s", line_of(MIX, 0, 1))
    begun = handle.begin("s")
    os.utime(tmp_path / "s.jsonl", ns=(1, 1))
    with pytest.raises(TurnFailed):
        handle.finish("s", begun, line_of(MIX, 0, 2))


def test_a_lock_through_a_turn_makes_others_give_up(tmp_path: Path) -> None:
    """While a turn holds the lock a co-tenant is refused, and so is another turn; then both go on."""
    agent, tenant = (SUBJECTS["gateway-lock"].open(str(tmp_path)) for _ in range(2))
    begun = agent.begin("s")
    with pytest.raises(gateway.SessionWriteLockTimeoutError):
        tenant.append("s", line_of(MIX, 1, 0))
    with pytest.raises(gateway.SessionWriteLockTimeoutError):
        tenant.begin("s")
    agent.append("s", line_of(MIX, 0, 1))
    agent.finish("s", begun, line_of(MIX, 0, 2))
    tenant.append("s", line_of(MIX, 1, 1))
    assert [one["id"] for one in tenant.load("s")] == ["0-1", "0-2", "1-1"]


@pytest.mark.parametrize("pid", [0, 1], ids=["nobody's", "a dead process's"])
def test_a_stale_lock_is_taken_away(tmp_path: Path, pid: int) -> None:
    """A lock whose holder is gone, or of which nobody is known to be the holder for a while, does not last."""
    path = tmp_path / "s.jsonl.lock"
    if pid:
        gone = os.spawnlp(os.P_NOWAIT, "true", "true")
        os.waitpid(gone, 0)
        path.write_text(json.dumps({"pid": gone, "createdAt": "2999-01-01T00:00:00Z"}))
    else:
        path.write_text("")
        os.utime(path, (1, 1))
    handle = SUBJECTS["gateway-lock"].open(str(tmp_path))
    handle.append("s", line_of(MIX, 0, 0))
    assert handle.load("s") == entries(0, 1)
    assert not path.exists()


# ------------------------------------------------------------------ waiting


def test_a_file_lock_that_times_out_refuses(tmp_path: Path) -> None:
    """A line that could not get its lock is refused, and not written."""
    pytest.importorskip("filelock")
    holder, late = (locked.Locked(str(tmp_path), durable=False, timeout_s=0.01) for _ in range(2))
    with holder.lock("s"), pytest.raises(Refused):
        late.append("s", line_of(MIX, 0, 0))
    late.append("s", line_of(MIX, 0, 1))
    assert [one["id"] for one in late.load("s")] == ["0-1"]


def test_a_database_that_stays_busy_refuses(tmp_path: Path) -> None:
    """The same, of a database in which somebody's transaction is open."""
    late = sqlite.Sqlite(str(tmp_path), synchronous="NORMAL", timeout_s=0.01)
    holder = sqlite.Sqlite(str(tmp_path), synchronous="NORMAL")

    def held() -> Iterator[bytes]:
        yield line_of(MIX, 0, 0)
        with pytest.raises(Refused):
            late.append("s", line_of(MIX, 1, 0))

    holder.fill("s", held())
    late.append("s", line_of(MIX, 1, 1))
    assert [one["id"] for one in late.load("s")] == ["0-0", "1-1"]
    for one in (late, holder):
        one.close()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    """Who reads a file meets what others write at this moment: it has no LF yet."""
    handle = SUBJECTS["jsonl-unsynced"].open(str(tmp_path))
    handle.append("s", line_of(MIX, 0, 0))
    with open(tmp_path / "s.jsonl", "ab") as file:
        file.write(line_of(MIX, 0, 1)[:-20])
    assert handle.load("s") == handle.last("s", 1) == handle.last("s", 9) == entries(0, 1)
    handle.close()
