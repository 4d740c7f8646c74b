"""Real filesystems of a few megabytes, full to the last byte or the last inode: what each operation answers there.

Rule: nothing is injected. A writer appends until the disk refuses in the middle of a record, then everything else is
asked; afterwards room is made and the same handles must go on. What was acknowledged is there all along.
Strategy: a filesystem in memory, and one of each disk format in an image file, mounted through a loop device. Only root
may mount; whoever asks elsewhere gets `NotMountableError` with the reason.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_operations import answer
from mishaps import damages, fresh

import shardstore
from shardstore import Record, Unavailable

__all__ = ["COLUMNS", "DISKS", "Disk", "NotMountableError", "disk_cells"]

TOOL_S = 60  # ends a hang of mkfs or mount
APPENDS_MAX = 100_000  # far more than any of these disks holds
EARLY = 4  # records before the disk is filled
CHUNKS_BYTES = (1 << 20, 1 << 12, 1)
FULL = ("append", "append with a key", "first append", "import", "compact", "archive", "read all", "verify", "delete")
COLUMNS = (*FULL, "with room again: append", "compact, then verify")


class NotMountableError(Exception):
    """This machine does not allow it; the reason says why."""


@dataclass(frozen=True)
class Disk:
    """A kind of filesystem: its size, how it is made (None: in memory), and what it runs out of."""

    row: str
    kind: str
    size_mb: int
    options: str
    make: tuple[str, ...] = ()
    inodes: bool = False
    record_bytes: int = 6_000
    kept: int = 40  # files, as large as a record, that make room again before the last appends


DISKS = [
    Disk("tmpfs, no byte left", "tmpfs", 2, "size=2m"),
    Disk("tmpfs, no inode left", "tmpfs", 4, "size=4m,nr_inodes=120", inodes=True),
    Disk("ext4, no block left", "ext4", 8, "loop", ("mkfs.ext4", "-q", "-m", "0")),
    Disk("ext4, no inode left", "ext4", 8, "loop", ("mkfs.ext4", "-q", "-N", "128"), inodes=True),
    Disk("XFS, no block left", "xfs", 300, "loop", ("mkfs.xfs", "-q")),
    Disk("btrfs, no block left", "btrfs", 120, "loop", ("mkfs.btrfs", "-q", "-M"), record_bytes=60_000, kept=150),
]


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TOOL_S)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        raise NotMountableError(f"{command[0]}: {error} {detail.decode(errors='replace').strip()}") from error


@contextmanager
def mounted(disk: Disk, folder: Path) -> Iterator[Path]:
    """Mount such a filesystem for the block. Raises NotMountableError."""
    if os.geteuid():
        raise NotMountableError("only root may mount")
    target, image = folder / "mount", folder / "image"
    target.mkdir(parents=True)
    source = "tmpfs"
    if disk.make:
        source = str(image)
        image.touch()
        os.truncate(image, disk.size_mb << 20)
        _run(*disk.make, source)
    _run("mount", "-t", disk.kind, "-o", disk.options, source, str(target))
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True, capture_output=True, timeout=TOOL_S)
        shutil.rmtree(folder)


def disk_cells(disk: Disk, folder: Path) -> list[str]:
    """Return what each operation answers on such a disk once it is full. Raises NotMountableError."""
    with mounted(disk, folder / "disk") as place:
        return _trial(disk, place)


def _trial(disk: Disk, place: Path) -> list[str]:
    ballast = place / "ballast"
    ballast.mkdir()
    payload = b"x" * disk.record_bytes
    kept = [ballast / f"kept-{number}" for number in range(disk.kept)]
    for file in kept:
        file.write_bytes(payload)
    store, session = fresh(place / "store")
    doomed = store.session("doomed")
    for number in range(EARLY):
        session.append(b"early %d\n" % number)
        doomed.append(b"doomed %d\n" % number)
    session.compact()
    _fill(ballast, inodes=disk.inodes)
    for file in kept:
        file.unlink()  # room for some records, so that one of them finds the end in its middle
    _run("sync", "-f", str(place))  # btrfs gives deleted room back with its next transaction
    known = _append_until_full(session, payload)
    assert len(known) > EARLY, "the disk was full before the first record"
    cells = [_cell(call) for call in _asked(store, session, doomed, payload).values()]
    assert list(fresh(place / "store")[1].records()) == known, "a full disk lost a record"
    assert damages(store.session(session.id).verify()) == []
    shutil.rmtree(ballast)
    _run("sync", "-f", str(place))
    cells.append(_cell(lambda: session.append(b"room again\n")))
    cells.append(_cell(lambda: (session.compact(), damages(store.session(session.id).verify()))))
    assert [record.payload for record in session.records()][-1] == b"room again\n"
    store.close()
    return cells


def _cell(call: Callable[[], Any]) -> str:
    """Return what a call answers; a full disk is Unavailable with ENOSPC and nothing else."""
    got = answer(call)
    if isinstance(got.error, Unavailable):
        assert got.error.errno in (errno.ENOSPC, errno.EDQUOT), got.error
    return got.label


def _asked(
    store: shardstore.Store, session: shardstore.Session, doomed: shardstore.Session, payload: bytes
) -> dict[str, Callable[[], Any]]:
    calls: list[Callable[[], Any]] = [
        lambda: session.append(payload),
        lambda: session.append(payload, key="new"),
        lambda: store.session("new").append(payload),
        lambda: store.import_session("imported", [payload] * 3),
        session.compact,
        session.archive,
        lambda: list(session.records()),
        session.verify,
        doomed.delete,
    ]
    return dict(zip(FULL, calls, strict=True))


def _append_until_full(session: shardstore.Session, payload: bytes) -> list[Record]:
    """Append until the disk refuses; what was acknowledged is what is there."""
    for told in range(APPENDS_MAX):
        got = answer(lambda: session.append(payload))
        if got.label != "done":
            assert got.label == "refused", got
            records = list(session.records())
            assert len(records) == told + EARLY
            return records
    raise AssertionError("the disk never got full")


def _fill(ballast: Path, *, inodes: bool) -> None:
    """Leave no room: no inode, or no byte that a file could take."""
    with suppress(OSError):
        for number in range(APPENDS_MAX if inodes else 0):
            (ballast / str(number)).touch()
    for size in () if inodes else CHUNKS_BYTES:
        with suppress(OSError), (ballast / "filler").open("ab", buffering=0) as file:
            for _ in range(APPENDS_MAX):
                file.write(bytes(size))
