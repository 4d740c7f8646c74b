"""Labelling a large file aside: one process reads and writes it, another says what its lines are.

Rule: both read the same ranges of the same file, and the one that writes says which; so they mean the same lines,
although the file may grow meanwhile. Where they don't (it was rewritten), nothing is imported. The other process owns
nothing: it may die at any time, and ends by itself once it is not asked any more.
Strategy: until the other process has begun, lines are labelled here; what the labels remember is then handed over. Few
ranges are on their way at once, so memory stays bounded. An answer is three values, not one a line: the kinds and
sources that occur, which of them each line has, and the times.
"""

from __future__ import annotations

import os
import signal
from array import array
from collections import deque
from collections.abc import Callable, Generator
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection

import shardstore

from .damage import Inspector
from .lines import SourceFile, holds_lines
from .sources import Found, format_of

__all__ = ["WORTH_BYTES", "Facts", "labelled_aside", "labelled_here"]

WORTH_BYTES = 24 << 20  # from here on another process is worth its start
AHEAD_BYTES = 12 << 20  # of lines that wait for their labels
JOIN_SECONDS = 10
BEGIN_SECONDS = 0  # for which each batch waits for the other process to begin: work goes on without it

Facts = tuple[str, dict[str, int]]  # what the labeller remembers at the end, and the damage by kind
_Pair = tuple[shardstore.Kind, str]
_Answer = tuple[list[_Pair], "array[int]", "array[int]"]
Labelled = Generator[tuple[list[bytes], _Answer], None, None]


class _Labels:
    """Says of the lines of one file, in order, what they are."""

    def __init__(self, found: Found, at_ms: int) -> None:
        self._labeller = format_of(found.format).labeller(found.lane)
        self._inspector = Inspector() if holds_lines(found.name) else None
        self._at_ms = at_ms

    def of(self, lines: list[bytes]) -> _Answer:
        """Return (kinds and sources, which of these each line has, times); a line without a time has the last one."""
        pairs: dict[_Pair, int] = {}
        codes, times = array("L"), array("q")
        label, at_ms = self._labeller.label, self._at_ms
        inspect = self._inspector.line if self._inspector is not None else None
        add_code, add_time = codes.append, times.append
        for line in lines:
            kind, lane, own_ms = label(line)
            if inspect is not None:
                inspect(line)
            if own_ms is not None:
                at_ms = own_ms
            pair = (kind, lane)
            code = pairs.get(pair)
            if code is None:
                code = pairs[pair] = len(pairs)
            add_code(code)
            add_time(at_ms)
        self._at_ms = at_ms
        return list(pairs), codes, times

    def facts(self) -> Facts:
        return self._labeller.lane, {} if self._inspector is None else self._inspector.finish()


def labelled_here(
    found: Found, at_ms: int, source: SourceFile, *, unfinished: bool, tell: Callable[[Facts], None]
) -> Labelled:
    """Yield the lines of `source` in batches with their labels; `tell` gets the facts at the end. Raises OSError.

    `at_ms` is the time of lines before the first that has its own.
    """
    labels = _Labels(found, at_ms)
    for batch in source.batches(unfinished=unfinished):
        yield batch, labels.of(batch)
    tell(labels.facts())


def labelled_aside(
    found: Found, at_ms: int, source: SourceFile, *, unfinished: bool, tell: Callable[[Facts], None]
) -> Labelled:
    """Do what `labelled_here` does with the help of another process. Raises Unavailable if that dies, OSError."""
    context = get_context("spawn")  # a fork would take along threads' locks
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, found.path), daemon=True)
    resource_tracker.ensure_running()  # which would unblock Ctrl-C again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the process says itself what becomes of it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
    try:
        yield from _asked(ours, _Labels(found, at_ms), source, unfinished, tell)
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise shardstore.Unavailable(f"the process that labels lines died; run again path={found.path!r}") from error
    finally:
        ours.close()  # it ends by itself then
        process.join(JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _asked(
    ours: Connection, labels: _Labels, source: SourceFile, unfinished: bool, tell: Callable[[Facts], None]
) -> Labelled:
    """Label lines here until the other process has begun; it goes on with what `labels` remembers."""
    waiting: deque[tuple[int, list[bytes]]] = deque()  # where each begins, and the lines
    is_here = True
    for batch in source.batches(unfinished=unfinished):
        if is_here and ours.poll(BEGIN_SECONDS):
            ours.recv()
            ours.send(labels)
            is_here = False
        if is_here:
            yield batch, labels.of(batch)
            continue
        size = sum(map(len, batch))
        waiting.append((source.size - size, batch))
        ours.send((source.size - size, size, len(batch)))
        del batch  # a long line is in memory once
        while source.size - waiting[0][0] > AHEAD_BYTES:
            yield waiting.popleft()[1], _received(ours, source)
            if not waiting:
                break
    while waiting:
        yield waiting.popleft()[1], _received(ours, source)
    if is_here:
        tell(labels.facts())
        return
    ours.send(None)
    tell(ours.recv())


def _received(ours: Connection, source: SourceFile) -> _Answer:
    answer: _Answer | None = ours.recv()
    if answer is None:
        raise OSError(f"the file was rewritten while it was read; run again: {source.path}")
    return answer


def _serve(pipe: Connection, path: str) -> None:
    """Say that it has begun, then answer for ranges of lines until nobody asks any more: None for one that does not
    hold its lines.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the one that asks
    with SourceFile(path) as source:
        try:
            pipe.send(None)
            labels: _Labels = pipe.recv()
            while (asked := pipe.recv()) is not None:
                begin, size, count = asked
                lines = source.lines_at(begin, size)
                pipe.send(labels.of(lines) if len(lines) == count else None)
                del lines
            pipe.send(labels.facts())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the one that asked is gone
