"""The simulation of the whole protocol: the real engine, every interleaving of small worlds, many of large ones.

Rule: what is searched here is what a minute of one core allows; `python -m tests.simulate` goes on from there.
SHARDSTORE_SIMULATION_SEEDS sets how many seeds each large world gets, SHARDSTORE_SIMULATION_ALL=1 searches every
small world but those of the command's LONG. The simulation itself is tested too: that it is deterministic,
that its reductions leave nothing out, that its disk is as nasty as it says.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from broken_engines import BROKEN
from history import Entry, Ledger, Log, Rules, Violation, advance
from simulate import LONG, main
from simulation_actors import Actor, World, append, appends, do
from simulation_answers import Answer, Operation, judge
from simulation_disk import Call, Disk, outcomes
from simulation_runs import prepared, random_run, read_choices, written
from simulation_search import Search
from simulation_worlds import FIRST, LARGE, SMALL

SEEDS = int(os.environ.get("SHARDSTORE_SIMULATION_SEEDS", "25"))
ALL = os.environ.get("SHARDSTORE_SIMULATION_ALL") == "1"
QUICK = (
    "race",
    "writers",
    "reader",
    "guesses",
    "condition",
    "key",
    "own-condition",
    "birth",
    "import",
    "rebirth",
    "object-store",
    "merge",
    "power",
    "power-and-compaction",
    "power-and-keys",
    "power-and-birth",
    "power-and-deletion",
    "power-and-follower",
    "failing-sync",
)


@pytest.mark.parametrize("name", SMALL)
def test_small_world(name: str) -> None:
    """No interleaving, crash, listing, hint or power loss in this world refutes the guarantees."""
    if name in LONG:
        pytest.skip(f"takes too long for a test: python -m tests.simulate --exhaustive --world {name}")
    if name not in QUICK and not ALL:
        pytest.skip("takes too long for every run: SHARDSTORE_SIMULATION_ALL=1, or python -m tests.simulate")
    report = Search(SMALL[name]).run()
    assert report.complete
    assert [str(failure.violation) for failure in report.failures] == []
    assert report.states > 10


@pytest.mark.parametrize("name", LARGE)
def test_large_world(name: str) -> None:
    """No seed refutes the guarantees, and what the world promises to do does happen."""
    steps = losses = crashes = 0
    for seed in range(SEEDS):
        run, failure = random_run(LARGE[name], seed)
        assert failure is None, f'{failure.violation}\npython -m tests.simulate --replay "{failure.token()}"'
        steps += len(run.choices)
        losses += run.losses
        crashes += run.crashes
    assert steps > 50 * SEEDS
    assert crashes > 0
    assert (losses > 0) == LARGE[name].power


# ------------------------------------------------------------------ the simulation itself


def test_a_seed_is_a_run() -> None:
    """The same seed makes the same run, step by step; another one makes another."""
    one, other = (random_run(LARGE["crowd"], 3)[0] for _ in range(2))
    assert one.trace == other.trace
    assert one.choices == other.choices
    assert random_run(LARGE["crowd"], 4)[0].choices != one.choices


def test_choices_as_a_word() -> None:
    """A token says exactly which choices were made."""
    run, _ = random_run(LARGE["crowd-power"], 5)
    assert read_choices(written(run.choices)) == run.choices
    with pytest.raises(ValueError, match="token"):
        read_choices("s1*x")


def ends(world: World, *, reduces: bool) -> tuple[set[Any], int]:
    """Return every (log, what was promised) with which the world can end, and the number of states on the way."""
    found: set[Any] = set()

    class Ends(Search):
        def _expand(self, state: Any, ways: int, following: Any) -> bool:
            _, log, ledger, _, nodes = state
            if all(node is None or node.call is None for node in nodes):
                found.add((log, replace(ledger, floors=())))
            return super()._expand(state, ways, following)

    report = Ends(world, reduces=reduces).run()
    assert report.failures == []
    return found, report.states


@pytest.mark.parametrize(
    "actors",
    [
        (Actor("a", appends("a", 2)), Actor("c", (do("compact"),))),
        (Actor("a", (append("a", key="K"),)), Actor("b", (append("a", key="K"),))),
        (Actor("a", appends("a", 1)), Actor("c", (do("compact"),)), Actor("r", (do("head"),))),
    ],
    ids=("writer", "keys", "head"),
)
def test_reductions_leave_nothing_out(actors: tuple[Actor, ...]) -> None:
    """With and without the reductions a world ends in the same ways; with them there are fewer states."""
    world = World("reduced", actors, prepare=FIRST)
    fewer, some = ends(world, reduces=True)
    every, many = ends(world, reduces=False)
    assert fewer == every
    assert some < many


def test_search_is_wider_than_seeds() -> None:
    """Whatever a random run of a small world ends with, the search has seen."""
    world = World("small", (Actor("a", appends("a", 2)), Actor("b", appends("b", 1))), prepare=FIRST, crashes=False)
    found, _ = ends(world, reduces=True)
    for seed in range(40):
        run, failure = random_run(world, seed)
        assert failure is None
        assert run.log.entries[:-1] in {log.entries for log, _ in found}, "but for the record of the recovery"


def test_a_listing_shows_a_later_shard_without_an_earlier_one() -> None:
    """Shards are listed in two steps, and what is created between them may be seen in the wrong order."""
    disk = Disk({}, {}, {}, {})
    first = outcomes(disk, "a", Call("list", "f", b"", (0, 2, 0, "")), False)[0][0]
    for seq in (18, 19):
        disk = disk.put(f"f/{seq:020d}.shard", b"x", durable=True)
    second = outcomes(disk, "a", Call("list", "f", b"", (1, 2, 0, "")), False)[0][0]
    assert (first, second) == ((), (f"{19:020d}.shard",))


def test_a_power_loss_takes_any_unsynced_names() -> None:
    """What was not synced may be gone or there, each by itself; what was synced stays."""
    disk = Disk({}, {}, {}, {}).put("f/1", b"one", durable=False).synced("f", ancestors=False)
    disk = disk.put("f/2", b"two", durable=False).put("f/3", b"three", durable=False).put("f/1", None, durable=False)
    left = {frozenset(disk.after_loss(way).objects) for way in range(disk.losses())}
    assert len(left) == 8
    assert frozenset({"f/1", "f/3"}) in left
    assert disk.synced("f", ancestors=False).losses() == 1


def test_a_crash_gives_back_the_right_to_compact() -> None:
    """A dead actor holds nothing, and what its `finally` blocks call has no effect."""
    world = World("crash", (Actor("c", (do("compact"),)), Actor("d", (do("compact"),))), prepare=FIRST)
    run = prepared(world)
    run.begin(world.actors)
    while not run.disk.holders:
        run.do(read_choices("s0")[0])
    before = run.disk.objects
    run.do(read_choices("x0")[0])
    assert run.disk.holders == {}
    assert run.disk.objects == before
    assert run.alive() == [1]
    run.finish()
    assert run.log.watermark == 1


# ------------------------------------------------------------------ the judge

ONE, TWO = (Entry(f"{n:032x}", "turn", "main", None, b"%d\n" % n) for n in (1, 2))
RULES = Rules(frozenset((b"1\n", b"2\n")))
LOG = Log("open", (ONE, TWO), 0)
HELD = Ledger(acknowledged=((1, ONE.nonce),)).invoked("a")


def answered(verb: str, value: Any, outcome: str = "ok", since: int | None = None, **facts: Any) -> Answer:
    """Return an answer of the engine."""
    return Answer(Operation(verb, **facts), outcome, value, since)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("lost", answered("append", (2, ONE.nonce, False), payload=b"1\n")),
        ("lost", answered("append", (3, TWO.nonce, False), payload=b"2\n")),
        ("order", answered("append", (1, ONE.nonce, False), payload=b"1\n")),
        ("condition", answered("append", (2, TWO.nonce, False), payload=b"2\n", since=0)),
        ("condition", answered("append", ((), None), "Conflict", since=2, payload=b"3\n")),
        ("condition", answered("append", "", "InvalidRequest", since=1, payload=b"3\n")),
        ("refused", answered("append", ((2,), None), "Conflict", since=1, payload=b"2\n")),
        ("error", answered("append", "", "Unavailable", payload=b"3\n")),
        ("after delete", answered("delete", None)),
        ("stale read", answered("read", ())),
        ("stale read", answered("head", 0)),
        ("wrong read", answered("read", ((1, ONE.nonce, b"1\n"), (2, ONE.nonce, b"2\n")))),
        ("wrong read", answered("read", ((2, TWO.nonce, b"2\n"),))),
        ("wrong read", answered("last", ((2, TWO.nonce, b"x\n"),), count=1)),
        ("wrong read", answered("last", ((2, TWO.nonce, b"2\n"),), count=2)),
        ("wrong read", answered("follow", ((2, TWO.nonce, b"2\n"),), count=2)),
        ("stale read", answered("follow", (), count=2)),
        ("wrong read", answered("head", 3)),
        ("cried wolf", answered("read", "", "Corrupt")),
        ("cried wolf", answered("verify", (("torn-shard", (1, 1)),))),
        ("error", answered("read", "", "KeyError")),
    ],
    ids=str,
)
def test_the_judge_refuses(kind: str, answer: Answer) -> None:
    """Each answer that no guarantee allows is a violation of its kind."""
    with pytest.raises(Violation) as caught:
        judge(answer, "a", LOG, HELD, RULES)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "answer",
    [
        answered("append", (2, TWO.nonce, False), payload=b"2\n"),
        answered("append", ((1, 2), None), "Conflict", since=0, payload=b"3\n"),
        answered("append", "", "InvalidRequest", since=2, payload=b"3\n"),
        answered("read", ((1, ONE.nonce, b"1\n"),)),
        answered("head", 2),
        answered("last", ((2, TWO.nonce, b"2\n"),), count=1),
        answered("last", ((1, ONE.nonce, b"1\n"), (2, TWO.nonce, b"2\n")), count=3),
        answered("follow", ((1, ONE.nonce, b"1\n"),), count=2),
    ],
    ids=str,
)
def test_the_judge_allows(answer: Answer) -> None:
    """Each answer that the guarantees allow is none."""
    judge(answer, "a", LOG, HELD, RULES)


def test_the_judge_of_a_log_taken_back() -> None:
    """A log that loses its end, and a record that nobody wrote, are violations."""
    world = World("one", (), prepare=FIRST)
    run = prepared(world)
    with pytest.raises(Violation, match="taken back"):
        advance(run.log, {key: data for key, data in run.disk.objects.items() if "shards" not in key}, Ledger(), RULES)
    with pytest.raises(Violation, match="nobody wrote"):
        advance(Log("open", (), 0), run.disk.objects, Ledger(), RULES)


# ------------------------------------------------------------------ the command


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """It lists, runs, searches, and ends with a table and a verdict."""
    assert main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ("crowd-power",))
    assert main(["--world", "crowd", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "not refuted: 0 violations" in out
    assert main(["--world", "power", "--exhaustive"]) == 0
    assert "exhaustive" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0


def test_the_command_replays_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is printed with its trace and the command that replays it; that command fails in the same way."""
    engine = "a bulk import over a live slot"
    assert main(["--world", "import", "--seeds", "50", "--engine", engine]) == 1
    out = capsys.readouterr().out
    assert "REFUTED: 1 violations" in out
    token = out.split('--replay "')[1].split('"')[0]
    assert main(["--engine", engine, "--replay", token]) == 1
    assert "VIOLATION in import" in capsys.readouterr().out
    assert main(["--replay", token]) == 0
    assert "nothing was violated" in capsys.readouterr().out
    assert engine in BROKEN
