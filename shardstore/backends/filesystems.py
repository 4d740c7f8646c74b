"""Which filesystem a folder lies on, and which ones can't carry a store.

A retransmitted LINK on NFS can answer "exists" for one's own shard, and attribute caches on NFS, SMB and FUSE make the
look at the manifest stale: both break the protocol silently, so such folders are refused at open.
"""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple, get_args

from shardstore.errors import InvalidRequest, Unavailable, describe

__all__ = ["FLUSHED_WHOLE", "SyncMethod", "commits_in_order", "filesystem_of", "refuse_remote", "refuse_unordered"]

SyncMethod = Literal["fdatasync", "sync_file_range"]

# syncfs tells here of what could not be written; overlay's keeps to itself what the layer below could not write
FLUSHED_WHOLE = ("btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs")
_OCTAL = re.compile(r"\\([0-7]{3})")
_REFUSED = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "lustre", "virtiofs")
_LOCAL_FUSE = ("fuseblk",)  # ntfs-3g and the like: a local disk behind a local daemon


class _Mount(NamedTuple):
    """One line of Linux's mount table: the device as "major:minor", the filesystem's type, its options."""

    device: str
    kind: str
    options: list[str]


def _mount_of(path: str) -> _Mount:
    """Return the mount that holds `path`, with empty fields where the system has no such table."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            lines = table.read().splitlines()
    except FileNotFoundError:
        return _Mount("", "", [])
    real = os.path.realpath(path)
    longest, found = -1, _Mount("", "", [])
    for line in lines:  # of mounts on the same folder the last one counts
        mount, _, rest = line.partition(" - ")
        _, _, device, _, quoted, *_ = mount.split(" ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), quoted).rstrip("/")
        if (real == point or real.startswith(point + "/")) and len(point) >= longest:
            kind, _, options = rest.split(" ", 2)
            longest, found = len(point), _Mount(device, kind, options.split(","))
    return found


def filesystem_of(path: str) -> str:
    """Return the type of the filesystem that holds `path`, as Linux's mount table names it, or "" where unknown."""
    return _mount_of(path).kind


def commits_in_order(path: str) -> bool:
    """Say whether a flush of a folder commits what entered the journal before, of whatever file; False if unknown.

    True of ext4 and of XFS that have journal and data on one device (FORMAT.md says why). The mount table is believed
    only where it names the device that the folder itself is on: another mount may lie over the one that it seems to be.
    """
    mount, device = _mount_of(path), os.stat(path).st_dev
    if mount.device != f"{os.major(device)}:{os.minor(device)}":
        return False
    if mount.kind == "xfs":
        return not any(option.startswith(("logdev=", "rtdev=")) for option in mount.options)
    return mount.kind == "ext4" and "journal_async_commit" not in mount.options and _has_own_journal(mount.device)


def _has_own_journal(device: str) -> bool:
    """Say whether ext4 on a block device keeps its journal there: then it is called by device and inode."""
    try:
        disk = os.path.basename(os.readlink(f"/sys/dev/block/{device}"))
        return any(re.fullmatch(re.escape(disk) + r"-\d+", name) for name in os.listdir("/proc/fs/jbd2"))
    except OSError:
        return False


def refuse_remote(path: str) -> str:
    """Return the filesystem's type. Raises Unavailable if a store on it would not be safe."""
    kind = filesystem_of(path)
    if kind.startswith(_REFUSED) and kind not in _LOCAL_FUSE:
        raise Unavailable(
            describe(
                "a store on a network or FUSE filesystem would lose the guarantees; use a local disk, or an object "
                "store for several machines",
                path=path,
                filesystem=kind,
            )
        )
    return kind


def refuse_unordered(sync_method: str, *paths: str) -> None:
    """Raise InvalidRequest for a method that does not exist, or would not do on the filesystems of these folders."""
    if sync_method not in get_args(SyncMethod):
        raise InvalidRequest(describe("no such sync_method", sync_method=sync_method, methods=get_args(SyncMethod)))
    for path in paths if sync_method == "sync_file_range" else ():
        if os.path.isdir(path) and not commits_in_order(path):
            raise InvalidRequest(
                describe(
                    "sync_method='sync_file_range' needs ext4 with a journal, or XFS on one device; use 'fdatasync'",
                    path=path,
                    filesystem=filesystem_of(path),
                )
            )
