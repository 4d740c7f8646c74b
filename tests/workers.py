"""The processes of the race tests: each opens the store by itself and keeps a log of what it was told.

Rule: a log line is one unbuffered write, so that a SIGKILL loses no line that was written. Lines are
`I <id> <ns>` before a call and `A <id> <ns> <seq>` after its acknowledgement; ns is CLOCK_MONOTONIC, one clock for all.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import shardstore
from shardstore import Conflict, Record, Session

SESSION = "shared"


class CallLog:
    """Appends lines to this process's own file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def invoked(self, name: str) -> None:
        """Note that a call begins."""
        os.write(self._fd, b"I %s %d\n" % (name.encode(), time.monotonic_ns()))

    def acknowledged(self, name: str, seq: int) -> None:
        """Note that a call was answered."""
        os.write(self._fd, b"A %s %d %d\n" % (name.encode(), time.monotonic_ns(), seq))


class Call:
    """One append as its caller saw it; `acknowledged` and `seq` are 0 if the answer never came."""

    __slots__ = ("acknowledged", "invoked", "seq")

    def __init__(self, invoked: int) -> None:
        self.invoked = invoked
        self.acknowledged = self.seq = 0


def read_calls(folder: str) -> dict[str, Call]:
    """Return every call of every log in `folder`, by its id."""
    calls: dict[str, Call] = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="ascii") as lines:
            for line in lines:
                what, call_id, at_ns, *seq = line.split()
                if what == "I":
                    calls[call_id] = Call(int(at_ns))
                else:
                    calls[call_id].acknowledged, calls[call_id].seq = int(at_ns), int(seq[0])
    return calls


def open_session(path: str, *, compact_shards: int | None = None) -> Session:
    """Open the shared session as a program of its own."""
    return shardstore.open(path, compact_shards=compact_shards).session(SESSION)


def ready(folder: str, name: str, go: str) -> None:
    """Say that this process is up, then wait for the file `go`."""
    with open(os.path.join(folder, name), "w", encoding="ascii"):
        pass
    while not os.path.exists(go):
        time.sleep(0.005)


def write(path: str, log: str, name: str, appends: int, source: str, compact_shards: int | None) -> None:
    """Append `appends` records durably, each with an id of its own, and log every call."""
    session, calls = open_session(path, compact_shards=compact_shards), CallLog(log)
    kind = "turn" if source == "main" else "event"
    for n in range(appends):
        call_id = f"{name}:{n}"
        calls.invoked(call_id)
        receipt = session.append({"id": call_id, "pad": "x" * (n % 7 * 40)}, kind=kind, source=source)  # type: ignore[arg-type]
        calls.acknowledged(call_id, receipt.seq)


def compact_until(path: str, stop: str) -> None:
    """Compact without a pause, whatever little there is, until the file `stop` is there."""
    session = open_session(path)
    while not os.path.exists(stop):
        with suppress(shardstore.NotFound):
            session.compact()


# ------------------------------------------------------------------ readers


def read_until(path: str, stop: str, how: str, out: str) -> None:
    """Read in one way until the file `stop` is there; every read must agree with and extend the ones before."""
    session = open_session(path)
    seen: list[str] = []
    observations: list[tuple[int, int]] = []
    look = {"whole": _whole, "tail": _tail, "last": _last, "backwards": _backwards}[how]
    while True:
        ended = os.path.exists(stop)
        began = time.monotonic_ns()
        reached = 0
        with suppress(shardstore.NotFound):
            reached = look(session, seen)
        observations.append((began, reached))
        if ended:
            break
    _report(out, seen, observations)


def follow_until(path: str, stop: str, out: str) -> None:
    """Follow from the beginning until the file `stop` is there and everything up to the head was delivered."""
    session = open_session(path)
    while not _exists(session):
        time.sleep(0.005)
    seen: list[str] = []
    enough = threading.Event()

    def wait_for_the_end() -> None:
        while not (os.path.exists(stop) and len(seen) == session.head()):
            time.sleep(0.02)
        enough.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    for record in session.follow(0, stop=enough):
        assert record.seq == len(seen) + 1, "a follower skipped or repeated a record"
        seen.append(record.nonce)
    _report(out, seen, [])


def _exists(session: Session) -> bool:
    try:
        return session.head() > 0
    except shardstore.NotFound:
        return False


def _merge(seen: list[str], records: list[Record]) -> int:
    """Compare consecutive records with what was seen before and keep the new ones; return the last seq."""
    if not records:
        return len(seen)
    first = records[0].seq
    assert [record.seq for record in records] == list(range(first, first + len(records))), "a reader saw a gap"
    nonces = [record.nonce for record in records]
    if first <= len(seen) + 1:  # else the log grew meanwhile by more than was asked for
        known = seen[first - 1 :]
        assert nonces[: len(known)] == known[: len(nonces)], "a reader saw the past change"
        assert len(nonces) >= len(known), "a reader saw the log shrink"
        seen.extend(nonces[len(known) :])
    return records[-1].seq


def _whole(session: Session, seen: list[str]) -> int:
    return _merge(seen, list(session.records()))


def _tail(session: Session, seen: list[str]) -> int:
    return _merge(seen, list(session.records(random.randint(max(1, len(seen) - 100), len(seen) + 1))))


def _last(session: Session, seen: list[str]) -> int:
    head = session.head()
    return _merge(seen, session.last(max(1, head - len(seen)) + 5)) if head else 0


def _backwards(session: Session, seen: list[str]) -> int:
    return _merge(seen, list(session.records(max(1, len(seen) - 50), reverse=True))[::-1])


def _report(out: str, seen: list[str], observations: list[tuple[int, int]]) -> None:
    with open(out, "w", encoding="ascii") as file:
        file.write("\n".join([" ".join(f"{at}:{head}" for at, head in observations), *seen]))


def read_report(out: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return what a reader saw: its nonces, and (time it began, head it reached) of each read."""
    with open(out, encoding="ascii") as file:
        first, *seen = file.read().split("\n")
    return seen, [(int(at), int(head)) for at, _, head in (item.partition(":") for item in first.split())]


# ------------------------------------------------------------------ conditions and keys


def race_rounds(path: str, out: str, rounds: int, wait: Callable[[], object]) -> None:
    """Race every round for the one turn that may follow round's head; note won or lost."""
    session, name = open_session(path), os.path.basename(out)
    with open(out, "w", encoding="ascii") as file:
        for n in range(rounds):
            wait()
            since = max((record.seq for record in session.last(1, kind="turn")), default=0)
            wait()
            session.event({"by": name, "round": n}, source=f"heartbeat:{name}")
            try:
                receipt = session.append({"by": name, "round": n}, if_no_turn_since=since)
                file.write(f"won {n} {since} {receipt.seq}\n")
            except Conflict as conflict:
                file.write(f"lost {n} {since} {' '.join(map(str, conflict.seqs))}\n")


def retry_keys(path: str, out: str, keys: int, wait: Callable[[], object]) -> None:
    """Append the same keys as everybody else, each twice, in an order of one's own; note the seqs."""
    session = open_session(path)
    order = list(range(keys)) * 2
    random.shuffle(order)
    wait()
    with open(out, "w", encoding="ascii") as file:
        for n in order:
            receipt = session.append({"key": n}, key=f"key-{n}", source=f"pid:{os.getpid()}")
            file.write(f"{n} {receipt.seq} {receipt.nonce} {int(receipt.duplicate)}\n")
