"""Real filesystems after a power cut: each keeps what was acknowledged, whatever its disk kept of unflushed writes.

Purpose: test the assumptions of FORMAT.md on the filesystems that this kernel has.
Rule: it needs root, loop devices and FUSE, and says so where it skips. Filesystems that are known to break promises
are tried by the command alone, which says what is known of them.
Strategy: a few moments each (SHARDSTORE_POWER_SCALE multiplies them); `python -m tests.powerloss --real all` takes any.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from power_block import FLUSH, command, read_log, recorded_disk
from power_real import KINDS, Trial, lacking, lacks, try_filesystem

from shardstore.backends import groupsync, syscalls

CUTS = 2 * int(os.environ.get("SHARDSTORE_POWER_SCALE", "1"))
KNOWN_CUTS = 8


@pytest.fixture(autouse=True)
def machine() -> None:
    """Skip where filesystems can't be mounted."""
    if lacking():
        pytest.skip(lacking())


def tried(name: str, cuts: int) -> Trial:
    """Try a filesystem; skip where this machine lacks it."""
    if lacks(name):
        pytest.skip(lacks(name))
    try:
        return try_filesystem(name, cuts, 1, "/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    except OSError as error:
        pytest.skip(f"{name} can't be made or mounted here: {error}")


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.known])
def test_a_filesystem_keeps_what_was_acknowledged(name: str) -> None:
    """After a cut with none, all or some of the unflushed writes kept, every image mounts and keeps every promise."""
    trial = tried(name, CUTS)
    assert not trial.broken, trial.note
    assert trial.images >= 3
    assert trial.compared


def skipped(*_: object) -> None:
    """Do nothing."""


def test_a_filesystem_without_flushes_is_found_out() -> None:
    """An engine that never flushes loses acknowledged records on a real filesystem, and the trial says so."""
    with (
        patch.object(syscalls, "flush_data", skipped),
        patch.object(syscalls, "flush_filesystem", skipped),
        patch.object(groupsync.GroupSync, "sync", skipped),
        patch("shardstore.backends.local.LocalBackend._sync_above", skipped),
    ):
        assert tried("ext4", KNOWN_CUTS).broken


@pytest.mark.parametrize("name", ["ext4", "ext4-writeback", "ext4-data-journal", "ext4-fsck", "xfs"])
def test_a_flush_of_a_folder_commits_what_was_written_back(name: str) -> None:
    """Where a journal commits in order, handing a file to the disk is enough before its folder is flushed."""
    with patch.object(syscalls, "flush_data", syscalls.write_back):
        trial = tried(name, CUTS)
    assert not trial.broken, trial.note
    assert trial.compared


@pytest.mark.parametrize("name", ["btrfs", "ext4-no-journal"])
def test_where_it_does_not_promises_are_broken(name: str) -> None:
    """These lose acknowledged records that way, which is why it is refused there."""
    with patch.object(syscalls, "flush_data", syscalls.write_back):
        assert tried(name, KNOWN_CUTS).broken


def test_the_disk_keeps_writes_and_flushes_in_order(tmp_path: Path) -> None:
    """What is written and flushed through the recorded disk stands in its log, and the log gives the image."""
    image, log = tmp_path / "image", tmp_path / "log"
    image.write_bytes(bytes(1 << 20))
    with recorded_disk(image, log) as loop:
        fd = os.open(loop, os.O_RDWR)
        try:
            for number in range(3):
                os.pwrite(fd, b"%d" % number * 4096, number * 8192)
                os.fsync(fd)
        finally:
            os.close(fd)
    played = bytearray(1 << 20)
    order = []
    for _, kind, offset, data in read_log(log):
        order.append("flush" if kind == FLUSH else f"{offset}")
        played[offset : offset + len(data)] = data
    assert bytes(played) == image.read_bytes()
    assert bytes(played[16384:20480]) == b"2" * 4096
    for earlier, later in (("0", "8192"), ("8192", "16384")):
        assert "flush" in order[order.index(earlier) : order.index(later)]


def test_no_disk_is_left_behind(tmp_path: Path) -> None:
    """After a disk was used, no loop device and no mount of it is left."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with recorded_disk(image, tmp_path / "log"):
        assert str(tmp_path) in command("losetup", "--all", "--output", "NAME,BACK-FILE")
    assert str(tmp_path) not in command("losetup", "--all", "--output", "NAME,BACK-FILE")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
