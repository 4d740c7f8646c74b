"""Stores that are there before the clock starts, and what is held to them afterwards.

Rule: a store is made in a process of its own, through the subject's own way to bring much in; what is measured then
begins in a fresh one, on a warm page cache whose content is on the disk. A subject that would need too long for it has
no figure in that case, and is told why. Nobody's imports are measured: each process has written and read a scratch
store before it starts.
Strategy: a store that is only read is made by the subject's unsynced twin, of the same class, which leaves the same
files sooner; and of subjects that read by the same code, one is enough to be read.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import orjson

from benchmarks import fresh
from benchmarks.checking import Check, Written, check
from benchmarks.lines import bodies, line_of, lines
from benchmarks.subjects import SUBJECTS, Handle, Subject
from benchmarks.subjects import subject as subject_of

__all__ = [
    "NAME",
    "as_json",
    "at",
    "fills_alike",
    "flush",
    "made",
    "method_of",
    "name_of",
    "opened",
    "reads_alike",
    "store_of",
    "tail_of",
    "twin_of",
    "whole",
]

YARDSTICK = "shardstore-unsynced"  # which unsynced subjects are compared with: it is read, too
ROOM = 2.1  # times the lines that a subject takes while it is filled: SQLite's log and database both have them
PATIENCE_S = 2.0  # before it is estimated how long the rest will take
LINES_AT_ONCE = 16  # between two looks at the clock


class _TooSlowError(Exception):
    """Making the store would take too long."""


def name_of(number: int) -> str:
    """Return the name of a session, whose lines are those of the writer of that number."""
    return f"s{number:06d}"


NAME = name_of(0)


def store_of(folder: str) -> str:
    """Return where the store lies in a round's folder."""
    return os.path.join(folder, "store")


def opened(subject: str, folder: str, mix: str) -> Handle:
    """Open the store of a round's folder, once a scratch store has been written and read and nothing is cold."""
    scratch = subject_of(subject).open(tempfile.mkdtemp(prefix="scratch-", dir=folder))
    scratch.append(NAME, line_of(mix, 0, 0))
    scratch.last(NAME, 1)
    scratch.load(NAME)
    scratch.close()
    return subject_of(subject).open(store_of(folder))


def twin_of(subject: Subject) -> Subject | None:
    """Return the subject of the same class that differs in durability alone, None if there is none."""
    maker = getattr(subject.open, "func", None)
    others = (one for one in SUBJECTS.values() if maker is not None and getattr(one.open, "func", None) is maker)
    return next((one for one in others if one.durable != subject.durable), None)


def reads_alike(subject: Subject) -> str | None:
    """Return why a subject need not be read: another reads by the same code; None if it has to be."""
    other = _first_with(subject, ("load", "last", "sessions"))
    return None if other is None or subject.name == YARDSTICK else f'it reads as "{other.label}" does'


def fills_alike(subject: Subject) -> str | None:
    """Return why a subject's import need not be measured: another fills by the same code; None if it has to be."""
    if method_of(subject, "fill") is Handle.fill:  # by its appends, which are its own
        return None
    other = _first_with(subject, ("fill", "fill_many"), as_durable=True)
    return None if other is None else f'it imports as "{other.label}" does'


def _first_with(subject: Subject, methods: Sequence[str], *, as_durable: bool = False) -> Subject | None:
    """Return the first of all subjects whose class has the same methods, None if it is the subject itself."""
    for other in SUBJECTS.values():
        if other.name == subject.name:
            return None
        same = all(method_of(other, name) is method_of(subject, name) for name in methods)
        if same and not (as_durable and other.durable != subject.durable):
            return other
    return None


def method_of(subject: Subject, name: str) -> Any:
    """Return a method of a subject's class, by which it can be told whether it is the subject's own."""
    return getattr(getattr(subject.open, "func", subject.open), name)


def made(
    subject: Subject,
    folder: str,
    *,
    seconds_max: float,
    mix: str,
    entries: int,
    sessions: int = 1,
    appended: int = 0,
    only_read: bool = False,
) -> str:
    """Make sessions of `entries` lines each, the last `appended` of them one by one; return "" or why it can't be."""
    if reason := _too_full(folder, mix, sessions * entries):
        return reason
    maker = (twin_of(subject) if only_read and subject.durable else None) or subject
    answer: str = fresh.call(
        make, subject=maker.name, folder=folder, seconds_max=seconds_max, mix=mix, entries=entries,
        sessions=sessions, appended=appended,
    )  # fmt: skip
    return answer


def _too_full(folder: str, mix: str, total: int) -> str:
    """Return "", or that the disk is too full for so many lines."""
    needed = total * sum(map(len, bodies(mix))) / len(bodies(mix)) * ROOM
    if shutil.disk_usage(folder).free >= needed:
        return ""
    return f"{needed / 1e9:,.1f} GB of the disk have to be free, for logs and copies that a subject makes meanwhile"


def make(subject: str, folder: str, seconds_max: float, mix: str, entries: int, sessions: int, appended: int) -> str:
    """Subject: make the store, and see that it is on the disk."""
    os.mkdir(store_of(folder))
    filled = entries - appended
    handle = subject_of(subject).open(store_of(folder))  # which may import for seconds
    pace = _Pace(sessions * filled, seconds_max)
    try:
        handle.fill_many((name_of(n), pace.over(islice(lines(mix, n), filled))) for n in range(sessions))
        for number in range(sessions):
            for line in islice(lines(mix, number, filled), appended):
                handle.append(name_of(number), line)
    except Exception:
        if not pace.reason:
            raise
    finally:
        handle.close()
    flush(folder)
    return pace.reason


def flush(folder: str) -> None:
    """Write what is dirty on the folder's filesystem, that nothing does so while the clock runs."""
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)  # Linux has it
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor):
            raise OSError(f"{folder}: could not be flushed")
    finally:
        os.close(descriptor)


class _Pace:
    """Hands lines out, and gives up when all of them would take too long; `reason` says so then."""

    def __init__(self, total: int, seconds_max: float) -> None:
        self.reason = ""
        self._total = total
        self._seconds_max = seconds_max
        self._done = 0
        self._begun = time.monotonic()

    def over(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self._done += 1
            if self._done % LINES_AT_ONCE == 0:
                self._look()
            yield line

    def _look(self) -> None:
        spent = time.monotonic() - self._begun
        needed = spent / self._done * self._total
        if spent > PATIENCE_S and needed > self._seconds_max:
            self.reason = f"to make it would take about {needed:,.0f} s (at most {self._seconds_max:.0f} s are given)"
            raise _TooSlowError(self.reason)


def tail_of(mix: str, entries: int, count: int, writer: int = 0) -> list[Any]:
    """Return the last entries of a session, as they have to come back."""
    return [orjson.loads(line_of(mix, writer, number)) for number in range(max(entries - count, 0), entries)]


def whole(found: Iterable[Any], mix: str, entries: int, writer: int = 0) -> Check:
    """Check a session of one writer, which has `entries` lines."""
    return check(found, mix, {writer: Written(entries)})


def as_json(found: Check) -> dict[str, Any]:
    """Return a check as a subject answers it."""
    answer: dict[str, Any] = msgspec.to_builtins(found)
    return answer


def at(samples: Sequence[float], share: float) -> float:
    """Return the sample that `share` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
