"""Locks that a forked child finds open: whoever held one in the parent does not exist in the child.

Rule: state guarded by such a lock must be usable after any prefix of an update, since a fork may fall into its middle.
"""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """A mutex for `with`, replaced by a fresh one in every forked child."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _alive.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_alive: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _in_child() -> None:
    for lock in list(_alive):
        lock._lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)
