"""Background compaction: the writer that crosses the threshold starts it, so that nobody needs a daemon.

Rule: it never costs an append anything but time on the processor; an append that is committed stays so even if no
thread can be started. What stands in its way becomes a CompactionWarning, and the next threshold tries again.
The threads are no daemons: a process that ends lets a compaction finish, so that short-lived writers compact too.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

from shardstore.errors import NotFound

__all__ = ["Background", "CompactionWarning"]


class CompactionWarning(RuntimeWarning):
    """A compaction in the background did not succeed; nothing is lost, the session merely stays in shards."""


class Background:
    """At most one compaction a session and process at a time."""

    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}

    def start(self, session_id: str, compact: Callable[[], object]) -> None:
        """Run `compact` in a thread of its own, unless one is at work on this session."""
        running = self._threads.get(session_id)
        if running is not None and running.is_alive():
            return
        thread = threading.Thread(target=_run, args=(session_id, compact), name=f"shardstore-compact-{session_id}")
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            with suppress(Warning):  # an append that is committed has not failed, even where warnings are errors
                _warn(session_id, error)
            return
        self._threads[session_id] = thread

    def join(self) -> None:
        """Wait for every compaction that was started."""
        for thread in list(self._threads.values()):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()
        self._threads.clear()


def _run(session_id: str, compact: Callable[[], object]) -> None:
    try:
        compact()
    except NotFound:
        return  # deleted or removed meanwhile: there is nothing to compact
    except Exception as error:
        _warn(session_id, error)


def _warn(session_id: str, error: Exception) -> None:
    warnings.warn(f"compaction of session {session_id!r} in the background: {error}", CompactionWarning, stacklevel=2)
