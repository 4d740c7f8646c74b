"""What happens under a running process: folders that go away and come back, signals at any moment."""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from mishaps import build, damages, folder, fresh, python

import shardstore
from shardstore import Corrupt, NotFound, ShardstoreError, Unavailable

# ------------------------------------------------------------------ folders that go away


@pytest.mark.parametrize("rename", [False, True], ids=["removed", "moved away"])
@pytest.mark.parametrize("what", ["shards", "session", "sessions", "store"])
def test_folder_that_goes_away_and_comes_back(tmp_path: Path, what: str, rename: bool) -> None:
    """With a folder gone an append fails, or commits where the folder now is; with it back everything goes on."""
    path = tmp_path / "store"
    before = build(path, 4, compact_at=(2,))
    _, session = fresh(path)
    acknowledged = [*[record.payload for record in before], b"five\n"]
    session.append(b"five\n")
    gone = {"shards": folder(path) / "shards", "session": folder(path), "sessions": path / "sessions", "store": path}[
        what
    ]
    aside = tmp_path / "aside"
    shutil.copytree(gone, tmp_path / "copy")
    if rename:
        gone.rename(aside)
    else:
        shutil.rmtree(gone)
    strays = []
    for number in range(3):
        payload = b"while gone %d\n" % number
        try:
            session.append(payload)
        except (Unavailable, NotFound, Corrupt):
            continue
        strays.append(payload)
    if gone.exists():
        assert all(stray in fresh(path)[1].read_jsonl() for stray in strays)
        shutil.rmtree(gone)
    shutil.move(aside if rename else tmp_path / "copy", gone)
    with suppress(Unavailable):  # what was made in the meantime has been removed a second time
        session.append(b"back\n")
    assert session.append(b"back again\n").seq >= 6
    found = [record.payload for record in fresh(path)[1].records()]
    assert found[:5] == acknowledged
    assert found[-1] == b"back again\n"
    assert all(payload in (*acknowledged, *strays, b"back\n", b"back again\n") for payload in found)
    assert damages(fresh(path)[0].verify()) == []


@pytest.mark.parametrize("what", ["shards", "session", "sessions", "store"])
def test_folder_removed_for_good(tmp_path: Path, what: str) -> None:
    """A removed folder never turns into a silent success: the first append fails, and verify finds nothing false."""
    path = tmp_path / "store"
    _, session = fresh(path)
    session.append(b"one\n")
    gone = {"shards": folder(path) / "shards", "session": folder(path), "sessions": path / "sessions", "store": path}[
        what
    ]
    shutil.rmtree(gone)
    with pytest.raises((Unavailable, NotFound, Corrupt)):
        session.append(b"two\n")
    for call in (
        lambda: list(session.records()),
        session.head,
        session.info,
        session.compact,
        session.verify,
        session.delete,
    ):
        with suppress(ShardstoreError):
            call()  # type: ignore[operator]
    shardstore.open(path).session("other").append(b"x\n")
    assert shardstore.open(path).session("other").read_jsonl() == b"x\n"


# ------------------------------------------------------------------ signals

INTERRUPTED = """
import os, random, signal, sys, shardstore

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

chance = random.Random(int(sys.argv[2]))
session = shardstore.open(sys.argv[1], compact_shards=None, durability="none").session("a")
acknowledged = {}
signal.signal(signal.SIGALRM, stop)
for number in range(1500):
    payload = b"%d\\n" % number
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 4e-4))
        seq = session.append(payload).seq
        acknowledged[payload] = seq
        if number % 50 == 0:
            session.compact()
    except Stop:
        pass
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Stop:
            pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)
session = shardstore.open(sys.argv[1], compact_shards=None).session("a")
found = {}
for record in session.records():
    if record.kind != "control":
        assert record.payload not in found, record
        found[record.payload] = record.seq
assert all(found.get(payload) == seq for payload, seq in acknowledged.items())
assert not [finding for finding in session.verify() if finding.severity == "damage"]
assert len(acknowledged) > 100
"""


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_exceptions_from_signal_handlers(store_path: str, seed: str) -> None:
    """A handler that raises at any moment (as Ctrl-C does) leaves no lock held and no record there twice."""
    answer = python(INTERRUPTED, store_path, seed)
    assert answer.returncode == 0, answer.stderr


def test_interrupted_system_calls(store_path: str) -> None:
    """EINTR: signals that arrive all the time, with a handler that returns, change nothing."""
    hits = [0]

    def count(*_: object) -> None:
        hits[0] += 1

    old = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        session = fresh(store_path)[1]
        for number in range(200):
            assert session.append(b"%d\n" % number).seq == number + 1
            if number % 40 == 0:
                session.compact()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert hits[0]
    assert [record.payload for record in session.records()] == [b"%d\n" % number for number in range(200)]
    assert damages(session.verify()) == []
