"""What the tests of the mount share: a model of what a session shows, and a store that dies at a chosen call.

The model knows nothing of seqs on disk, images or records' bytes: it keeps the log as a list, what was shown at each
length of it, and what each process saw last, and says by the rules what a change must lead to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from shardstore import Store
from shardstore.backends.base import Backend


def whole(content: bytes) -> bytes:
    """Return content as it is shown: its last line has a LF."""
    return content + b"\n" if content and not content.endswith(b"\n") else content


def errno_of(call: Callable[[], object]) -> int | None:
    """Return the errno of the OSError that a call raises; 0 if it raises none."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


class Model:
    """One session: the log, and what each process saw last."""

    def __init__(self) -> None:
        self.log: list[bytes | None] = []  # None: a rewrite
        self.generation = 0
        self.content = b""  # of the rewrite
        self.after: list[tuple[int, bytes]] = []
        self.history = [b""]
        self.looks: dict[int, int] = {}

    @property
    def head(self) -> int:
        """The number of records."""
        return len(self.log)

    @property
    def shown(self) -> bytes:
        """What the session shows."""
        return whole(self.content) + b"".join(payload for _, payload in self.after)

    def append(self, payload: bytes, process: int | None = None) -> None:
        """Somebody appends; without a process through the API."""
        self.log.append(whole(payload))
        self.after.append((self.head, whole(payload)))
        self.history.append(self.shown)
        if process is not None and self.looks.get(process) == self.head - 1:
            self.looks[process] = self.head

    def see(self, process: int, seq: int | None = None) -> None:
        """A process saw what there is."""
        self.looks[process] = max(self.looks.get(process, 0), self.head if seq is None else seq)

    def seen_by(self, process: int) -> int:
        """Return what a rewrite that begins now stands in the place of."""
        return self.looks.get(process, self.head)

    def put(self, content: bytes, seen: int, process: int) -> None:
        """A process replaces all it knew by `content`."""
        shown, known, new = self.shown, self.history[seen], whole(content)
        if new == shown:
            return self.see(process)
        if content.startswith(shown):
            self.see(process)
            return self.append(content[len(shown) :], process)
        self.see(process, seen)
        if seen >= self.generation and len(content) >= len(known) and shown.startswith(content):
            return None
        fresh = Counter(new.splitlines()) - Counter(known.splitlines())
        later = [(seq, payload) for seq, payload in enumerate(self.log, 1) if seq > seen and payload is not None]
        held = set()
        for seq, payload in later:
            if payload and Counter(payload.splitlines()) <= fresh:
                fresh -= Counter(payload.splitlines())
                held.add(seq)
        if new.startswith(known) and not held:
            if content[len(known) :]:
                self.append(content[len(known) :], process)
            return None
        unseen = self.head - seen
        self.log.append(None)
        self.generation, self.content = self.head, content
        self.after = [(seq, payload) for seq, payload in later if seq not in held]
        self.history.append(self.shown)
        if len(held) == unseen:
            self.see(process)
        return None


class Killed(BaseException):
    """The process that made the call is gone."""


class _Dying:
    """A backend whose calls end the process at the one that was chosen: before it is made, or after."""

    VERBS = ("create", "read", "look", "list", "delete", "replace", "stage", "settle", "exclusive")

    def __init__(self, backend: Backend, fatal: int, *, before: bool) -> None:
        self._backend = backend
        self._left = fatal
        self._before = before

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._backend, name)
        return self._counted(inner) if name in self.VERBS else inner

    def _counted(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and self._before):
                raise Killed
            answer = inner(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return answer

        return call


def mortal(store: Store, fatal: int, *, before: bool) -> Store:
    """Make a store die at its `fatal`-th backend call from now on."""
    store._backend = _Dying(store._backend, fatal, before=before)  # type: ignore[assignment]
    return store
