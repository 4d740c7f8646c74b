"""What race tests share: deadlines, threads that report, processes, raw sessions, and the judge of a finished log.

Rule: nothing waits without a deadline, and no deadline decides whether a test passes: it only ends a hang.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from shardstore import Session
from shardstore.backends.base import Backend
from shardstore.background import Background
from shardstore.session import Options

DEADLINE_S = 60.0
OPTIONS = Options(durability="sync", record_bytes_max=1 << 26, compact_shards=None)

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["shardstore", "workers"])


def wait_until(
    condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S, must: bool = True
) -> bool:
    """Return once `condition` holds; after the deadline fail, or return False if it need not hold."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            assert not must, f"gave up waiting: {what}"
            return False
        time.sleep(0.002)
    return True


def raw_session(backend: Backend, session_id: str = "s", options: Options = OPTIONS, *, create: bool = True) -> Session:
    """Return a session straight on a backend, as a process of its own would have it."""
    return Session(backend, session_id, options, Background(), create=create)


class Task(threading.Thread):
    """A thread that keeps its result or its error; `result` waits for it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Make the call."""
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        self.join(DEADLINE_S)
        assert not self.is_alive(), "gave up waiting for a thread"
        if self.error is not None:
            raise self.error
        return self.value


def together(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Make the calls in threads that start at the same moment; return their results in order."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            barrier.wait(DEADLINE_S)
            return call()

        return run

    tasks = [Task(begin(call)) for call in calls]
    return [task.result() for task in tasks]


def fork() -> int:
    """Fork although there are threads, which is what some of these tests are about and newer Pythons warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(call: Callable[[], None]) -> int:
    """Run `call` in a forked child of this very process; return its exit code (0: it returned)."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    return reap(pid)


def reap(pid: int) -> int:
    """Wait for a child and return its exit code, negative for a signal."""
    status = 0

    def gone() -> bool:
        nonlocal status
        done, status = os.waitpid(pid, os.WNOHANG)
        return done == pid

    wait_until(gone, what=f"end of child {pid}")
    return os.waitstatus_to_exitcode(status)


def join_all(workers: Iterable[BaseProcess], deadline_s: float = 300.0) -> None:
    """Wait for processes to end well; on the first that does not, or after the deadline, kill the others and fail."""
    workers = list(workers)
    end = time.monotonic() + deadline_s
    try:
        while any(worker.exitcode is None for worker in workers):
            wait([worker.sentinel for worker in workers if worker.exitcode is None], 1.0)
            assert {worker.exitcode for worker in workers} <= {0, None}, "a process failed; see its traceback"
            assert time.monotonic() < end, "gave up waiting for processes"
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def nonces(session: Session) -> list[str]:
    """Return the nonce of every record, checking that the seqs are 1, 2, 3 … without a gap."""
    records = list(session.records())
    assert [record.seq for record in records] == list(range(1, len(records) + 1)), "seqs have a gap"
    return [record.nonce for record in records]


def assert_real_time(calls: Iterable[tuple[int, int, int]]) -> None:
    """`calls` are (seq, invoked, acknowledged): what was acknowledged before another was invoked has a smaller seq."""
    earliest, culprit = None, 0
    for seq, invoked, acknowledged in sorted(calls, reverse=True):
        assert earliest is None or earliest >= invoked, f"{culprit} was acknowledged before {seq} was invoked"
        if earliest is None or acknowledged < earliest:
            earliest, culprit = acknowledged, seq
