"""Locks that a forked child finds open: whoever held one in the parent does not exist in the child.

Rule: state guarded by such a lock must be usable after any prefix of an update, since a fork may fall into its middle.
"""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """Has a `lock` for `with guard.lock:`, replaced by a fresh one in every forked child.

    It is re-entrant, so that a signal handler may append (a last event on SIGTERM) in whatever it interrupts: the state
    under it must be usable in the middle of an update.
    The statement works on the lock itself, whose methods no signal handler can interrupt half-way: an exception out of
    one (Ctrl-C in a prompt) between acquiring in Python code and the body would leave it locked for good.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _alive.add(self)


_alive: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _in_child() -> None:
    for guard in list(_alive):
        guard.lock = threading.RLock()


os.register_at_fork(after_in_child=_in_child)
