"""What was said of sessions by name a moment ago: the kernel looks a name up right before it opens it.

Rule: an answer is used for `FRESH_S` at most, and not at all once this mount has changed a name after it was asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shardstore.mount.handles import Facts

__all__ = ["Asked"]

FRESH_S = 0.01
NAMES_MAX = 4_096


class Asked:
    """The last answers; safe to share between threads."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[Facts, float]] = {}  # and when it was asked for
        self._lock = threading.Lock()
        self._changes = 0

    def fresh(self, name: str) -> Facts | None:
        """Return what was said of `name` a moment ago, None if nobody asked or there was no such session."""
        facts, asked_s = self._answers.get(name, (None, 0.0))
        return facts if time.monotonic() - asked_s < FRESH_S else None

    def last(self, name: str) -> Facts | None:
        """Return what was said of `name` whenever that was."""
        return self._answers.get(name, (None, 0.0))[0]

    def ask(self, name: str, answer: Callable[[], Facts | None]) -> Facts | None:
        """Return what `answer` says of `name` now, and keep it."""
        changes, asked_s = self._changes, time.monotonic()
        facts = answer()
        with self._lock:
            if facts is None:
                self._answers.pop(name, None)
            elif changes == self._changes:
                if len(self._answers) >= NAMES_MAX:
                    self._answers.clear()
                self._answers[name] = facts, asked_s
        return facts

    def forget(self, *names: str) -> None:
        """Use no answer about `names` that was given, or asked for, before now: they have changed."""
        with self._lock:
            self._changes += 1
            for name in names:
                self._answers.pop(name, None)
