"""What is deleted is held until its deletion is durable, and no longer: no inode is another's too early, none is kept.

Without a journal a power loss brings a deleted name back, and a file that took the inode meanwhile would have two.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mishaps import ID, build, folder, fresh

import shardstore
from shardstore.backends import handles
from shardstore.backends.groupsync import GroupSync
from shardstore.backends.local import LocalBackend

PREFIX = f"sessions/{ID}/shards"

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of descriptors here")


def deleted() -> list[str]:
    """Return the deleted files that this process holds."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
        if target.endswith(" (deleted)"):
            found.append(target)
    return found


def test_a_deleted_file_is_held_until_its_folder_was_flushed(tmp_path: Path) -> None:
    """A delete leaves the file held; settling the folder lets go of it."""
    build(tmp_path, 3)
    before = len(deleted())
    backend = LocalBackend(str(tmp_path))
    backend.delete(f"{PREFIX}/{3:020d}.shard")
    assert len(deleted()) == before + 1
    backend.settle(PREFIX)
    assert len(deleted()) == before


def test_a_flush_lets_go_of_what_was_removed_before_it_alone(tmp_path: Path) -> None:
    """What another thread removes while a flush runs stays held until the next one."""
    held = handles.Folder(os.open(tmp_path, os.O_RDONLY))
    (tmp_path / "file").touch()
    late = handles.Removed(os.open(tmp_path / "file", os.O_RDONLY))
    early = os.open(tmp_path / "file", os.O_RDONLY)
    held.removed.append(handles.Removed(early))

    def flush() -> None:
        os.fstat(early)  # raises if it was let go of before the flush
        held.removed.append(late)

    held.group = GroupSync(flush)
    held.sync()
    assert held.removed == [late]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(early)


@pytest.mark.parametrize("deed", ["compact", "delete", "repair"])
def test_nothing_stays_held(tmp_path: Path, deed: str) -> None:
    """After a compaction, a deletion with many damaged files kept, or a repair, no deleted file is held."""
    build(tmp_path, 5, compact_at=(3,))
    (folder(tmp_path) / "damaged").mkdir()
    for number in range(50):
        (folder(tmp_path) / "damaged" / str(number)).touch()
    before = set(deleted())
    store, session = fresh(tmp_path)
    if deed == "repair":
        (folder(tmp_path) / "shards" / f"{10**9:020d}.shard").write_bytes(b"far away")
    {"compact": session.compact, "delete": session.delete, "repair": store.repair}[deed]()  # type: ignore[operator]
    if deed == "delete":
        session.compact()
    assert [name for name in set(deleted()) - before if str(tmp_path) in name and "manifest" not in name] == []
    store.close()


def test_a_shard_above_a_tombstone_is_swept(tmp_path: Path) -> None:
    """What a writer left in a session that was deleted meanwhile goes with the rest, wherever it lies."""
    build(tmp_path, 3)
    late = (folder(tmp_path) / "shards" / f"{2:020d}.shard").read_bytes()
    session = fresh(tmp_path)[1]
    session.delete()
    above = folder(tmp_path) / "shards" / f"{session.info().watermark + 5:020d}.shard"
    above.write_bytes(late)
    session.compact()
    assert not above.exists()


def test_deleting_goes_on_without_a_descriptor_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left to hold another file, those that are held are let go of by a flush first."""
    build(tmp_path, 3)
    backend = LocalBackend(str(tmp_path))
    opened, failed = os.open, []

    def scarce(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & os.O_PATH and not failed:
            failed.append(path)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

    backend.delete(f"{PREFIX}/{2:020d}.shard")
    monkeypatch.setattr(os, "open", scarce)
    backend.delete(f"{PREFIX}/{3:020d}.shard")
    assert failed
    assert backend.read(f"{PREFIX}/{3:020d}.shard") is None


def test_a_hint_is_read_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may only read sees the same signs of a lost manifest as the owner."""
    build(tmp_path, 3)
    opened = os.open

    def read_only(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

    for file in (folder(tmp_path) / "shards").iterdir():
        file.unlink()
    (folder(tmp_path) / "manifest.json").unlink()
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(shardstore.Corrupt, match="manifest is missing"):
        fresh(tmp_path)[1].head()
