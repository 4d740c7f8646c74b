"""What the tests of kills share: agents that change files between rounds, steps that kill a follower, the judge.

Strategy: the judge knows what each file held from one truncation, replacement or rewriting to the next (a `Past`), and
how much of that was ever seen in the store. Kills are exceptions, so that hundreds of schedules take seconds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shardstore_migrate.following as following
import shardstore_migrate.lines as lines
from migrate_follow import LINE, assert_exports, views
from shardstore_migrate.catalog import Catalog
from shardstore_migrate.checking import check
from shardstore_migrate.following import Mirror

import shardstore
from shardstore import Session, Store

__all__ = ["Agents", "Killed", "Steps", "drop", "judge"]


class Killed(BaseException):
    """The follower is no more."""


class Steps:
    """Counts what the follower does; at one of the counted steps it is killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0  # none: it lives
        for owner, name in ((Session, "append"), (Catalog, "add"), (following, "find"), (lines.SourceFile, "holds")):
            monkeypatch.setattr(owner, name, self._stepping(getattr(owner, name)))
        bear = Store.import_sessions

        def bearing(store: Store, sessions: Any) -> Iterator[shardstore.Imported]:
            for result in bear(store, sessions):
                yield result
                self.take()

        monkeypatch.setattr(Store, "import_sessions", bearing)

    def take(self) -> None:
        """Do one step."""
        self.left -= 1
        if self.left == 0:
            raise Killed

    def _stepping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:
            self.take()
            result = real(*arguments, **options)
            self.take()
            return result

        return stepping


def drop(mirror: Mirror) -> None:
    """Let go of a mirror as a kill does: the catalog is told nothing."""
    for live in mirror._live.values():
        live.source.close()
    mirror._live.clear()


class Past:
    """What one file held from its birth or a change in place to the next; `seen` was in the store at some time."""

    def __init__(self) -> None:
        self.lines = b""
        self.seen = b""


class File:
    """A file by all its names."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.past = Past()


class Agents:
    """Change files in a folder, and know what is in them."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.files: dict[str, File] = {}
        self.pasts: list[Past] = []
        self._chance = chance
        self._count = 0
        self._actions: list[Callable[[str], None]] = [
            *[self.append] * 8, *[self.half] * 3, *[self.truncate] * 3, *[self.rotate] * 3, self.cut, self.rewrite,
            self.overwrite, self.replace, self.delete, self.again, self.swap, self.rename, self.new,
        ]  # fmt: skip

    def act(self) -> None:
        """Do one thing to one file."""
        if self.files:
            self._chance.choice(self._actions)(self._chance.choice(sorted(self.files)))
        else:
            self.new("")

    def line(self) -> bytes:
        """Return a line that was never written before."""
        self._count += 1
        return LINE % (1_000_000 + self._count)

    def write(self, name: str, data: bytes) -> None:
        """Let the file hold `data`, which what it held begins or does not."""
        file = self.files.get(name)
        if file is None:
            file = self.files[name] = File()
            self.pasts.append(file.past)
        whole = data[: data.rfind(b"\n") + 1]
        if not data.startswith(file.past.lines):
            file.past = Past()
            self.pasts.append(file.past)
        file.past.lines = whole
        with (self.folder / name).open("r+b" if (self.folder / name).exists() else "wb", buffering=0) as out:
            if data.startswith(file.data):
                out.seek(len(file.data))
                out.write(data[len(file.data) :])
            else:
                out.truncate(min(len(data), len(file.data)))
                out.write(data)
        file.data = data

    def new(self, _: str) -> None:
        self.write(f"{self._count}.jsonl", b"")

    def append(self, name: str) -> None:
        added = b"".join(self.line() for _ in range(self._chance.randrange(1, 4)))
        self.write(name, self.files[name].data + added)

    def half(self, name: str) -> None:
        self.write(name, self.files[name].data + self.line()[: self._chance.randrange(1, 30)])

    def truncate(self, name: str) -> None:
        kept = self.files[name].data.splitlines(keepends=True)
        self.write(name, b"".join(kept[: self._chance.randrange(len(kept) + 1)]))
        if self._chance.random() < 0.5:
            self.append(name)

    def cut(self, name: str) -> None:
        data = self.files[name].data
        self.write(name, data[: self._chance.randrange(len(data) + 1)])

    def rewrite(self, name: str) -> None:
        self.write(name, b"".join(self.line() for _ in self.files[name].data.splitlines()))

    def overwrite(self, name: str) -> None:
        data = self.files[name].data.splitlines(keepends=True)
        if data:
            data[self._chance.randrange(len(data))] = self.line()
        self.write(name, b"".join(data))

    def rotate(self, name: str) -> None:
        if self._chance.random() < 0.5:
            self.append(name)
        self._count += 1
        self._rename(name, f"{name.split('.')[0]}.jsonl.reset.2026-03-01T10-00-{self._count:06d}Z")
        if self._chance.random() < 0.8:
            self.write(name, b"")
            if self._chance.random() < 0.8:
                self.append(name)

    def replace(self, name: str) -> None:
        self.write(".draft", b"".join(self.line() for _ in range(3)))
        self._rename(".draft", name)

    def rename(self, name: str) -> None:
        other = self._chance.choice(sorted(self.files))
        if other != name:
            self._rename(name, other)

    def _rename(self, name: str, other: str) -> None:
        (self.folder / name).rename(self.folder / other)
        self.files[other] = self.files.pop(name)

    def swap(self, name: str) -> None:
        other = self._chance.choice(sorted(self.files))
        if other != name:
            self._rename(name, ".aside")
            self._rename(other, name)
            self._rename(".aside", other)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink()
        del self.files[name]

    def again(self, name: str) -> None:
        self.delete(name)  # its inode is the next one's on some file systems
        self.write(name, b"".join(self.line() for _ in range(self._chance.randrange(9))))

    def look(self, store: Store, *, all_of_it: bool) -> None:
        """Note what the store holds of the files; with `all_of_it` it must."""
        held = set(views(store))
        for name, file in self.files.items():
            if file.past.lines in held:
                file.past.seen = file.past.lines
            elif all_of_it:
                raise AssertionError(("not in the store", name, file.past.lines))


def judge(store: Store, agents: Agents, target: Path) -> None:
    """Hold the store to what the files hold and held."""
    held = views(store)
    for past in agents.pasts:
        assert any(view.startswith(past.seen) for view in held), ("lost", past.seen)
    for view in held:
        assert any(past.lines.startswith(view) for past in agents.pasts), ("mixed", view)
    catalog = Catalog(store)
    catalog.refresh()
    entries = {entry.path: entry for entry in catalog.current().values() if os.path.exists(entry.path)}
    assert {os.path.basename(path) for path in entries} == agents.files.keys()
    for path, entry in entries.items():
        past = agents.files[os.path.basename(path)].past
        assert store.session(entry.session).read_jsonl() == past.lines, path
        assert getattr(check(store, entry), "status", "grew") == "grew"  # by half a line
    if all(file.data == file.past.lines for file in agents.files.values()):
        assert_exports(store, agents.folder, target)
    known = sorted((store.session(entry.session).read_jsonl() for entry in catalog.entries()), key=len, reverse=True)
    assert_each_its_own(known, agents.pasts)


def assert_each_its_own(known: list[bytes], pasts: list[Past]) -> None:
    """Hold each session that the catalog knows to being that of a past of its own, as one can be found for all."""
    owner: dict[int, bytes] = {}

    def find_one(view: bytes, tried: set[int]) -> bool:
        for number, past in enumerate(pasts):
            if number in tried or not (past.lines.startswith(view) and view.startswith(past.seen)):
                continue
            tried.add(number)
            if number not in owner or find_one(owner[number], tried):
                owner[number] = view
                return True
        return False

    for view in known:
        assert not view or find_one(view, set()), ("twice", view)
