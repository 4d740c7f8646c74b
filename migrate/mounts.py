"""Which folders are stores that are mounted as files: what lies there is in a store already.

Rule: nothing is brought in from a mounted store. Where it is the store that files are brought into, each line would
make the session, and so the file, longer, without end.
"""

from __future__ import annotations

import os
import re

__all__ = ["mounted_stores"]

KIND = "fuse.shardstore"
_OCTAL = re.compile(rb"\\([0-7]{3})")


def mounted_stores() -> list[str]:
    """Return where stores are mounted, by the system's table of mounts; none where there is no such table."""
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            lines = [line.partition(b" - ") for line in mounts]
    except FileNotFoundError:
        return []
    points = [before.split(b" ")[4] for before, _, after in lines if after.split(b" ")[0] == KIND.encode()]
    return [os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), point)) for point in points]
