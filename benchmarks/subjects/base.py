"""What a workload asks of a subject, and what it may say about itself.

Rule: a subject is used through the public API that its users have, set up by its own documentation's best practice.
Where its API has no way to do a thing it says so, and nothing is built for it.
"""

from __future__ import annotations

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["Handle", "Refused", "Subject", "TurnFailed"]

POLL_MS = 10  # of who follows a subject that tells nobody of what is new


class Refused(Exception):  # noqa: N818 - it is no error of ours
    """The subject did not take a record, and said so: a timeout, a lock that is held, a busy database."""


class TurnFailed(Refused):
    """A finished turn's reply was thrown away."""


class Handle(ABC):
    """A subject's store in one folder, open in one process; used by one thread. A session is made by its first append.

    A line is a JSON object and a LF. Nothing that a method raises but Refused is expected.
    `following` says how `follow` learns of what is new.
    """

    following = f"asked every {POLL_MS} ms"

    @abstractmethod
    def append(self, session: str, line: bytes) -> None:
        """Return when the line is acknowledged, as durable as the subject claims. Raises Refused."""

    @abstractmethod
    def load(self, session: str) -> list[Any]:
        """Return all entries of a session, decoded, in the subject's order."""

    def last(self, session: str, count: int) -> list[Any]:
        """Return the last entries, decoded; by default from all of them, where the API has no other way."""
        return self.load(session)[-count:]

    def since(self, session: str, seen: int) -> list[Any]:
        """Return the entries after the first `seen`, decoded; by default from all, where the API has no other way."""
        return self.load(session)[seen:]

    def follow(self, session: str, stop: threading.Event) -> Iterator[Any]:
        """Yield the entries that are committed after this call, decoded, until soon after `stop` is set.

        By default they are asked for every POLL_MS, where the API does not tell of them by itself.
        """
        return self._polled(session, len(self.load(session)), stop)

    def _polled(self, session: str, seen: int, stop: threading.Event) -> Iterator[Any]:
        while not stop.wait(POLL_MS / 1000):
            found = self.since(session, seen)
            seen += len(found)
            yield from found

    def sessions(self) -> list[str]:
        """Return the names of all sessions."""
        raise NotImplementedError

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Bring many lines in at once, as the subject's users import; by default one by one."""
        for line in lines:
            self.append(session, line)

    def fill_many(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Bring many sessions in at once, as the subject's users import; by default one after the other."""
        for session, lines in sessions:
            self.fill(session, lines)

    def compact(self, session: str) -> None:  # noqa: B027 - most have nothing to do
        """Do the upkeep that the subject has for a session, to its end; by default there is none."""

    def leave_upkeep(self) -> None:  # noqa: B027 - most have nothing to do
        """Leave all upkeep to `compact`, before the first append; by default nothing is done without being asked."""

    def begin(self, session: str) -> Any:  # noqa: ARG002
        """Begin a turn, before the model is called; return what `finish` needs."""
        return None

    def finish(self, session: str, begun: Any, line: bytes) -> None:  # noqa: ARG002
        """End a turn by committing its reply. Raises TurnFailed if the reply is thrown away, Refused."""
        self.append(session, line)

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of everything."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One contender: `open` takes a folder, which is its own alone.

    `durable`: what is acknowledged survives a power loss. `modules` must be importable (else it is missing: `extra`
    brings them), and `place` must have nothing against the folder (else it says what). `cannot` maps workloads to the
    reason why the subject has no figures there. A floor (`is_floor`) is no store, but the bare system calls of an
    append. `writers_max`: how many processes may import it at once.
    """

    name: str
    label: str
    durable: bool
    open: Callable[[str], Handle]
    modules: tuple[str, ...] = ()
    is_floor: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)
    only: str = ""  # a workload, if it takes part in no other
    writers_max: int = 1_000
    place: Callable[[str], str | None] = lambda folder: None  # noqa: ARG005

    def missing(self, folder: str = ".") -> str | None:
        """Return what has to be installed, or why it can't work in `folder`; None if all is there."""
        gone = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{', '.join(gone)}: pip install 'shardstore[bench]'" if gone else self.place(folder)


def decoded(lines: Iterable[bytes]) -> list[Any]:
    """Return JSON lines as objects; every subject decodes with the same decoder."""
    return [orjson.loads(line) for line in lines]
