"""Which filesystem a folder lies on, and which ones can't carry a store.

A retransmitted LINK on NFS can answer "exists" for one's own shard, and attribute caches on NFS, SMB and FUSE make the
look at the manifest stale: both break the protocol silently, so such folders are refused at open.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from shardstore.errors import InvalidRequest, Unavailable, describe

__all__ = ["FLUSHED_WHOLE", "SyncMethod", "commits_in_order", "filesystem_of", "refuse_remote", "refuse_unordered"]

SyncMethod = Literal["fdatasync", "sync_file_range"]

# syncfs tells here of what could not be written; overlay's keeps to itself what the layer below could not write
FLUSHED_WHOLE = ("btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs")
_REFUSED = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "lustre", "virtiofs")
_LOCAL_FUSE = ("fuseblk",)  # ntfs-3g and the like: a local disk behind a local daemon


def _mount_of(path: str) -> tuple[str, str]:
    """Return (type, options) of the filesystem that holds `path` from Linux's mount table, or ("", "") if unknown."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            lines = table.read().splitlines()
    except FileNotFoundError:
        return "", ""
    real = os.path.realpath(path)
    longest, found = -1, ("", "")
    for line in lines:  # of mounts on the same folder the last one counts
        mount, _, rest = line.partition(" - ")
        point = mount.split(" ")[4].replace("\\040", " ").replace("\\134", "\\").rstrip("/")
        if (real == point or real.startswith(point + "/")) and len(point) >= longest:
            kind, _, options = rest.split(" ", 2)
            longest, found = len(point), (kind, options)
    return found


def filesystem_of(path: str) -> str:
    """Return the type of the filesystem that holds `path`, as Linux's mount table names it, or "" where unknown."""
    return _mount_of(path)[0]


def commits_in_order(path: str) -> bool:
    """Say whether a flush of a folder commits what entered the journal before, of whatever file; False if unknown.

    True of ext4 that has a journal, and of XFS that has log and data on one device (FORMAT.md says why).
    """
    kind, options = _mount_of(path)
    if kind == "xfs":
        return not any(option.startswith(("logdev=", "rtdev=")) for option in options.split(","))
    return kind == "ext4" and _has_journal(os.stat(path).st_dev)


def _has_journal(device: int) -> bool:
    """Say whether ext4 on a block device runs the thread that commits its journal."""
    try:
        disk = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        with open(f"/sys/fs/ext4/{disk}/journal_task") as task:
            return task.read().strip().isdigit()
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
