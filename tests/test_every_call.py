"""Every single system call of a session's life fails once, and each time the store is judged afterwards.

Acknowledged: there, once, at its seq. Unavailable: not there. OutcomeUnknown: there under that seq and nonce, or not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import together
from mishaps import ID, damages, failing, fresh, nth

import shardstore
from shardstore import OutcomeUnknown, Session, ShardstoreError, Unavailable
from shardstore.backends import syscalls


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


def life(path: str, notes: dict[bytes, object], durability: Any) -> None:
    """Use everything once; note what each append answered, and let nothing but typed errors through."""

    def attempt(call: Callable[[], Any], payload: bytes | None = None) -> Any:
        try:
            answer = call()
        except (Unavailable, OutcomeUnknown) as error:
            answer = error
        if payload is not None:
            notes[payload] = answer
        return answer

    store = attempt(lambda: shardstore.open(path, compact_shards=None, durability=durability))
    if isinstance(store, ShardstoreError):
        store = shardstore.open(path, compact_shards=None, durability=durability)
    session = store.session(ID)
    for number in range(8):
        payload = b"record %d\n" % number
        key = f"key-{number}" if number % 3 == 0 else None
        since = number if number == 5 else None
        attempt(lambda p=payload, k=key, s=since: _append(session, p, k, s), payload)
        if number in (2, 4, 6):
            attempt(session.compact)
    attempt(session.archive)
    attempt(lambda: list(session.records()))
    attempt(session.unarchive)
    attempt(session.verify)
    attempt(lambda: store.import_session("imported", [b"a\n", b"b\n"]), b"import")
    attempt(store.compact)
    attempt(lambda: list(store.sessions()))
    attempt(lambda: fresh(path)[1].append(b"another handle\n"), b"another handle\n")
    store.close()


def _append(session: Session, payload: bytes, key: str | None, since: int | None) -> object:
    with suppress(shardstore.Conflict, shardstore.InvalidRequest):
        return session.append(payload, key=key, if_no_turn_since=since)
    return Unavailable("the condition no longer held after an earlier fault")


def judge(path: str, notes: dict[bytes, object]) -> None:
    """Everything acknowledged is there once at its seq, nothing that was refused is, and life goes on."""
    store, session = fresh(path)
    seq = session.append(b"afterwards\n").seq
    records = list(session.records())
    assert [record.seq for record in records] == list(range(1, seq + 1))
    assert damages(store.verify()) == []
    found = {record.payload: record for record in records if record.kind != "control"}
    assert len(found) == sum(record.kind != "control" for record in records), "a record is there twice"
    for payload, answer in notes.items():
        if payload == b"import":
            continue
        record = found.get(payload)
        if isinstance(answer, shardstore.Receipt):
            assert record is not None
            assert (record.seq, record.nonce) == (answer.seq, answer.nonce)
        elif isinstance(answer, OutcomeUnknown):
            assert record is None or (record.seq, record.nonce) == (answer.seq, answer.nonce)
        else:
            assert record is None, f"{payload!r} was refused with {answer!r}"
    imported = store.session("imported", create=False)
    try:
        assert imported.read_jsonl() == b"a\nb\n"
    except shardstore.NotFound:
        assert not isinstance(notes[b"import"], int)
        store.import_session("imported", [b"a\n", b"b\n"])
    session.compact()
    assert list(session.records()) == records
    assert damages(store.verify()) == []
    store.close()


FUNCTIONS: list[tuple[Any, str]] = [
    (syscalls, name)
    for name in ("open_folder", "make_folder", "open_regular", "open_unnamed", "open_named", "read_range",
    "write_parts",
                 "write_all", "flush_data", "flush_folder", "link_unnamed", "link_named")
] + [(os, name) for name in ("stat", "listdir", "unlink", "rename")]  # fmt: skip


def sweep(tmp_path: Path, owner: Any, name: str, durability: str, *, after: bool) -> None:
    """Live a whole life once for each call of one function, with that call failing."""
    with failing(owner, name, errno.EIO, lambda _: False) as count:
        life(str(tmp_path / "dry"), {}, durability)
    for number in range(1, count.calls + 1):
        path, notes = str(tmp_path / str(number)), {}  # type: ignore[var-annotated]
        with failing(owner, name, errno.EIO, nth(number), after=after):
            life(path, notes, durability)
        try:
            judge(path, notes)
        except AssertionError as error:
            raise AssertionError(f"call {number} of {name}: {error}") from error


@pytest.mark.parametrize("durability", ["sync", "none"])
@pytest.mark.parametrize(("owner", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_each_call_of_a_life_fails_once(tmp_path: Path, owner: Any, name: str, durability: str) -> None:
    """Whichever single system call fails in a session's life, acknowledged records are there and refused ones not."""
    sweep(tmp_path, owner, name, durability, after=False)


@pytest.mark.parametrize(
    ("owner", "name", "durability"),
    [
        (syscalls, "link_named", "sync"),
        (syscalls, "link_unnamed", "none"),
        (syscalls, "make_folder", "sync"),
        (syscalls, "flush_data", "sync"),
        (syscalls, "flush_folder", "sync"),
        (os, "rename", "sync"),
        (os, "unlink", "sync"),
    ],
)
def test_each_call_takes_effect_and_reports_failure(tmp_path: Path, owner: Any, name: str, durability: str) -> None:
    """The same if the call did its work and then reported a failure."""
    sweep(tmp_path, owner, name, durability, after=True)


def test_no_descriptor_is_leaked(tmp_path: Path) -> None:
    """Whatever fails, no descriptor stays open behind it."""
    session = fresh(tmp_path)[1]
    session.append(b"one\n")
    session.compact()
    before = open_descriptors()
    for owner, name in FUNCTIONS:
        with failing(owner, name):
            for call in (
                lambda: session.append(b"x\n"),
                session.compact,
                lambda: list(session.records()),
                session.archive,
            ):
                for _ in range(5):
                    with suppress(ShardstoreError):
                        call()  # type: ignore[operator]
        session.append(b"end\n")
        list(session.records())
        assert open_descriptors() <= before + 3, name


def test_threads_while_folder_syncs_fail(store_path: str) -> None:
    """Eight threads append while every third flush fails: what was acknowledged is there, and the rest is known."""
    session = fresh(store_path)[1]
    session.append(b"first\n")
    notes: dict[bytes, object] = {}

    def work(worker: int) -> None:
        for number in range(20):
            payload = b"%d-%d\n" % (worker, number)
            try:
                notes[payload] = session.append(payload)
            except (OutcomeUnknown, Unavailable) as error:
                notes[payload] = error

    with failing(syscalls, "flush_folder", errno.EIO, lambda call: call % 3 == 0):
        together([lambda worker=worker: work(worker) for worker in range(8)])  # type: ignore[misc]
    shardstore.open(store_path).import_session("imported", [b"a\n", b"b\n"])
    judge(store_path, notes)
