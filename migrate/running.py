"""A run: what is known in this process, what is new by as many as the machine has processors.

Rule: processes share nothing but the store. Each proves and tells the catalog of its own files; so one that is killed
costs what it had not told yet, and the same command again finds it. Files that are known are looked at by one process
alone, because what became of one may depend on another (a rename, and a new file in the old place).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import shardstore

from .catalog import Catalog
from .expanding import expand
from .importing import Importer, Outcome
from .salvaging import salvaged
from .sources import Found
from .unpacking import is_packed

__all__ = ["RECORD_BYTES_MAX", "import_files"]

SHARE_FILES = 256  # that one process takes at once
SHARE_BYTES = 64 << 20
WORTH_FILES = 400  # from here on, or so many bytes, other processes are worth their start
WORTH_BYTES = 48 << 20
JOBS_MAX = 8
RECORD_BYTES_MAX = 1 << 40  # a line that somebody's agent has written is taken as it is

Advance = Callable[[int], None]


def import_files(
    store: shardstore.Store,
    files: Sequence[Found],
    *,
    jobs: int | None = None,
    salvage: bool = False,
    advance: Advance = lambda _bytes: None,
) -> Iterator[Outcome]:
    """Import `files`; yield what became of each. `advance` is told how many bytes have been looked at in all.

    Compressed files come last, once their lines have become sessions beside their own. With `salvage`, whole entries in
    damaged lines go into sessions beside the files' own, whenever these were imported.
    """
    done = 0
    catalog = Catalog(store)
    packed: list[Outcome] = []
    for outcome in _outcomes(store, files, jobs or min(_processors(), JOBS_MAX)):
        done += _size(outcome.path)
        advance(done)
        if is_packed(outcome.path):
            packed.append(outcome)
        else:
            yield salvaged(store, catalog, outcome) if salvage else outcome
    yield from expand(store, catalog, files, packed)


def _processors() -> int:
    """Return how many processors this process may use; all of them where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(store: shardstore.Store, files: Sequence[Found], jobs: int) -> Iterator[Outcome]:
    importer = Importer(store, Catalog(store))
    new: list[Found] = []
    yield from importer.known(files, new)
    shares = _shares(new)
    if jobs < 2 or len(shares) < 2 or not _is_worth_it(new):
        yield from importer.first(new, aside=jobs > 1)
    else:
        yield from _by_processes(store.path, shares, min(jobs, len(shares)))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _is_worth_it(files: Sequence[Found]) -> bool:
    return len(files) >= WORTH_FILES or sum(_size(found.path) for found in files) >= WORTH_BYTES


def _shares(files: Sequence[Found]) -> list[list[Found]]:
    """Split files into shares of about the same size, the largest files first."""
    sizes = {found.path: _size(found.path) for found in files}
    shares: list[list[Found]] = []
    room = 0
    for found in sorted(files, key=lambda found: -sizes[found.path]):
        if room <= 0 or len(shares[-1]) >= SHARE_FILES:
            shares.append([])
            room = SHARE_BYTES
        shares[-1].append(found)
        room -= sizes[found.path]
    return shares


def _by_processes(path: str, shares: Sequence[list[Found]], jobs: int) -> Iterator[Outcome]:
    """Let processes import the shares. Raises Unavailable if one of them dies; what it did is found by the next run."""
    context = multiprocessing.get_context("spawn")  # a fork would take along threads' locks, the progress bar's too
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)
    try:
        waiting = _submitted(pool, path, shares)
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                yield from future.result()
    except BrokenProcessPool as error:
        raise shardstore.Unavailable("a process of the import died; run the same command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, path: str, shares: Sequence[list[Found]]) -> set[Future[list[Outcome]]]:
    """Submit the shares, which starts the processes: with Ctrl-C blocked, so that none meets it before `_begin`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(_import_share, path, share) for share in shares}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin() -> None:
    """Leave Ctrl-C to the process that began the run: it lets the shares at work end. Without it, end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a worker would wait for its next share for ever


def _import_share(path: str, share: list[Found]) -> list[Outcome]:
    with shardstore.open(path, create=False, record_bytes_max=RECORD_BYTES_MAX) as store:
        return list(Importer(store, Catalog(store)).first(share))
