"""The simulation's teeth: engines that are wrong in one place each, every one of which must be caught.

Rule: a broken engine is caught by a violation of the kind that it deserves, its failing run is cut short and replays,
and the real engine passes the very same run, and the seeds before it.
"""

from __future__ import annotations

import pytest
from broken_engines import BROKEN, Broken
from simulation_runs import Failure, random_run, read_choices, replay, shortened, written
from simulation_search import Search
from simulation_worlds import SMALL, WORLDS

SEEDS_MAX = 600
SEARCHED = {  # broken engine: a small world in which an exhaustive search finds it as well, and soon
    "no second look": "writers",
    "readers without a look": "reader",
    "a visible shard withdrawn": "failing-sync",
    "a bulk import over a live slot": "import",
    "deleting before publishing": "reader",
}


def caught(broken: Broken) -> tuple[Failure, int]:
    """Return the first failure in the first of the worlds, and its seed; where the power goes, by searching."""
    if WORLDS[broken.worlds[0]].power:
        with broken.installed():
            return Search(WORLDS[broken.worlds[0]]).run().failures[0], 0
    for seed in range(SEEDS_MAX):
        with broken.installed():
            _, failure = random_run(WORLDS[broken.worlds[0]], seed)
        if failure is not None:
            return failure, seed
    raise AssertionError(f"not caught in {SEEDS_MAX} runs: {broken.name}")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_engine_is_caught(name: str) -> None:
    """The wrong engine violates what it should, the short trace replays, and the right engine does not do it."""
    broken = BROKEN[name]
    failure, seed = caught(broken)
    assert failure.violation.kind in broken.kinds, failure.violation
    with broken.installed():
        short = shortened(failure, 60)
        assert len(short.choices) <= len(failure.choices)
        again = replay(failure.world, read_choices(written(short.choices)))
    assert again is not None
    assert again.violation.kind == failure.violation.kind
    assert again.trace == short.trace
    assert replay(failure.world, short.choices) is None
    for number in range(min(seed, 20) + 1):
        run, refuted = random_run(failure.world, seed - number)
        assert refuted is None, refuted
        assert run.choices


@pytest.mark.parametrize("name", SEARCHED)
def test_broken_engine_is_found_by_searching(name: str) -> None:
    """An exhaustive search finds it too, with a violation of the right kind, and its path replays."""
    broken = BROKEN[name]
    with broken.installed():
        report = Search(SMALL[SEARCHED[name]]).run()
        assert len(report.failures) == 1
        failure = report.failures[0]
        assert failure.violation.kind in broken.kinds, failure.violation
        again = replay(failure.world, failure.choices)
    assert again is not None
    assert again.violation.kind == failure.violation.kind
    assert replay(failure.world, failure.choices) is None


def test_every_way_to_be_wrong_is_there() -> None:
    """The list of broken engines only grows."""
    assert len(BROKEN) >= 22
    assert all(set(broken.worlds) <= set(WORLDS) for broken in BROKEN.values())
