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
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hold"]

_RETRY_S = 0.01
_guard = threading.Lock()
_held: set[int] = set()


@contextmanager
def hold(folder: int, wait_s: float) -> Iterator[bool]:
    """Lock the folder open at `folder`, waiting at most `wait_s` seconds; the value says whether it was taken."""
    deadline = time.monotonic() + wait_s
    fd = _try(folder)
    while fd is None and time.monotonic() < deadline:
        time.sleep(_RETRY_S)
        fd = _try(folder)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            _release(fd)


def _try(folder: int) -> int | None:
    with _guard:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        _held.add(fd)
        return fd


def _release(fd: int) -> None:
    with _guard:
        if fd in _held:  # a forked child has closed it already
            _held.remove(fd)
            os.close(fd)


def _in_child() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_in_child)
