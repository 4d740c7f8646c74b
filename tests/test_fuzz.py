"""Any bytes in the place of any object: a record, or a typed error; never a crash, a hang, or a wrong record.

Rule: the targets are those of `fuzzing` and `fuzzing_stores`, which the command `python -m tests.fuzz` drives for as
long as one likes; here hypothesis tries a fixed number of inputs for each, the same ones every time.
SHARDSTORE_FUZZ is that number; more of them find more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fuzzing import MEMORY_BYTES, MEMORY_FACTOR, PURE, STEPS_MAX, Broken, Choices, bounded, edited
from fuzzing_stores import STORES, Play, playground, targets, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mishaps import python

EXAMPLES = int(os.environ.get("SHARDSTORE_FUZZ", "150"))
FIXED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FOUND = {  # inputs that once broke a promise: what they broke, and the target
    "an offset beyond 63 bits": ("forged_manifest", "00070708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324"),
    "a key of a record elsewhere": (
        "forged_segment",
        "8db052b2c9794782899bb03b319d906defd49d7c7e4c0a106e1d3997b3c025b9",
    ),
    "a count beyond memory": ("forged_facts", "186afd9f2e378aa92f9ce061b5b41161b2712a95e3bc2f0398b3de9bbeea7e12"),
    "a tombstone with segments": ("forged_manifest", "0007070841090a0b300003030800030321"),
    "2**32 pages of keys": ("forged_facts", "9c3695478b2d34f6e1f3c9a41466103dff1ad412440c761be441148e3c4cc370"),
}


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """Return a place for stores."""
    with playground() as place:
        yield place


def inputs(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return seeds, edited seeds, and any bytes."""
    seed = st.sampled_from(seeds)
    edits = st.builds(lambda data, by: edited(data, Choices(by)), seed, st.binary(max_size=60))
    return st.one_of(seed, edits, st.binary(max_size=80))


@pytest.mark.parametrize("name", PURE)
def test_decoders(name: str) -> None:
    """A decoder returns what the bytes say or raises a typed error, also behind a right checksum."""
    run, seeds = PURE[name]

    @FIXED
    @given(inputs(seeds()))
    def check(data: bytes) -> None:
        run(data)

    check()


@pytest.mark.parametrize("name", STORES)
def test_stores(play: Play, name: str) -> None:
    """Whatever one object of a store holds, every call answers with what was written or a typed error."""
    run, seeds = targets(play)[name]

    @FIXED
    @given(inputs(seeds))
    def check(data: bytes) -> None:
        run(data)

    check()


@pytest.mark.parametrize("found", FOUND)
def test_found(play: Play, found: str) -> None:
    """What once broke a promise keeps it."""
    name, data = FOUND[found]
    trial(play, name, bytes.fromhex(data))


@pytest.mark.parametrize("name", STORES)
def test_memory(play: Play, name: str) -> None:
    """No call takes more memory than a named multiple of what lies there."""
    seeds = targets(play)[name][1]

    @settings(FIXED, max_examples=max(EXAMPLES // 10, 1))
    @given(inputs(seeds))
    def check(data: bytes) -> None:
        trial(play, name, data, memory=True)

    check()


# ------------------------------------------------------------------ the judges themselves


def test_judges_notice_a_wrong_record(play: Play) -> None:
    """A store that answers another record than the one that was written fails its trial."""
    whole = play.templates[0]
    seed = targets(play)["any_bytes"][1][0]
    trial(play, "any_bytes", seed)
    other = whole.records[4].payload.replace(b"x", b"y")
    try:
        play.templates[0] = whole._replace(
            records=[*whole.records[:4], type(whole.records[4])(**_facts(whole.records[4], other)), *whole.records[5:]]
        )
        with pytest.raises(AssertionError, match="wrong record"):
            trial(play, "any_bytes", seed)
    finally:
        play.templates[0] = whole


def _facts(record: object, payload: bytes) -> dict[str, object]:
    facts = {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]
    return {**facts, "payload": payload}


def test_bounds_end_what_does_not_end() -> None:
    """Too many system calls, and too much memory, break the promise wherever they happen."""
    with pytest.raises(Broken, match="system calls"), bounded(0):
        [os.stat("/") for _ in range(STEPS_MAX + 1)]
    with pytest.raises(Broken, match="memory"), bounded(10, memory=True):
        bytes(MEMORY_BYTES + 20 * MEMORY_FACTOR)
    with bounded(20, memory=True):
        bytes(MEMORY_BYTES)


REPLAY = """
import runpy, sys
sys.argv = ["fuzz", *sys.argv[1:]]
runpy.run_module("tests.fuzz", run_name="__main__")
"""


@pytest.mark.parametrize("name", ["shard", "any_edits"])
def test_an_input_can_be_replayed(tmp_path: os.PathLike[str], name: str) -> None:
    """A kept input plays again by one command, which names the target by the file's name and says that it held."""
    kept = os.path.join(tmp_path, f"{name}-crash-0")
    with open(kept, "wb") as file:
        file.write(bytes(40))
    answer = python(REPLAY, "--replay", kept)
    assert answer.returncode == 0, answer.stderr
    assert "held" in answer.stdout
