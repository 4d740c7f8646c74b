"""A `.jsonl` as agent gateways guard it: a lock file around every write, and something that guards a whole turn.

A model of OpenClaw 2026.5.20's protocol, read from what it ships; OpenClaw itself is written in JavaScript and does
much more at each step, so this flatters its speed. It flushes no transcript, and so this is unsynced.

The lock: `<file>.lock` is created with O_EXCL and says who holds it since when; who finds it there tries again every
50 ms for up to 60 s. It is taken from a holder that is dead, that is no longer the same process, or that has held it
for 30 minutes; a lock file that says nothing is an orphan after 5 s.

Rule: `gateway-fence` is what that version does. It lets go of the lock while the model is called, after a note of the
file's device, inode, size and times, and compares them before it writes the reply: if anybody has written meanwhile,
unless it was an assistant's lines alone, the reply is thrown away (EmbeddedAttemptSessionTakeoverError).
`gateway-lock` is the other way: it holds the lock from before the model call until the reply is written, and whoever
waits for longer than the timeout gives up (SessionWriteLockTimeoutError).
Strategy: in a workload of turns a model call takes some ten ms in place of as many seconds, so `gateway-lock` waits for
60 ms in place of 60 s. It looks every ms, twenty times as seldom as that would make 50 ms, lest waiting burns the
processors that all share. `gateway-fence` never waits for a model call; its times are the real ones.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from benchmarks.subjects.base import Refused, Subject, TurnFailed
from benchmarks.subjects.plain import Jsonl

__all__ = ["SUBJECTS", "EmbeddedAttemptSessionTakeoverError", "Patience", "SessionWriteLockTimeoutError"]

STALE_S = 1_800.0
ORPHAN_S = 5.0
TURNS = "turns"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class SessionWriteLockTimeoutError(Refused):
    """The lock was held by others for too long."""


class EmbeddedAttemptSessionTakeoverError(TurnFailed):
    """Somebody wrote to the session while the model was called."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a lock, and how often to look."""

    timeout_s: float = 60.0
    retry_s: float = 0.05


SHORTENED = 1_000  # model calls: some ten ms in place of as many seconds
IN_TURNS = Patience(Patience().timeout_s / SHORTENED, 0.001)


@dataclass(frozen=True, slots=True)
class _Found:
    """A lock file as it was read."""

    text: str
    device: int
    inode: int
    written_s: float

    @classmethod
    def at(cls, path: str) -> _Found | None:
        """Read a lock file, None if there is none."""
        with suppress(FileNotFoundError):
            state = os.lstat(path)
            with open(path) as file:
                return cls(file.read(), state.st_dev, state.st_ino, state.st_mtime)
        return None


class _Lock:
    """A session's lock file, held from `acquire` to `release`."""

    def __init__(self, path: str, patience: Patience) -> None:
        self._path = path + ".lock"
        self._patience = patience
        self._mine: _Found | None = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Create the file. Raises SessionWriteLockTimeoutError."""
        give_up = time.monotonic() + self._patience.timeout_s
        while not self._create():
            if (found := _Found.at(self._path)) is None:
                continue
            if _is_stale(found):
                self._remove(found)
                continue
            left = give_up - time.monotonic()
            if left <= 0:
                raise SessionWriteLockTimeoutError(f"session file locked: {self._path}")
            time.sleep(min(self._patience.retry_s, left))

    def _create(self) -> bool:
        try:
            file = os.open(self._path, _CREATE, 0o600)
        except FileExistsError:
            return False
        try:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            owner = {"pid": os.getpid(), "createdAt": now, "starttime": _started(os.getpid())}
            text, state = json.dumps(owner, indent=2) + "\n", os.fstat(file)
            os.write(file, text.encode())
        finally:
            os.close(file)
        self._mine = _Found(text, state.st_dev, state.st_ino, state.st_mtime)
        return True

    def release(self) -> None:
        """Remove the file, unless it is somebody else's by now."""
        if self._mine is not None:
            self._remove(self._mine)
        self._mine = None

    def _remove(self, known: _Found) -> None:
        found = _Found.at(self._path)
        if found and (found.text, found.device, found.inode) == (known.text, known.device, known.inode):
            with suppress(FileNotFoundError):
                os.unlink(self._path)


def _is_stale(found: _Found) -> bool:
    """Say whether a lock may be taken away from who holds it."""
    now = time.time()
    try:
        owner = json.loads(found.text)
        process, started = int(owner["pid"]), owner.get("starttime")
        since = datetime.datetime.fromisoformat(owner["createdAt"]).timestamp()
    except (ValueError, TypeError, KeyError):
        return now - found.written_s > ORPHAN_S  # it may be being written
    if now - since > STALE_S:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return started is not None and _started(process) not in (None, started)


def _started(process: int) -> int | None:
    """Return when a process began (clock ticks since the boot), None where that can't be known."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])
    return None


_Mark = tuple[int, int, int, int, int]


def _mark(path: str) -> _Mark | None:
    """Return a file's fingerprint: device, inode, size, times in ns; None if there is none."""
    with suppress(FileNotFoundError):
        state = os.stat(path)
        return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    return None


def _is_only_replies(path: str, before: _Mark | None, now: _Mark | None) -> bool:
    """Say whether the file has only grown, and only by an assistant's lines."""
    if before is None or now is None or before[:2] != now[:2] or now[2] <= before[2]:
        return False
    with open(path, "rb") as file:
        file.seek(before[2])
        return all(map(_is_assistant, file.read(now[2] - before[2]).split(b"\n")))


def _is_assistant(line: bytes) -> bool:
    if not line.strip():
        return True
    try:
        entry = orjson.loads(line)
    except ValueError:
        return False
    message = entry.get("message") if isinstance(entry, dict) else None
    return isinstance(message, dict) and message.get("role") == "assistant"


class GatewayFence(Jsonl):
    """A file that is opened for every write, under its lock; a fence around turns."""

    def __init__(self, folder: str, *, patience: Patience) -> None:
        super().__init__(folder, durable=False)
        self._patience = patience

    def lock(self, session: str) -> _Lock:
        """Return a new lock on a session, not held yet."""
        return _Lock(self.path(session), self._patience)

    def _write(self, session: str, line: bytes) -> None:
        file = os.open(self.path(session), _APPEND, 0o600)
        try:
            if os.write(file, line) != len(line):
                raise OSError(f"{self.path(session)}: a line was cut short")
        finally:
            os.close(file)

    def append(self, session: str, line: bytes) -> None:
        """Write a line under the lock, as a co-tenant does, and a user's message before its turn."""
        with self.lock(session):
            self._write(session, line)

    def begin(self, session: str) -> Any:
        """Take the fingerprint. Without the lock: OpenClaw holds the one of the user's message until here."""
        return _mark(self.path(session))

    def finish(self, session: str, begun: Any, line: bytes) -> None:
        """Take the lock, compare, and write the reply. Raises EmbeddedAttemptSessionTakeoverError, TurnFailed."""
        path = self.path(session)
        with ExitStack() as held:
            try:
                held.enter_context(self.lock(session))
            except SessionWriteLockTimeoutError as error:
                raise TurnFailed(str(error)) from error
            now = _mark(path)
            if now != begun and not _is_only_replies(path, begun, now):
                raise EmbeddedAttemptSessionTakeoverError(f"session file changed: {path}")
            self._write(session, line)


class GatewayLock(GatewayFence):
    """The same lock, held through the turn; what the turn itself appends meanwhile goes through."""

    def __init__(self, folder: str, *, patience: Patience) -> None:
        super().__init__(folder, patience=patience)
        self._held: dict[str, _Lock] = {}

    def append(self, session: str, line: bytes) -> None:
        """Write a line under the lock."""
        if session in self._held:
            self._write(session, line)
        else:
            super().append(session, line)

    def begin(self, session: str) -> Any:
        """Take the lock, for the whole turn. Raises SessionWriteLockTimeoutError."""
        lock = self.lock(session)
        lock.acquire()
        self._held[session] = lock

    def finish(self, session: str, begun: Any, line: bytes) -> None:  # noqa: ARG002
        """Write the reply and let go of the lock."""
        try:
            self._write(session, line)
        finally:
            self._held.pop(session).release()

    def close(self) -> None:
        """Let go of every lock."""
        while self._held:
            self._held.popitem()[1].release()
        super().close()


SUBJECTS = (
    Subject(
        "gateway-fence",
        ".jsonl, gateway's lock and fence (a model of OpenClaw's)",
        False,
        partial(GatewayFence, patience=Patience()),
    ),
    Subject(
        "gateway-lock",
        ".jsonl, gateway's lock held through turns (a model)",
        False,
        partial(GatewayLock, patience=IN_TURNS),
        only=TURNS,
    ),
)
