"""What stat says of what a mount makes up: sessions, and the folders that only sessions imply.

Why a session's constant size is larger than the content, with reads that end early: a program that finds a size of 0
takes the session for empty and truncates it, and one that finds less than there is reads no further. Why it is a little
more than 64 MiB: programs that copy a transcript by its size, and would read at its end for ever, spare larger ones.
"""

from __future__ import annotations

import os
import stat

from shardstore.mount.handles import Facts, inode_of
from shardstore.mount.plain import Attributes

__all__ = ["of_folder", "of_session"]

SIZE_BYTES = (64 << 20) + 4096  # of every session, doubled while the content passes half of it; node reads no 2 GiB


def _constant_size(content_bytes: int) -> int:
    size = SIZE_BYTES
    while content_bytes > size // 2:
        size *= 2
    return size


def of_session(facts: Facts, content_bytes: int, *, real: bool) -> Attributes:
    """Return a session's attributes. It has two names, as its two links say: vim then writes it in place."""
    size = content_bytes if real else _constant_size(content_bytes)
    changed_ns = (facts.mtime_ms if real else facts.created_ms) * 1_000_000
    return {
        "st_mode": stat.S_IFREG | 0o600,
        "st_ino": facts.ino,
        "st_nlink": 2,
        "st_uid": os.getuid(),
        "st_gid": os.getgid(),
        "st_size": size,
        "st_blocks": -(-size // 512),
        "st_atime": changed_ns,
        "st_mtime": changed_ns,
        "st_ctime": changed_ns,
    }


def of_folder(name: str) -> Attributes:
    """Return the attributes of a folder that only sessions imply; its inode is its own, or `find` sees a loop."""
    owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
    return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, "st_ino": inode_of(f"{name}/"), **owner}
