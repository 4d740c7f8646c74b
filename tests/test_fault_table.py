"""Every fault against every operation, and the page that says what becomes of it.

Rule: the page is measured here, not believed: all trials run, their judges judge, and what they found must be what
FAULTS.md says, cell by cell. Where a change is meant, `python -m tests.faults --write` writes the page anew.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cases import CALLS_MAX, FAULTS, WEATHER, Endless, Fault, Injection, Weather
from fault_operations import OPERATIONS, Template, World, template
from fault_swaps import SWAPS, Swap, swap_cells
from faults import committed, one_cell, untruths
from fuzzing_stores import playground
from mishaps import fresh, shard
from small_disks import DISKS, Disk, NotMountableError, disk_cells
from test_every_call import open_descriptors

from shardstore import Unavailable
from shardstore.backends.base import Draft
from shardstore.backends.local import TEMP_AGE_S, LocalBackend


@pytest.fixture(scope="module")
def made() -> Template:
    """Return the store of the trials."""
    return template()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory, where there is one."""
    with playground() as play:
        yield play.path.parent


@pytest.mark.parametrize("fault", [*FAULTS, *WEATHER], ids=lambda fault: fault.row)
def test_fault(fault: Fault | Weather, made: Template, folder: Path) -> None:
    """Each operation answers with the truth, the store keeps every promise, and the page says which answer it is."""
    gc.collect()
    before = open_descriptors()
    cells: dict[str, list[str]] = {}
    for operation in OPERATIONS:
        cells.setdefault(operation.group, []).append(one_cell(fault, operation, made, folder))
    gc.collect()
    assert open_descriptors() <= before, "a descriptor was leaked"
    shown = [text for row in cells.values() if set(row) != {"–"} for text in row]
    assert shown == committed()[fault.row], "FAULTS.md says otherwise; see `python -m tests.faults --help`"
    assert untruths({group: {fault.row: row} for group, row in cells.items()}) == set()


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.row)
def test_swap(swap: Swap, made: Template, folder: Path) -> None:
    """A folder is swapped and put back: nothing is lost, nothing goes through a symlink, and the page says the rest."""
    assert swap_cells(swap, made, folder / "trial") == committed()[swap.row]


@pytest.mark.parametrize("disk", DISKS, ids=lambda disk: disk.row)
def test_small_disk(disk: Disk, tmp_path: Path) -> None:
    """On a real filesystem without room every write is refused, every read goes on, and room cures all of it."""
    try:
        cells = disk_cells(disk, tmp_path)
    except NotMountableError as reason:
        pytest.skip(f"this machine can't mount it: {reason}")
    assert cells == committed()[disk.row]


def test_page_has_no_other_rows() -> None:
    """Each row of the page belongs to a trial, so that none outlives it."""
    known = {"fault", "folder", "filesystem", *(case.row for case in (*FAULTS, *WEATHER, *SWAPS, *DISKS))}
    assert set(committed()) <= known


# ------------------------------------------------------------------ the clock and a creation under way


def test_sweep_by_a_clock_that_is_ahead(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep whose clock is ahead takes a file from under a running creation: that one is refused, or it is there."""
    store, session = fresh(store_path)
    session.append(b"one\n")
    backend = LocalBackend(os.path.realpath(store_path))
    draft = Draft((shard(store_path, 1).read_bytes(),))
    backend.stage("sessions/a/shards", draft, sync=True)
    ahead = time.time() + TEMP_AGE_S + 60
    monkeypatch.setattr("time.time", lambda: ahead)
    store.session("a").compact()
    monkeypatch.undo()
    with pytest.raises(Unavailable):
        backend.create("sessions/a/shards/00000000000000000002.shard", draft, sync=True)
    assert session.append(b"two\n").seq == 2
    assert [record.payload for record in session.records()] == [b"one\n", b"two\n"]
    backend.close()


# ------------------------------------------------------------------ the judges themselves


def test_judges_notice_a_lost_record(made: Template, folder: Path) -> None:
    """A record that is gone, and one that is there though it was refused, fail the trial."""
    appending = next(operation for operation in OPERATIONS if operation.name == "append, sync")
    world = World(made, folder / "trial")
    world.warm("plain")
    got = appending.run(world)
    appending.judge(world, "plain", got)
    with pytest.raises(AssertionError):
        appending.judge(world, "plain", type(got)("refused", error=Unavailable("no")))
    os.unlink(world.path / "sessions/plain/shards" / f"{got.value.seq:020d}.shard")
    with pytest.raises(AssertionError):
        appending.judge(world, "plain", got)
    world.close()


def test_an_endless_operation_is_noticed() -> None:
    """A call that is repeated for ever against a fault that stays ends the trial."""
    injection = Injection(FAULTS[0], lambda _: False)
    reader, writer = os.pipe()
    with pytest.raises(Endless), injection.active():
        _write_for_ever(writer)
    os.close(reader)
    os.close(writer)


def _write_for_ever(descriptor: int) -> None:
    for _ in range(CALLS_MAX + 1):
        os.write(descriptor, b"x")
