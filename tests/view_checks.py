"""What the tests of views share: what a file should hold, by the letter of the law, and followers in threads."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import Task, wait_until

from shardstore import Store
from shardstore.views import DiskView, Outcome

__all__ = ["HEADER", "expected", "following", "holds", "is_header", "refresh", "shown_of"]

HEADER = b'{"type":"session","version":3,"id":"%d"}\n'


def is_header(line: bytes) -> bool:
    """Say whether a line is a header."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.get("type") == "session"


def shown_of(payloads: Iterable[bytes]) -> bytes:
    """Return what a view shows of these payloads, put together line by line."""
    lines: list[bytes] = []
    for payload in payloads:
        lines += [line + b"\n" for line in payload.removesuffix(b"\n").split(b"\n")] if payload else []
    first = next((line for line in lines if line.strip()), b"")
    if is_header(first):
        at = lines.index(first)
        lines[at + 1 :] = [line for line in lines[at + 1 :] if not is_header(line)]
    return b"".join(once(lines))


def once(lines: Iterable[bytes]) -> list[bytes]:
    """Return the lines without entries that equal one of the last 512 different lines with an id somewhere."""
    shown: list[bytes] = []
    before: list[bytes] = []
    for line in lines:
        if line not in before[-512:]:
            before += [line] if b'"id"' in line or b'"uuid"' in line else []
        elif has_id(line):
            continue
        shown.append(line)
    return shown


def has_id(line: bytes) -> bool:
    """Say whether a line is an entry with a name of its own."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and any(isinstance(entry.get(name), str) for name in ("id", "uuid"))


def expected(store: Store, session: str) -> bytes:
    """Return what the view of a session should hold now."""
    records = store.session(session, create=False).records()
    return shown_of(record.payload for record in records if record.kind != "control")


def refresh(store: Store, folder: Path, **options: object) -> dict[str, Outcome]:
    """Bring all files up to date, as a process that starts does; return what became of each."""
    with DiskView(store, folder, **options) as kept:  # type: ignore[arg-type]
        return {outcome.session: outcome for outcome in kept.refresh()}


@contextmanager
def following(store: Store, folder: Path, **options: object) -> Iterator[list[Outcome]]:
    """Follow in a thread; yield what became of files so far. It has looked at everything once when the block begins."""
    stop, ready, outcomes = threading.Event(), threading.Event(), list[Outcome]()
    notify = bool(options.pop("notify", True))

    def run() -> None:
        with DiskView(store, folder, **options) as kept:  # type: ignore[arg-type]
            for turn in kept.follow(stop=stop, poll_ms=20, notify=notify):
                outcomes.extend(turn.outcomes)
                if not turn.behind:
                    ready.set()

    task = Task(run)
    try:
        wait_until(lambda: ready.is_set() or not task.is_alive(), what="a follower that has caught up")
        yield outcomes
    finally:
        stop.set()
        task.result()


def holds(path: Path | str, content: bytes) -> Callable[[], bool]:
    """Return a condition: the file is there and holds exactly that."""

    def look() -> bool:
        return os.path.exists(path) and Path(path).read_bytes() == content

    return look
