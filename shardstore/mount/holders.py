"""Who still holds a file open: what tells a descriptor that was closed from the close of a file.

Rule: the kernel tells of each descriptor that is closed, and of the file only later, when nobody waits for the answer.
So a line that has not ended is committed with a descriptor unless the process that opened the file, the one that
closes, or one of those that started it has a descriptor on that path which no other open file explains: a shell's
`{ printf '{"a":'; date +%s; echo '}'; } >> a.jsonl` is one file that four processes close.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

__all__ = ["descriptors", "processes"]

PARENTS_MAX = 8  # of the process that closes, which are asked


def processes(thread: int, opener: int) -> Iterator[int]:
    """Yield the ids of who may hold a file: a thread's process, those that started it, and the one that opened it."""
    yield opener
    for _ in range(PARENTS_MAX):
        if thread <= 1:
            return
        yield thread
        thread = _parent(thread)


def _parent(thread: int) -> int:
    with suppress(OSError), open(f"/proc/{thread}/status", "rb") as status:
        return next((int(line[6:]) for line in status if line.startswith(b"PPid:")), 0)
    return 0


def descriptors(process: int, path: str) -> int:
    """Count the descriptors of a process on files whose path ends with `path`; 0 where it may not be asked."""
    folder, count = f"/proc/{process}/fd", 0
    with suppress(OSError):
        for number in os.listdir(folder):
            with suppress(OSError):
                count += os.readlink(f"{folder}/{number}").removesuffix(" (deleted)").endswith(path)
    return count
