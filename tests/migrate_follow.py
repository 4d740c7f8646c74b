"""What the tests of following share: an agent that does all that agents do to a transcript, and the judge.

Rule: each line is written once in all, so the judge need only compare: what the file held from one truncation,
replacement or rewriting to the next must be the view of exactly one session. Nobody can keep what nobody could see, so
the agent waits until all of it is in the store before it destroys anything, and for nothing else.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_runner import command
from helpers import wait_until
from migrate_back import below, facts
from shardstore_migrate.catalog import CATALOG_ID, Catalog, Entry
from shardstore_migrate.exporting import export
from shardstore_migrate.following import Mirror, Round

import shardstore
from shardstore import Store

__all__ = [
    "HEADER",
    "LINE",
    "Agent",
    "add",
    "assert_exports",
    "assert_views",
    "begun",
    "current",
    "ended",
    "mirror_of",
    "opened",
    "statuses",
    "views",
]

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "default"}
LINE = b'{"type":"message","id":"%d"}\n'
HEADER = b'{"type":"session","version":3,"id":"4f2a","timestamp":"2026-01-22T02:16:56.565Z","cwd":"/w"}\n'


def mirror_of(store: shardstore.Store, *paths: Path, home: Path | None = None) -> Mirror:
    """Return a mirror of some places."""
    return Mirror(store, Catalog(store), [*map(str, paths)], home=str(home or "/nowhere"), environ={})


def views(store: shardstore.Store) -> list[bytes]:
    """Return the views of all sessions that came from files, sorted."""
    ids = [info.id for info in store.sessions(archived=True) if info.id != CATALOG_ID]
    return sorted(store.session(id_, create=False).read_jsonl() for id_ in ids)


def assert_views(store: shardstore.Store, expected: list[bytes]) -> None:
    """Hold the store to having just these views; say which lines the others begin and end with."""
    have = views(store)
    more, less = list(have), []
    for view in expected:
        more.remove(view) if view in more else less.append(view)
    assert not more, ("not from a file", [_ids(view) for view in more], [_ids(view) for view in less])
    assert not less, ("missing", [_ids(view) for view in less])


def _ids(view: bytes) -> list[str]:
    return [line[:45].decode() for line in view.splitlines()]


def assert_exports(store: shardstore.Store, folder: Path, target: Path) -> None:
    """Hold the catalog's current entries to be today's files: no other, with their bytes, modes and times."""
    catalog = Catalog(store)
    catalog.refresh()
    current = [entry for entry in catalog.entries() if entry.state == "imported" and os.path.exists(entry.path)]
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert sorted(entry.path for entry in current) == files
    assert {done.status for done in export(store, current, str(target))} <= {"written"}
    for path in map(Path, files):
        assert facts(below(target, path)) == facts(path)


class Agent:
    """Writes one transcript: `past` is what it held before, `now` what it holds, complete lines only.

    A `patient` one lets the mirror see what it overwrote before it appends more: of long files only ends are compared.
    """

    def __init__(self, path: Path, store: shardstore.Store, seed: int, *, patient: bool = False) -> None:
        self.path = path
        self.past: list[bytes] = []
        self.now = b""
        self._store = store
        self._chance = random.Random(seed)
        self._count = 0
        self._seed = seed
        self._patient = patient

    def line(self) -> bytes:
        """Return a line that was never written before."""
        self._count += 1
        text = b"x" * self._chance.choice((0, 3, 200, 5000))
        return b'{"type":"message","id":"%d-%06d","message":{"content":"%s"}}\n' % (self._seed, self._count, text)

    def append(self) -> None:
        """Append a few lines, some in two writes."""
        with self.path.open("ab", buffering=0) as file:
            for _ in range(self._chance.randrange(1, 5)):
                line = self.line()
                cut = self._chance.randrange(len(line)) if self._chance.random() < 0.5 else 0
                file.write(line[:cut])
                file.write(line[cut:])
                self.now += line

    def caught_up(self) -> None:
        """Wait until all that the file holds is in the store."""
        wait_until(lambda: self.now in views(self._store), what=f"{self.path.name} in the store")

    def truncate(self) -> None:
        """Cut the file to some of its lines, perhaps none, and go on."""
        self.caught_up()
        self.past.append(self.now)
        lines = self.now.splitlines(keepends=True)
        self.now = b"".join(lines[: self._chance.randrange(len(lines))])
        os.truncate(self.path, len(self.now))
        self.append()

    def rewrite(self) -> None:
        """Write other lines into the same file, more than there were, without a moment between."""
        self.caught_up()
        self.past.append(self.now)
        self.now = b"".join(self.line() for _ in range(self.now.count(b"\n") + 3))
        self.path.write_bytes(self.now)

    def overwrite(self) -> None:
        """Change some bytes in place."""
        self.caught_up()
        self.past.append(self.now)
        at = self._chance.randrange(self.now.count(b"\n"))
        lines = self.now.splitlines(keepends=True)
        self._count += 1
        lines[at] = (b"%06d" % self._count) + lines[at][6:]
        self.now = b"".join(lines)
        with self.path.open("r+b", buffering=0) as file:
            file.write(self.now)
        if self._patient:
            self.caught_up()

    def replace(self) -> None:
        """Put another file in its place."""
        self.caught_up()
        self.past.append(self.now)
        self.now = b""
        other = self.path.with_name(self._chance.choice((f".{self.path.stem}.draft", f"{self.path.name}.tmp")))
        name, self.path = self.path, other
        self.append()
        self.path = other.rename(name)

    def rotate(self) -> None:
        """Rename the file as OpenClaw does, and begin it anew."""
        self.append()
        self.past.append(self.now)
        self.now = HEADER.replace(b"4f2a", b"%d-%06d" % (self._seed, self._count))
        self.path.rename(f"{self.path}.reset.2026-03-01T10-00-{self._count:06d}Z")
        self.path.write_bytes(self.now)

    def work(self, steps: int) -> None:
        """Do something `steps` times."""
        actions: list[Callable[[], None]] = [
            self.truncate, self.rewrite, self.overwrite, self.replace, self.rotate,
        ]  # fmt: skip
        self.append()
        for _ in range(steps):
            self._chance.choice([*[self.append] * 8, *actions])()
        self.caught_up()


def opened(path: Path) -> Store:
    """Open a store for records of any size."""
    return shardstore.open(path, record_bytes_max=1 << 30)


def add(path: Path, *pieces: bytes) -> None:
    """Append pieces to a file."""
    with path.open("ab", buffering=0) as file:
        for piece in pieces:
            file.write(piece)


def statuses(turn: Round) -> list[str]:
    """Return what became of files."""
    return [outcome.status for outcome in turn.outcomes]


def current(store: Store) -> dict[str, Entry]:
    """Return the current entries by file name."""
    catalog = Catalog(store)
    catalog.refresh()
    return {os.path.basename(path): entry for path, entry in catalog.current().items()}


def begun(store: Path, *arguments: str | Path, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Begin `shardstore migrate follow`."""
    return subprocess.Popen(
        command(store, "migrate", "follow", "--poll-ms", "50", *map(str, arguments)),
        env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Return the exit code of a process, and what it wrote."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
