"""A folder of the store is swapped for something else between two calls, and later put back.

Rule: nothing is written or read through a symlink; what was acknowledged meanwhile is found afterwards in the folder
that was put back or in the one that stood in its place, once; and when the folder is back, everything works again.
Strategy: each swap is tried on a handle that has been used (it holds descriptors of the old folders) and on a new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_operations import Answer, Template, World, answer
from mishaps import damages, fresh, tree

import shardstore
from shardstore import Record, ShardstoreError

__all__ = ["ASKED", "SWAPS", "Swap", "swap_cells"]

NAME = "merge"  # the session under trial: a segment and shards
MARK = b"while it was away\n"


@dataclass(frozen=True)
class Swap:
    """A folder of the store, and what takes its place."""

    place: str
    kind: str
    put: Callable[[Path, Path], object]

    @property
    def row(self) -> str:
        """Return the swap as the table names it."""
        return f"{self.place} {self.kind}"


def _fresh_folder(place: Path, _: Path) -> None:
    place.mkdir(mode=0o700)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "is a symlink to elsewhere": lambda place, elsewhere: place.symlink_to(elsewhere),
    "is gone": lambda place, elsewhere: None,
    "is a file": lambda place, elsewhere: place.write_bytes(b"a file\n"),
    "is a new, empty folder": _fresh_folder,
}
PLACES = {
    "the store's folder": "",
    "the folder `sessions`": "sessions",
    "the session's folder": f"sessions/{NAME}",
    "the folder `shards`": f"sessions/{NAME}/shards",
    "the folder `segments`": f"sessions/{NAME}/segments",
}
SWAPS = [Swap(place, kind, put) for place in PLACES for kind, put in KINDS.items()]

ASKED: dict[str, Callable[[shardstore.Session], Any]] = {
    "append": lambda session: session.append(MARK),
    "append with a key": lambda session: session.append(MARK, key="away"),
    "read all": lambda session: list(session.records()),
    "compact": lambda session: session.compact(),
    "verify": lambda session: session.verify(),
}


def swap_cells(swap: Swap, made: Template, folder: Path) -> list[str]:
    """Return the answers to everything that is asked while the swap lasts: by a held handle, then by a new one."""
    return [_trial(swap, ask, made, folder, held=held) for held in (True, False) for ask in ASKED]


def _trial(swap: Swap, ask: str, made: Template, folder: Path, *, held: bool) -> str:
    world = World(made, folder)
    world.warm(NAME)
    place, aside, elsewhere = world.path / PLACES[swap.place], folder / "aside", folder / "elsewhere"
    elsewhere.mkdir()
    place.rename(aside)
    swap.put(place, elsewhere)
    got = answer(lambda: ASKED[ask](world.session(NAME) if held else _new(world)))
    assert tree(elsewhere) == {}, "something was written through a symlink"
    assert list(elsewhere.iterdir()) == []
    instead = _put_back(place, aside, folder / "instead")
    said = _judged(world, ask, got, instead)
    _works_again(world, ask, got)
    world.close()
    return said


def _new(world: World) -> shardstore.Session:
    return shardstore.open(world.path, create=False, compact_shards=None).session(NAME)


def _put_back(place: Path, aside: Path, instead: Path) -> Path:
    """Put the folder back; what stood in its place lies at `instead`, as a store of its own where it can be one."""
    shutil.rmtree(instead, ignore_errors=True)
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        place.rename(instead)
    aside.rename(place)
    if place.name == "segments" and instead.is_dir():  # no two segments ever have one name: both folders' belong there
        shutil.copytree(instead, place, dirs_exist_ok=True)
    return instead


def _judged(world: World, ask: str, got: Answer, instead: Path) -> str:
    """What was there is there, and what was acknowledged is there or in what stood in its place, once."""
    with fresh(world.path)[0] as store:
        records = list(store.session(NAME).records())
        assert records[: len(world.records[NAME])] == world.records[NAME]
        assert damages(store.verify()) == []
    here = [record for record in records if record.payload == MARK]
    there = sum(MARK in data for data in tree(instead).values()) if instead.is_dir() else 0
    assert len(here) + there <= 1, "it is there twice"
    if got.label == "refused":
        assert not here, "what was refused is there"
    if got.label != "done":
        return got.label
    return _done(world, ask, got, here, there)


def _done(world: World, ask: str, got: Answer, here: list[Record], there: int) -> str:
    if ask.startswith("append"):
        assert len(here) + there == 1, "what was acknowledged is lost"
        return "done, in the old folder" if here else "done, in the new folder"
    if ask == "read all":
        if got.value == world.records[NAME]:
            return "done"
        assert got.value == world.records[NAME][: len(got.value)], "a reader saw another log"
        return f"the first {len(got.value)} of {len(world.records[NAME])}"
    return "done" if ask == "compact" or not damages(got.value) else "names damage"


def _works_again(world: World, ask: str, got: Answer) -> None:
    """With the folder back, the held handle appends and reads; one call may say first that the session was another."""
    for _ in range(2):
        try:
            receipt = world.session(NAME).append(b"back\n")
        except ShardstoreError:
            continue
        with fresh(world.path)[0] as store:
            assert [record.nonce for record in store.session(NAME).records(receipt.seq, receipt.seq)] == [receipt.nonce]
        return
    raise AssertionError(f"the held handle does not come back after {ask}: {got}")
