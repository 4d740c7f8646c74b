"""Looks: which record of a session each process saw last.

Rule: a look only moves forward, and only over what the process was given or wrote itself with nothing between. It is
the `base` of what the process appends, and what its rewrites may replace; where there is none, nothing is known.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

__all__ = ["Looks"]

LOOKS_MAX = 4096  # (process, session) pairs remembered
PROCESSES_MAX = 1024  # threads whose process is remembered, each for PROCESS_AGE_S
PROCESS_AGE_S = 5.0


class Looks:
    """The last look of each process at each session; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seqs: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._backing_up: set[tuple[int, str]] = set()
        self._processes: dict[int, tuple[int, float]] = {}

    def last(self, process: int, session: str) -> int | None:
        """Return the seq of the last look, None if there was none (or it was long ago); 0 is a look at nothing."""
        with self._lock:
            seq = self._seqs.get((process, session))
            if seq is not None:
                self._seqs.move_to_end((process, session))
            return seq

    def backs_up(self, process: int, session: str) -> None:
        """Take what the process reads from now on for a copy that it makes, no look, if it has looked before."""
        with self._lock:
            if (process, session) in self._seqs:
                self._backing_up.add((process, session))

    def replaces(self, process: int, session: str) -> int | None:
        """Return the last look of a process that begins to replace the content; its copy is made."""
        with self._lock:
            self._backing_up.discard((process, session))
        return self.last(process, session)

    def saw(self, process: int, session: str, seq: int) -> None:
        """Remember that the process was given everything up to `seq`."""
        with self._lock:
            if (process, session) in self._backing_up:
                return
            self._put((process, session), seq)

    def wrote(self, process: int, session: str, seq: int) -> None:
        """Remember that the process appended record `seq`: a look if it had seen the one before."""
        with self._lock:
            if self._seqs.get((process, session)) == seq - 1:
                self._put((process, session), seq)

    def _put(self, pair: tuple[int, str], seq: int) -> None:
        self._seqs[pair] = max(seq, self._seqs.get(pair, 0))
        self._seqs.move_to_end(pair)
        if len(self._seqs) > LOOKS_MAX:
            self._backing_up.discard(self._seqs.popitem(last=False)[0])

    def process(self, thread: int) -> int:
        """Return a number for the process that a thread id belongs to; the id itself if no such thread is alive.

        It is that of no other process, even if the process ids are used again.
        """
        now = time.monotonic()
        known = self._processes.get(thread)
        if known is not None and now - known[1] < PROCESS_AGE_S:
            return known[0]
        process = _process_of(thread)
        if len(self._processes) >= PROCESSES_MAX:
            self._processes.clear()
        self._processes[thread] = (process, now)
        return process


def _process_of(thread: int) -> int:
    """Return the process id, and above it when the process began, in ticks since the machine did."""
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            process = next(int(line[5:]) for line in status if line.startswith(b"Tgid:"))
        with open(f"/proc/{process}/stat", "rb") as stat:
            began_ticks = int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, StopIteration):
        return thread
    return began_ticks << 32 | process
