"""The way in which durable appends reach the disk: which filesystems may have one flush instead of two."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shardstore
from shardstore import InvalidRequest
from shardstore.backends import filesystems, syscalls

TABLE = r"""20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /x rw - xfs /dev/sdb rw,attr2,inode64,logbufs=8
22 20 8:3 / /x/log rw - xfs /dev/sdc rw,attr2,logdev=/dev/sdd,noquota
23 20 8:4 / /x/rt rw - xfs /dev/sde rw,rtdev=/dev/sdf
24 20 0:30 / /b rw - btrfs /dev/sdg rw,subvol=/
25 20 0:31 / /t rw - tmpfs tmpfs rw
26 20 8:5 / /two\040words rw shared:1 - xfs /dev/sdh rw
27 20 8:6 / /a\011tab rw - btrfs /dev/sdi rw
28 20 8:7 / /async rw - ext4 /dev/sda1 rw,journal_async_commit,data=writeback
"""


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, tuple[int, int]]:
    """Let the table of mounts be TABLE, and folders be on the devices that a test puts into the answer."""
    (tmp_path / "mountinfo").write_text(TABLE)
    devices: dict[str, tuple[int, int]] = {}
    really_open, really_stat = open, os.stat

    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        return really_open(tmp_path / "mountinfo" if path == "/proc/self/mountinfo" else path, *args, **kwargs)

    def stat(path: Any, **kwargs: Any) -> Any:
        if path in devices:
            return SimpleNamespace(st_dev=os.makedev(*devices[path]))
        return really_stat(path, **kwargs)

    monkeypatch.setattr(filesystems, "open", opened, raising=False)
    monkeypatch.setattr(os, "stat", stat)
    return devices


@pytest.mark.parametrize(
    ("path", "device", "is_ordered"),
    [
        ("/x/store", (8, 2), True),
        ("/two words", (8, 5), True),
        ("/x/store", (8, 9), False),  # another mount lies over a folder on the way
        ("/x/log/store", (8, 3), False),
        ("/x/rt/store", (8, 4), False),
        ("/b", (0, 30), False),
        ("/t", (0, 31), False),
        ("/a\ttab/store", (8, 6), False),
        ("/async", (8, 7), False),
    ],
)
def test_which_filesystems_commit_in_order(
    system: dict[str, tuple[int, int]], path: str, device: tuple[int, int], *, is_ordered: bool
) -> None:
    """XFS does, with its log and its data on one device; btrfs, and what is in memory, do not."""
    system[path] = device
    assert filesystems.commits_in_order(path) is is_ordered


@pytest.mark.parametrize(
    ("journals", "is_ordered"), [(["sda1-8"], True), (["sda2", "sda-8", "sda11-8"], False), ([], False), (None, False)]
)
def test_ext4_needs_a_journal_of_its_own(
    monkeypatch: pytest.MonkeyPatch, system: dict[str, tuple[int, int]], journals: list[str] | None, *, is_ordered: bool
) -> None:
    """The kernel calls a journal on the same device by that and an inode; one on another device gets no flush here."""
    system["/"] = 8, 1

    def listdir(path: str) -> list[str]:
        assert path == "/proc/fs/jbd2"
        if journals is None:
            raise FileNotFoundError(path)
        return journals

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os, "readlink", lambda path: {"/sys/dev/block/8:1": "../../devices/block/sda1"}[path])
    assert filesystems.commits_in_order("/") is is_ordered


def test_elsewhere_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is not opened, and the error says what to use instead."""
    monkeypatch.setattr(filesystems, "commits_in_order", lambda _: False)
    with pytest.raises(InvalidRequest, match="use 'fdatasync'"):
        shardstore.open(tmp_path / "store", sync_method="sync_file_range")
    shardstore.open(tmp_path / "store").session("s").append(b"{}\n")
    with pytest.raises(InvalidRequest, match="use 'fdatasync'"):
        shardstore.open(tmp_path / "store", sync_method="sync_file_range")


def test_the_folder_of_sessions_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another filesystem than the store's own folder."""
    shardstore.open(tmp_path / "store").session("s").append(b"{}\n")
    monkeypatch.setattr(filesystems, "commits_in_order", lambda path: not path.endswith("/sessions"))
    with pytest.raises(InvalidRequest, match="/sessions"):
        shardstore.open(tmp_path / "store", sync_method="sync_file_range")


def test_a_method_that_does_not_exist(tmp_path: Path) -> None:
    """The error names those that do."""
    with pytest.raises(InvalidRequest, match="fdatasync"):
        shardstore.open(tmp_path / "store", sync_method="fsync")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="sync_file_range is Linux's")
def test_new_files_are_written_back_before_they_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each durable create hands its bytes to the disk, then links them, then flushes the folder."""
    monkeypatch.setattr(filesystems, "commits_in_order", lambda _: True)
    session = shardstore.open(tmp_path / "store", sync_method="sync_file_range").session("s")
    session.append(b"0\n")
    calls: list[str] = []
    for name in ("write_back", "flush_data", "link_named", "flush_folder"):
        monkeypatch.setattr(syscalls, name, _noting(calls, name, getattr(syscalls, name)))
    session.append(b"1\n")
    assert calls == ["write_back", "link_named", "flush_folder"]
    assert [record.payload for record in session.records()] == [b"0\n", b"1\n"]


def _noting(calls: list[str], name: str, call: Any) -> Any:
    def noted(*args: Any) -> Any:
        calls.append(name)
        return call(*args)

    return noted


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="sync_file_range is Linux's")
def test_what_can_not_be_written_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure before the link leaves nothing visible: the append may be tried again."""
    monkeypatch.setattr(filesystems, "commits_in_order", lambda _: True)
    session = shardstore.open(tmp_path / "store", sync_method="sync_file_range").session("s")
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "_sync_file_range", lambda: lambda fd, flags: 5)
        with pytest.raises(shardstore.Unavailable):
            session.append(b"0\n")
    assert session.append(b"0\n").seq == 1
    with pytest.raises(OSError, match="descriptor"):
        syscalls.write_back(10_000)
