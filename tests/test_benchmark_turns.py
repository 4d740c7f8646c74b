"""The workloads of overlapping turns, of following and of upkeep: what they count is what happened."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import shardstore
from benchmarks.lines import line_of
from benchmarks.subjects import SUBJECTS, TurnFailed
from benchmarks.workloads import WORKLOADS, Case
from benchmarks.workloads.base import MIX
from benchmarks.workloads.following import FOLLOW
from benchmarks.workloads.turns import TURNS, Turn, Voice, judged, landings, turns_of
from benchmarks.workloads.upkeep import BESIDE, COMPACTION, UPKEEP

TURN = Turn(0.0, 0.0, 7)
FOLLOWED = ["shardstore", "shardstore-unsynced", "jsonl-unsynced", "sqlite-normal", "lmdb", "diskcache", "maildir"]


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same schedule; another one, and another member, another."""
    assert list(turns_of("a", 0, 1.0)) == list(turns_of("a", 0, 1.0))
    assert len({tuple(turns_of(seed, member, 1.0)) for seed in "abc" for member in range(3)}) == 9
    assert list(landings("a", 5, 1.0, 1)) == list(landings("a", 5, 1.0, 1)) != list(landings("a", 6, 1.0, 1))
    assert list(landings("a", 5, 1.0, 8)) != list(landings("b", 5, 1.0, 8))


def test_a_message_comes_after_the_reply_before_it() -> None:
    """Nobody waits in a schedule of which nothing is late, and none goes on after its end."""
    turns = list(turns_of("a", 0, 5.0))
    assert all(one.at_s + one.model_s < two.at_s for one, two in itertools.pairwise(turns))
    assert turns[-1].at_s < 5.0 < turns[-1].at_s + 1.0
    assert all(turn.tokens > 0 for turn in turns)


def test_bursts_come_together() -> None:
    """Co-tenants of a seed append at the same moments, several times at some, and no more often than without bursts."""
    moments = list(landings("a", 1, 100.0, 8))
    assert set(moments) == set(landings("a", 2, 100.0, 8))
    assert len(set(moments)) < len(moments) / 2
    assert len(moments) < 2 * len(list(landings("a", 1, 100.0, 1)))


@pytest.mark.parametrize("name", ["shardstore", "shardstore-unsynced", "jsonl-unsynced"])
def test_no_turn_is_lost(tmp_path: Path, name: str) -> None:
    """Whatever lands meanwhile, in any schedule: each reply that was acknowledged is there, and none was refused."""
    case = Case("", {"agents": 2, "cotenants": 2, "burst": 4, "seed": "test", "schedules": 3, "seconds": 0.2})
    outcome = TURNS.run(SUBJECTS[name], case, str(tmp_path))
    assert outcome.check is not None
    assert outcome.check.is_clean
    assert outcome.check.acknowledged > 30
    wasted = {"turns_kept": 100, "turns_lost": 0, "turns_failed": 0, "tokens_wasted": 0, "appends_refused": 0}
    assert {figure: outcome.figures[figure] for figure in wasted} == wasted
    assert set(outcome.figures) == {figure.name for figure in TURNS.figures}


def test_a_fence_throws_replies_away(tmp_path: Path) -> None:
    """Where others land in nearly every turn, a gateway's fence fails turns, and their tokens are counted."""
    case = Case("", {"agents": 2, "cotenants": 2, "burst": 1, "seed": "test", "schedules": 2, "seconds": 0.5})
    outcome = TURNS.run(SUBJECTS["gateway-fence"], case, str(tmp_path))
    assert outcome.check is not None
    assert outcome.check.is_clean
    assert outcome.figures["turns_failed"] > 0
    assert outcome.figures["tokens_wasted"] >= outcome.figures["turns_failed"]
    assert outcome.figures["turns_kept"] < 100


def test_a_reply_that_is_gone_is_a_lost_turn(tmp_path: Path) -> None:
    """What was acknowledged is looked for, whole, by its writer and number."""
    handle = SUBJECTS["jsonl-unsynced"].open(str(tmp_path))
    for number in (0, 1, 3):
        handle.append("s", line_of(MIX, 0, number))
    handle.append("s", line_of(MIX, 0, 4).replace(b'"message"', b'"massage"'))
    handle.close()
    spoken = {"s": [{"count": 5, "refused": [], "replies": [1, 2, 4]}]}
    found = judged("jsonl-unsynced", str(tmp_path), spoken)
    assert found["lost"] == {"s": [(0, 2), (0, 4)]}
    assert (found["checks"][0]["lost"], found["checks"][0]["torn"]) == (2, 1)


def test_all_turns_of_an_unreadable_session_are_lost(tmp_path: Path) -> None:
    """Who can't be read holds no reply."""
    (tmp_path / "s.jsonl").write_bytes(line_of(MIX, 0, 0)[:-9] + b"\n")
    found = judged("jsonl-unsynced", str(tmp_path), {"s": [{"count": 1, "refused": [], "replies": [0]}]})
    assert found["checks"][0]["error"]
    assert found["lost"] == {"s": [(0, 0)]}


def _roles(voice: Voice) -> list[str]:
    return [entry["message"]["role"] for entry in voice.handle.load(voice.session)]


def test_turns_are_noted(tmp_path: Path) -> None:
    """A turn that a fence breaks costs its tokens; one whose message is refused never called the model."""
    handle, other = (SUBJECTS["gateway-fence"].open(str(tmp_path)) for _ in range(2))
    voice = Voice(handle, "s", 0)
    voice.append()
    voice.take(TURN, 0.0)
    begun = handle.begin("s")
    other.append("s", line_of(MIX, 1, 1))
    with pytest.raises(TurnFailed):
        handle.finish("s", begun, line_of(MIX, 0, 4))
    assert [(turn["reply"], turn["tokens"]) for turn in voice.turns] == [(2, 7)]
    assert _roles(voice) == ["assistant", "user", "assistant", "user"]


def test_a_refused_message_ends_its_turn(tmp_path: Path) -> None:
    """No model is called for it, and who speaks keeps taking turns."""
    from benchmarks.subjects.gateway import GatewayLock, Patience

    handle, other = (GatewayLock(str(tmp_path), patience=Patience(0.0, 0.0)) for _ in range(2))
    voice = Voice(handle, "s", 0)
    voice.append()
    other.begin("s")
    voice.take(TURN, 0.0)
    other.finish("s", None, line_of(MIX, 1, 0))
    voice.take(TURN, 0.0)
    assert [(turn["reply"], turn["tokens"]) for turn in voice.turns] == [(None, 0), (4, 7)]
    assert voice.refused == [1, 2]
    assert _roles(voice) == ["assistant", "assistant", "user", "assistant"]


@pytest.mark.parametrize("name", FOLLOWED)
def test_following_is_checked(tmp_path: Path, name: str) -> None:
    """Each append reaches the follower, once and in order, and the note says how it learned of it."""
    if reason := SUBJECTS[name].missing():
        pytest.skip(f"missing {reason}")
    outcome = FOLLOW.run(SUBJECTS[name], Case("", {"count": 20, "idle_s": 0.05}), str(tmp_path))
    assert outcome.check is not None
    assert outcome.check.is_clean
    assert outcome.check.acknowledged == 20 + 20 + 200
    assert 0 <= outcome.figures["p50"] <= outcome.figures["p99"] <= outcome.figures["max"]
    assert outcome.note.startswith(type(SUBJECTS[name].open(str(tmp_path))).following)


def test_who_has_upkeep() -> None:
    """Those whose handles say what it is take part, and all others say that they have none."""
    takers = {name for name, one in SUBJECTS.items() if UPKEEP.takes(one) is None}
    assert takers >= {"shardstore", "shardstore-unsynced", "sqlite-full", "sqlite-normal"}
    assert UPKEEP.takes(SUBJECTS["jsonl"]) == COMPACTION.takes(SUBJECTS["jsonl"]) == "it has no upkeep"


@pytest.mark.parametrize("left", [True, False])
def test_upkeep_can_be_left(tmp_path: Path, left: bool) -> None:
    """shardstore compacts by itself, unless that was left to `compact`, which then does it whole."""
    handle = SUBJECTS["shardstore-unsynced"].open(str(tmp_path))
    if left:
        handle.leave_upkeep()
    for number in range(1_100):
        handle.append("s", line_of("codex", 0, number))
    handle.close()
    with shardstore.open(str(tmp_path)) as store:
        assert (store.session("s").info().segments == 0) == left
    handle = SUBJECTS["shardstore-unsynced"].open(str(tmp_path))
    handle.compact("s")
    handle.close()
    with shardstore.open(str(tmp_path)) as store:
        assert store.session("s").info().watermark == 1_100


@pytest.mark.parametrize("name", ["shardstore-unsynced", "sqlite-normal"])
def test_compaction_is_measured_whole(tmp_path: Path, name: str) -> None:
    """All records are there after it."""
    outcome = COMPACTION.run(SUBJECTS[name], Case("", {"records": 50}), str(tmp_path))
    assert outcome.check is not None
    assert (outcome.check.is_clean, outcome.check.acknowledged) == (True, 50)
    assert outcome.figures["records_per_s"] == pytest.approx(50 / outcome.figures["took"] * 1e3)


@pytest.mark.parametrize("name", ["shardstore-unsynced", "sqlite-normal"])
def test_upkeep_goes_on_beside_writers(tmp_path: Path, name: str) -> None:
    """It was done at least once, and nothing that was written meanwhile is lost."""
    outcome = UPKEEP.run(SUBJECTS[name], Case("", {"upkeep": BESIDE, "seconds": 0.1}), str(tmp_path))
    assert outcome.check is not None
    assert outcome.check.is_clean
    assert outcome.note.startswith("upkeep ")
    assert not outcome.note.startswith("upkeep 0 times")


@pytest.mark.parametrize("name", ["turns", "follow", "compaction", "upkeep"])
def test_figures_are_those_announced(name: str) -> None:
    """Each scale has cases under names of their own, and each case the arguments of the same run."""
    for scale in ("quick", "usual", "full"):
        cases = WORKLOADS[name].plan(scale).cases  # type: ignore[arg-type]
        assert len({case.name for case in cases}) == len(cases) > 0
        assert len({tuple(sorted(case.arguments)) for case in cases}) == 1
