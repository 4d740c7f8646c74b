"""The compactor's lock: `flock` on the session folder's own descriptor, and nothing that outlives its process.

Rule: a lock lies on an open file description, so a forked child would hold it too, long after its parent died. Every
descriptor that carries a lock is therefore closed in a child at once, and no fork happens between taking a lock and
noting its descriptor. Nobody who appends or reads ever takes one.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hold"]

_RETRY_S = 0.01
_guard = threading.RLock()  # a signal handler may come here in the middle of it


class _Hold:
    """A descriptor that may carry a lock; it closes when nobody refers to it, so that no exception can leak one."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


_held: weakref.WeakSet[_Hold] = weakref.WeakSet()


@contextmanager
def hold(folder: int, wait_s: float) -> Iterator[bool]:
    """Lock the folder open at `folder`, waiting at most `wait_s` seconds; the value says whether it was taken."""
    deadline = time.monotonic() + wait_s
    taken = _try(folder)
    while taken is None and time.monotonic() < deadline:
        time.sleep(_RETRY_S)
        taken = _try(folder)
    try:
        yield taken is not None
    finally:
        if taken is not None:
            with _guard:
                taken.close()  # nothing to do in a forked child, which has closed it already


def _try(folder: int) -> _Hold | None:
    with _guard:
        attempt = _Hold(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder))
        _held.add(attempt)
        try:
            fcntl.flock(attempt.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return attempt


def _in_child() -> None:
    for taken in list(_held):
        taken.close()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_in_child)
