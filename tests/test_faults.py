"""System calls that fail: the append says so with the right error, the store stays correct, the next append succeeds.

Unavailable: nothing became visible. OutcomeUnknown: something did, at `seq` and under `nonce`. Nothing else.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
import warnings
from typing import Any, Literal

import pytest
from mishaps import ID, always, damages, failing, folder, fresh, tree

import shardstore
from shardstore import OutcomeUnknown, Session, Unavailable
from shardstore.backends import syscalls
from shardstore.backends.groupsync import GroupSync


def begun(path: str, durability: Literal["sync", "none"]) -> Session:
    """Return a session with two records: `none` uses files without a name where the system has them."""
    shardstore.open(path).create(ID, durability=durability)
    session = fresh(path)[1]
    session.append(b"one\n")
    session.append(b"two\n")
    return session


@pytest.fixture
def session(store_path: str) -> Session:
    """Return a durable session with two records."""
    return begun(store_path, "sync")


def payloads(path: str) -> list[bytes]:
    """Return what a process that knows nothing reads."""
    return [record.payload for record in fresh(path)[1].records()]


# ------------------------------------------------------------------ one append, one fault

OPENING = [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]
WRITING = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG]
LINKING = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMLINK]
BEFORE_THE_NAME = {
    "sync": {"open_named": OPENING, "write_parts": WRITING, "flush_data": WRITING, "link_named": LINKING},
    "none": {"open_unnamed": OPENING, "write_parts": WRITING, "link_unnamed": LINKING},
}
needs_unnamed = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without a name")
CASES = [
    pytest.param(durability, name, code, id=f"{durability}-{name}-{errno.errorcode[code]}", marks=marks)
    for durability, calls in BEFORE_THE_NAME.items()
    for name, codes in calls.items()
    for code in codes
    for marks in [[needs_unnamed] if "unnamed" in name else []]
]


@pytest.mark.parametrize(("durability", "name", "code"), CASES)
def test_fault_before_the_record_is_visible(store_path: str, durability: Any, name: str, code: int) -> None:
    """Unavailable with that errno; no file appears or stays; the next append takes the very next seq."""
    session = begun(store_path, durability)
    before = tree(store_path)
    for options in ({}, {"key": "k"}, {"if_no_turn_since": 2}):
        with failing(syscalls, name, code) as fault, pytest.raises(Unavailable) as caught:
            session.append(b"lost\n", **options)  # type: ignore[arg-type]
        assert fault.failed
        assert caught.value.errno == code
        assert tree(store_path) == before
        assert session.head() == 2
    assert session.append(b"three\n", key="k").seq == 3
    assert payloads(store_path) == [b"one\n", b"two\n", b"three\n"]
    assert damages(fresh(store_path)[0].verify()) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_folder_sync_that_fails(session: Session, store_path: str, code: int) -> None:
    """The record is visible: OutcomeUnknown with its seq and nonce; it stays, and the next append comes after it."""
    with failing(syscalls, "flush_folder", code), pytest.raises(OutcomeUnknown) as caught:
        session.append(b"visible\n")
    assert caught.value.seq == 3
    (record,) = session.records(3, 3)
    assert record.nonce == caught.value.nonce
    assert session.append(b"four\n").seq == 4
    assert payloads(store_path) == [b"one\n", b"two\n", b"visible\n", b"four\n"]
    assert damages(fresh(store_path)[0].verify()) == []


def test_key_after_an_unknown_outcome(session: Session, store_path: str) -> None:
    """An append with a key is repeated after OutcomeUnknown: it is answered with the same seq once that is durable."""
    with failing(syscalls, "flush_folder"):
        for _ in range(3):
            with pytest.raises((OutcomeUnknown, Unavailable)):
                session.append(b"mine\n", key="k")
    receipt = session.append(b"mine\n", key="k")
    assert (receipt.seq, receipt.duplicate) == (3, True)
    assert payloads(store_path) == [b"one\n", b"two\n", b"mine\n"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_look_that_fails(session: Session, store_path: str, code: int) -> None:
    """The manifest can't be looked at after the link: OutcomeUnknown, for the record may be a ghost."""
    real = os.stat

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if path == "manifest.json":
            raise OSError(code, os.strerror(code))
        return real(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(OutcomeUnknown) as caught:
            session.append(b"visible\n")
    assert caught.value.seq == 3
    assert session.append(b"four\n").seq == 4
    assert [record.nonce for record in session.records(3, 3)] == [caught.value.nonce]


@pytest.mark.parametrize(
    ("durability", "name"), [("sync", "link_named"), pytest.param("none", "link_unnamed", marks=needs_unnamed)]
)
def test_link_that_takes_effect_and_reports_failure(store_path: str, durability: Any, name: str) -> None:
    """If the record became visible although link(2) failed, the caller hears OutcomeUnknown, not that it may repeat."""
    session = begun(store_path, durability)
    seq: int | None = 3
    with failing(syscalls, name, errno.EIO, after=True) as fault:
        try:
            session.append(b"maybe\n")
        except OutcomeUnknown as error:
            seq = error.seq
        except Unavailable:
            assert payloads(store_path) == [b"one\n", b"two\n"]
    assert seq == 3
    assert fault.failed
    assert session.append(b"next\n").seq == len(payloads(store_path))
    assert damages(fresh(store_path)[0].verify()) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_reads_that_fail(session: Session, store_path: str, code: int) -> None:
    """Reading answers Unavailable with the errno, before and after compaction, and works again afterwards."""
    for _ in range(2):
        for owner, name in ((syscalls, "open_regular"), (os, "pread"), (syscalls, "read_range")):
            with failing(owner, name, code), pytest.raises(Unavailable) as caught:
                list(fresh(store_path)[1].records())
            assert caught.value.errno == code
            assert [record.payload for record in session.records()] == [b"one\n", b"two\n"]
        session.compact()


def test_nothing_in_the_cleanup_hides_or_replaces_the_error(session: Session, store_path: str) -> None:
    """A filesystem that turns read-only in mid-append fails the cleanup too: the caller still hears Unavailable."""
    with (
        failing(os, "unlink", errno.EROFS),
        failing(syscalls, "link_named", errno.EROFS),
        failing(syscalls, "link_unnamed", errno.EROFS),
        pytest.raises(Unavailable) as caught,
    ):
        session.append(b"x\n")
    assert caught.value.errno == errno.EROFS
    with (
        failing(os, "unlink", errno.EROFS),
        failing(syscalls, "write_parts", errno.EIO),
        pytest.raises(Unavailable),
    ):
        session.append(b"x\n")
    assert session.append(b"three\n").seq == 3


@pytest.mark.parametrize("step", [1, 5, 4096])
def test_short_writes(session: Session, store_path: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes only some bytes of each write gets the rest in further ones."""
    real_write, real_writev = os.write, os.writev
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:step])))
    monkeypatch.setattr(os, "writev", lambda fd, parts: real_writev(fd, [b"".join(parts)[:step]]))
    payload = random.Random(1).randbytes(5_000)
    session.append(payload)
    session.compact()
    session.append(b"end\n")
    monkeypatch.undo()
    assert payloads(store_path) == [b"one\n", b"two\n", payload, b"end\n"]


def test_short_reads(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that returns only some bytes of each read is asked for the rest."""
    real = os.pread
    session.append(b"x" * 5_000)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 100), offset))
    assert [len(record.payload) for record in session.records()] == [4, 4, 5_000]
    session.compact()
    assert [len(record.payload) for record in session.records()] == [4, 4, 5_000]


# ------------------------------------------------------------------ threads


def test_group_that_failed_stays_failed() -> None:
    """Whoever queued behind a flush that failed fails too: the kernel reports a lost write once for each descriptor."""
    entered, release = threading.Event(), threading.Event()
    calls = []

    def flush() -> None:
        calls.append(1)
        if len(calls) == 1:
            entered.set()
            release.wait(60)
            raise OSError(errno.EIO, "lost")

    group = GroupSync(flush)
    outcomes: list[int | None] = []

    def sync() -> None:
        try:
            group.sync()
            outcomes.append(None)
        except OSError as error:
            outcomes.append(error.errno)

    first = threading.Thread(target=sync)
    first.start()
    assert entered.wait(60)
    others = [threading.Thread(target=sync) for _ in range(3)]
    for thread in others:
        thread.start()
    release.set()
    for thread in [first, *others]:
        thread.join(60)
    assert outcomes == [errno.EIO] * 4


@pytest.mark.parametrize("name", ["write_all", "rename", "link"])
def test_compaction_in_the_background_that_fails(store_path: str, name: str) -> None:
    """Appends go on while every compaction in the background fails; it becomes a warning, and a later one succeeds."""
    owner: Any = {"write_all": syscalls, "rename": os, "link": syscalls}[name]
    target = "write_all" if name == "link" else name
    store = shardstore.open(store_path, compact_shards=4)
    session = store.session(ID)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with failing(owner, target, errno.ENOSPC, always):
            for number in range(20):
                assert session.append(b"%d\n" % number).seq == number + 1
            store.close()
    assert caught
    assert all("background" in str(warning.message) for warning in caught)
    assert session.compact().watermark == 20
    assert payloads(store_path) == [b"%d\n" % number for number in range(20)]
    assert len(list((folder(store_path) / "segments").iterdir())) == 1


# ------------------------------------------------------------------ clocks


def test_clock_that_jumps(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is by seq alone: a clock that jumps backwards, or years ahead, changes nothing but the times shown."""
    now = [1_000_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0] / 1e9)
    session = fresh(store_path)[1]
    for step in (0, -(10**18), 10**17, 5 * 10**17, -(6 * 10**17), 0):
        now[0] += step
        session.append(b"%d\n" % now[0])
        session.compact()
        session.append(b"%d again\n" % now[0], key=str(session.head()))
    records = list(session.records())
    assert [record.seq for record in records] == list(range(1, 13))
    assert [record.at_ms for record in records[::2]] == [int(record.payload) // 10**6 for record in records[::2]]
    assert damages(fresh(store_path)[0].verify()) == []
