"""What agent gateways do today: one file a session, a lock file, and a fingerprint while the lock is away.

An attempt (one turn of one lane) takes the lock. Before it calls the model it notes the file's fingerprint (dev, ino,
size, mtime_ns, ctime_ns) and lets go of the lock, for the model may think for minutes. Each later write takes the lock
for a moment and compares first: another fingerprint means that somebody wrote, and the write is refused. One growth is
forgiven: assistant entries alone, as a delivery mirror adds them. Anything else is final for the attempt: a reply to
a conversation that has moved on must not be filed, and nobody can tell a heartbeat from a moved conversation by a
fingerprint. Writers without an attempt (heartbeat, cron, hook) take the lock, append a line and let go.

This follows OpenClaw's session lock and its error messages, written anew. Left out because the demo never meets
them: breaking a dead process's lock, and forgiving writers of the same process, for all lanes here are processes of
their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from shardstore.demo.transcript import role_of

__all__ = [
    "EmbeddedAttemptSessionTakeoverError",
    "FencedAttempt",
    "Fingerprint",
    "SessionWriteLockTimeoutError",
    "append_locked",
]

LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.002


class EmbeddedAttemptSessionTakeoverError(Exception):
    """The file is not what it was when the lock was released: this attempt may not write any more."""

    def __init__(self, path: str) -> None:
        super().__init__(f"session file changed while embedded prompt lock was released: {path}")


class SessionWriteLockTimeoutError(Exception):
    """Somebody else held the lock for too long."""

    def __init__(self, path: str) -> None:
        super().__init__(f"session file locked (timeout {LOCK_TIMEOUT_S * 1000:.0f}ms): {path}")


@dataclass(frozen=True)
class Fingerprint:
    """What a gateway compares to learn whether anybody touched the file."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str) -> Fingerprint:
        """Take the fingerprint of a file."""
        facts = os.stat(path)
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


class FencedAttempt:
    """One attempt's hold on a session file. Begins with the lock taken; `close` ends it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fence: Fingerprint | None = None  # set while the lock is away
        self._taken_over = False
        _take_lock(path)
        self._holds_lock = True

    def release_for_prompt(self) -> None:
        """Let go of the lock while the model thinks; remember what the file looked like."""
        if self._holds_lock:
            self._fence = Fingerprint.of(self._path)
            self._holds_lock = False
            _drop_lock(self._path)

    def write(self, line: bytes) -> None:
        """Append one line, if nobody wrote meanwhile; EmbeddedAttemptSessionTakeoverError otherwise, and ever after."""
        if self._holds_lock:
            _append(self._path, line)
            return
        with _locked(self._path):
            self._compare()
            _append(self._path, line)
            self._fence = Fingerprint.of(self._path)

    def close(self) -> None:
        """Let go of the lock if the attempt ends with it."""
        if self._holds_lock:
            self._holds_lock = False
            _drop_lock(self._path)

    def _compare(self) -> None:
        """Raise unless the file is as this attempt left it, or has grown by assistant entries alone."""
        now = Fingerprint.of(self._path)
        if not self._taken_over and (now == self._fence or self._forgiven(now)):
            return
        self._taken_over = True
        raise EmbeddedAttemptSessionTakeoverError(self._path)

    def _forgiven(self, now: Fingerprint) -> bool:
        """Say whether the difference is growth of the same file by assistant entries and nothing else."""
        then = self._fence
        if then is None or (now.device, now.inode) != (then.device, then.inode) or now.size_bytes <= then.size_bytes:
            return False
        with open(self._path, "rb") as file:
            file.seek(then.size_bytes)
            grown = file.read(now.size_bytes - then.size_bytes)
        return grown.endswith(b"\n") and all(role_of(line) == "assistant" for line in grown[:-1].split(b"\n"))


def append_locked(path: str, lines: Sequence[bytes]) -> None:
    """Append lines under the lock, as whoever has no attempt of its own does."""
    with _locked(path):
        for line in lines:
            _append(path, line)


def _append(path: str, line: bytes) -> None:
    with open(path, "ab") as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(path: str) -> Iterator[None]:
    _take_lock(path)
    try:
        yield
    finally:
        _drop_lock(path)


def _take_lock(path: str) -> None:
    """Create the lock file; wait while it is somebody else's. Raises SessionWriteLockTimeoutError."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            descriptor = os.open(path + ".lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            if time.monotonic() >= deadline:
                raise SessionWriteLockTimeoutError(path) from None
            time.sleep(LOCK_POLL_S)
            continue
        os.write(descriptor, str(os.getpid()).encode("ascii"))
        os.close(descriptor)
        return


def _drop_lock(path: str) -> None:
    os.unlink(path + ".lock")
