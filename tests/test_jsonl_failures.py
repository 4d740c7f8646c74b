"""Appends that fail under a file, or that a signal falls into: every line is there once in the end."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import shardstore
from shardstore import jsonl
from shardstore.backends import syscalls

APPENDING = ("open_named", "open_unnamed", "write_parts", "flush_data", "link_named", "link_unnamed", "flush_folder")


@pytest.fixture
def session(store_path: str) -> shardstore.Session:
    """Return a session that exists."""
    session = shardstore.open(store_path, compact_shards=None).session("s")
    session.create()
    return session


def payloads(session: shardstore.Session) -> list[bytes]:
    return [record.payload for record in session.records()]


class Fault:
    """Raises `error` before or after the n-th system call of an append; `hit` says that there was one."""

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException, *, after: bool) -> None:
        self.left = 0
        self.hit = False
        self._error = error
        self._after = after
        for name in APPENDING:
            patch.setattr(syscalls, name, self._wrapped(getattr(syscalls, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.left -= 1
            struck = self.left == 0
            if struck and not self._after:
                self.hit = True
                raise self._error
            answer = call(*arguments)
            if struck:
                self.hit = True
                raise self._error
            return answer

        return run


def faults(count_max: int = 30) -> Iterator[int]:
    yield from range(1, count_max)


@pytest.mark.parametrize("durability", ["sync", "none"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()],
    ids=["EIO", "ENOSPC", "Ctrl-C"],
)  # fmt: skip
def test_a_failed_append_is_made_good_once(
    store_path: str, monkeypatch: pytest.MonkeyPatch, durability: Any, after: bool, error: BaseException
) -> None:
    """Whichever system call of an append fails, or Ctrl-C falls on: each line is there once after the next flush."""
    store = shardstore.open(store_path, durability=durability)
    fault = Fault(monkeypatch, error, after=after)
    struck = 0
    for number in faults():
        session = store.session(f"{number}")
        session.append(b"same\n")  # a record of the same bytes, of another handle
        with jsonl.open(session, "a") as file:
            file.write("first\n")
            fault.left, fault.hit = number, False
            with suppress(OSError, KeyboardInterrupt):
                file.write("same\nre")
            fault.left = 0
            struck += fault.hit
            file.flush()
            file.write("st\n")
        assert session.read_jsonl() == b"same\nfirst\nsame\nrest\n", number
        if not fault.hit:
            break
    assert struck >= 3
    assert not fault.hit, "every call was struck"


def test_found_in_doubt_is_made_durable(session: shardstore.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed flush the record is there, and counts only once a flush has succeeded; then no copy is made."""
    flushed = []
    flush, failures = syscalls.flush_folder, [OSError(errno.EIO, "Input/output error")] * 2

    def flaky(fd: int) -> None:
        if failures:
            raise failures.pop()
        flush(fd)
        flushed.append(fd)

    with jsonl.open(session, "a") as file:
        file.write("first\n")
        monkeypatch.setattr(syscalls, "flush_folder", flaky)
        with pytest.raises(shardstore.OutcomeUnknown):
            file.write("second\n")
        with pytest.raises(OSError, match="input/output"):
            file.flush()
        assert flushed == []
        file.flush()
        assert flushed
    assert payloads(session) == [b"first\n", b"second\n"]


def test_another_ones_same_line_is_not_taken_for_ours(
    session: shardstore.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an append certainly failed, the same bytes by another writer in the same millisecond are not it."""
    file = jsonl.open(session, "ab")
    with monkeypatch.context() as patch:
        fault = Fault(patch, OSError(errno.ENOSPC, "No space left"), after=False)
        fault.left = 1
        with pytest.raises(shardstore.Unavailable):
            file.write(b"same\n")
    session.append(b"same\n", at_ms=file._recorder._outgoing.at_ms)  # type: ignore[attr-defined]
    file.close()
    assert payloads(session) == [b"same\n"] * 2


def test_close_can_be_repeated(session: shardstore.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that fails raises, keeps the file open and its bytes held; the next one commits them."""
    file = jsonl.open(session, "a")
    file.write("rest")
    with monkeypatch.context() as patch:
        fault = Fault(patch, OSError(errno.ENOSPC, "No space left"), after=False)
        fault.left = 1
        with pytest.raises(OSError, match="no space left") as refused:
            file.close()
        assert isinstance(refused.value, shardstore.Unavailable)
    assert not file.closed
    assert payloads(session) == []
    file.close()
    assert payloads(session) == [b"rest"]


def test_too_large_takes_nothing(store_path: str) -> None:
    """A write over the store's limit is refused as a whole, and what was held before goes on."""
    session = shardstore.open(store_path, record_bytes_max=10).session("s")
    with jsonl.open(session, "a") as file:
        file.write("ab")
        with pytest.raises(shardstore.InvalidRequest, match="over the limit"):
            file.write("x" * 20 + "\nlost")
        file.write("c\nd")
    assert payloads(session) == [b"abc\n", b"d"]
    file = jsonl.open(session, "a")
    file.write("x" * 20)
    with pytest.raises(shardstore.InvalidRequest):
        file.close()
    assert file.closed, "it could never be committed"


def test_a_signal_handler_may_not_write_into_a_write(
    session: shardstore.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write inside a write of the same file is refused as files refuse it, and nothing is written twice."""
    file = jsonl.open(session, "a")
    refused = []

    def handler(*_: object) -> None:
        try:
            file.write("inner\n")
        except RuntimeError as error:
            refused.append(str(error))

    link = syscalls.link_named

    def interrupted(*arguments: Any) -> None:
        link(*arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(syscalls, "link_named", interrupted)
            file.write("outer\n")
        file.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1
    assert "reentrant call" in refused[0]
    assert payloads(session) == [b"outer\n"]
