"""Following: files grow as sessions do, new ones appear, touched ones are repaired, and no kill leaves a wrong one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, ENVIRONMENT, command, read_until
from helpers import DEADLINE_S as WAIT_S
from helpers import Task, wait_until
from view_checks import HEADER, expected, following, holds, refresh, shown_of

import shardstore
from shardstore import Conflict, Deleted, NotFound, Store
from shardstore import views as views_module
from shardstore.viewfiles import DESCRIPTORS_MAX
from shardstore.views import DiskView


@pytest.fixture
def store(store_path: str) -> Iterator[Store]:
    """Open a store."""
    with shardstore.open(store_path, durability="none") as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for views, which does not exist yet."""
    return tmp_path / "views"


def same(store: Store, folder: Path, session: str) -> Callable[[], bool]:
    """Return a condition: the file holds what the session does now."""
    return holds(folder / f"{session}.jsonl", expected(store, session))


@pytest.mark.parametrize("notify", [True, False])
@pytest.mark.parametrize("durability", ["none", "sync"])
def test_appends_and_new_sessions(store_path: str, folder: Path, notify: bool, durability: str) -> None:
    """Each append is soon in its file, a new session soon has one, with and without notifications."""
    with shardstore.open(store_path, durability=durability) as store:  # type: ignore[arg-type]
        store.session("a").append(HEADER % 1)
        with following(store, folder, notify=notify):
            inode = (folder / "a.jsonl").stat().st_ino
            for number in range(5):
                store.session("a").append({"n": number})
                wait_until(same(store, folder, "a"), what="an append in its file")
                store.session(f"nested/{number}").append({"n": number})
                wait_until(same(store, folder, f"nested/{number}"), what="a new session's file")
            store.session("a").append(HEADER % 2)
            store.create("empty")
            wait_until(holds(folder / "empty.jsonl", b""), what="an empty session's file")
            assert (folder / "a.jsonl").stat().st_ino == inode
        assert (folder / "a.jsonl").read_bytes() == expected(store, "a")


@pytest.mark.parametrize("harm", ["append", "cut", "replace", "unlink", "touch", "chmod", "edit"])
def test_a_file_that_somebody_touches_is_repaired(store: Store, folder: Path, harm: str) -> None:
    """Without any append to the session, whatever was done to its file is found and put right; readers keep theirs."""
    for number in range(3):
        store.session("a").append({"n": number})
    path = folder / "a.jsonl"
    with following(store, folder):
        with open(path, "rb") as reader:
            os.chmod(path, 0o644)
            if harm == "append":
                path.write_bytes(path.read_bytes() + b"junk\n")
            elif harm == "cut":
                os.truncate(path, 10)
            elif harm == "edit":
                path.write_bytes(path.read_bytes().replace(b"1", b"7"))
            elif harm == "replace":
                (folder / "other").write_bytes(b"")
                os.rename(folder / "other", path)
            elif harm == "unlink":
                os.unlink(path)
            elif harm == "touch":
                os.utime(path)
            seen = reader.read()
            right = same(store, folder, "a")
            wait_until(lambda: right() and path.stat().st_mode & 0o777 == 0o444, what="the repair")
            assert os.pread(reader.fileno(), len(seen), 0) == seen
        store.session("a").append({"more": 1})
        wait_until(same(store, folder, "a"), what="an append after the repair")


def test_deletion_and_archive_while_following(store: Store, folder: Path) -> None:
    """A deleted session's file goes, an archived one's goes and comes back; who holds one keeps what it has."""
    for name in ("gone", "old"):
        store.session(name).append({"n": name})
    with following(store, folder), open(folder / "gone.jsonl", "rb") as reader:
        store.session("gone").delete()
        store.session("old").archive()
        wait_until(lambda: os.listdir(folder) == [".shardstore-view"], what="both files gone")
        assert reader.read() == b'{"n":"gone"}\n'
        store.session("old").unarchive()
        wait_until(same(store, folder, "old"), what="the archived session's file")


def test_what_fails_is_told_once_and_tried_again(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in a file's place is that session's error, told once; others go on, and so does it in the end."""
    monkeypatch.setattr(views_module, "RETRY_S", 0.05)
    (folder / "a.jsonl").mkdir(parents=True)
    (folder / ".shardstore-view").write_text('{"shardstore_view": 1, "store": "%s"}' % os.path.realpath(store.path))  # noqa: UP031
    for name in ("a", "a//b"):
        store.session(name).append({})
    with following(store, folder) as outcomes:
        for number in range(5):
            store.session("a").append({"n": number})
            store.session("b").append({"n": number})
            wait_until(same(store, folder, "b"), what="the other session's file")
        assert sorted(outcome.session for outcome in outcomes if outcome.error) == ["a", "a//b"]
        (folder / "a.jsonl").rmdir()
        wait_until(same(store, folder, "a"), what="its file after all")


def test_a_marker_that_is_gone_ends_it(store: Store, folder: Path) -> None:
    """Without its own marker a follower stops: another one may be writing."""
    with DiskView(store, folder) as kept:
        stop = threading.Event()
        task = Task(lambda: list(kept.follow(stop=stop, poll_ms=20, notify=False)))
        wait_until((folder / ".shardstore-view").exists, what="the marker")
        os.unlink(folder / ".shardstore-view")
        with pytest.raises(Conflict, match="removed or replaced"):
            task.result()
        refresh(store, folder)


def test_many_sessions_few_descriptors(store: Store, folder: Path) -> None:
    """Two hundred sessions that all grow, some compacted, are followed with a bounded number of open files."""
    names = [f"agent/{number}" for number in range(200)]
    for name in names:
        store.session(name).append(HEADER % 1)
    chance = random.Random(5)
    with following(store, folder):
        for _ in range(600):
            name = chance.choice(names)
            store.session(name).append(b'{"x":"%s"}' % (b"x" * chance.randrange(2_000)))
            if chance.random() < 0.03:
                store.session(name).compact()
        for name in names:
            wait_until(same(store, folder, name), what=name)
        assert sum(path.startswith(str(folder)) for path in _held()) <= DESCRIPTORS_MAX + 2


def _held() -> list[str]:
    """Return the paths of all files that this process holds open; none where the system does not tell."""
    found = []
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_large_backlogs_hold_up_nobody(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While long sessions are being shown, what is appended to others comes first, and few files are open at once."""
    monkeypatch.setattr(views_module, "SLICE_S", 0.0005)
    monkeypatch.setattr(views_module, "JOBS_MAX", 3)
    names = [f"x{number}" for number in range(6)]
    for name in names:
        for _ in range(12):
            store.session(name).append(b'{"x":"%s"}\n' % (b"x" * 300_000))
    store.session("a").append({})
    refresh(store, folder, sessions=["a"])
    with DiskView(store, folder) as kept:
        kept._slow = {names[0]: None}
        kept._hot = dict.fromkeys(names[1:])
        assert kept._turn() == []
        assert len(kept._jobs) in (3, 4)
        assert len(kept._slow) == 6
        store.session("a").append({"n": 1})
        kept._hot["a"] = None
        assert [outcome.session for outcome in kept._turn()] == ["a"]
        assert same(store, folder, "a")()
        for _ in range(1_000):
            kept._turn()
        assert not kept._slow
    with following(store, folder):
        for name in names:
            assert same(store, folder, name)()
        assert not list(folder.glob(".shardstore-view-*"))


def test_a_compactor_and_a_deleter_at_work(store_path: str, folder: Path) -> None:
    """Readers see prefixes at every moment, and the end is exact, while sessions are compacted and deleted."""
    names = [f"s{number}" for number in range(6)]
    stop = threading.Event()
    with shardstore.open(store_path, durability="none", compact_shards=None) as store, following(store, folder):
        payloads: dict[str, list[bytes]] = {name: [] for name in names}

        def write() -> None:
            chance = random.Random(1)
            for number in range(900):
                name = chance.choice(names)
                payload = b'{"n":%d,"x":"%s"}\n' % (number, b"x" * chance.choice((10, 3_000)))
                payloads[name].append(payload)
                try:
                    store.session(name, create=True).append(payload)
                except Deleted:
                    payloads[name].pop()
                if number == 600:
                    store.session("s0").delete()

        def compact() -> None:
            while not stop.is_set():
                for name in names:
                    with suppress(NotFound):
                        store.session(name, create=False).compact()

        def read() -> None:
            while not stop.is_set():
                for name in names:
                    try:
                        content = (folder / f"{name}.jsonl").read_bytes()
                    except FileNotFoundError:
                        continue
                    assert shown_of(payloads[name]).startswith(content), name

        others = [Task(compact), Task(read)]
        try:
            write()
            for name in names[1:]:
                wait_until(holds(folder / f"{name}.jsonl", shown_of(payloads[name])), what=name)
            wait_until(lambda: not (folder / "s0.jsonl").exists(), what="the deleted session's file gone")
        finally:
            stop.set()
            for task in others:
                task.result()


def _started(store: Store, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    words = command(store.path, "view", str(folder), "--follow", *arguments)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)


def test_kills_at_random_points(store: Store, folder: Path) -> None:
    """Killed at any moment, the next one makes every file right, sweeps what was left, and only appends to prefixes."""
    chance = random.Random(7)
    names = ["a", "nested/b", "large"]
    store.session("large").append(b'{"x":"%s"}\n' % (b"y" * 3_000_000))
    for turn in range(int(os.environ.get("SHARDSTORE_VIEW_KILLS", "4"))):
        with _started(store, folder) as process:
            kill = threading.Timer(chance.uniform(0.3, 0.8), process.kill)
            kill.start()
            while process.poll() is None:
                store.session(chance.choice(names)).append(b'{"x":"%s"}' % (b"x" * chance.choice((5, 100_000))))
            kill.cancel()
            process.communicate(timeout=DEADLINE_S)
        before = {name: _content(folder, name) for name in names}
        outcomes = refresh(store, folder)
        for name in [name for name in names if name in outcomes]:
            wanted = expected(store, name)
            content, inode = before[name]
            assert wanted.startswith(content), (turn, name)
            assert (folder / f"{name}.jsonl").read_bytes() == wanted
            assert inode in (0, (folder / f"{name}.jsonl").stat().st_ino)
        assert not list(folder.rglob(".shardstore-view-*"))


def _content(folder: Path, name: str) -> tuple[bytes, int]:
    path = folder / f"{name}.jsonl"
    return (path.read_bytes(), path.stat().st_ino) if path.exists() else (b"", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_follows_until_it_is_told_to_stop(store: Store, folder: Path, number: int) -> None:
    """It tells its state and what it did, ends with 0 on Ctrl-C and SIGTERM, and leaves the folder to the next one."""
    store.session("a").append({})
    with _started(store, folder) as process:
        assert process.stdout is not None
        assert b"1 session behind" in read_until(process.stdout, b"up to date, 1 file")
        store.session("a").append({"n": 1})
        read_until(process.stdout, b"a: appended, 1 new line")
        second = subprocess.run(
            command(store.path, "view", str(folder)), capture_output=True, env=ENVIRONMENT, timeout=DEADLINE_S
        )
        assert (second.returncode, b"another process keeps this view" in second.stderr) == (4, True)
        process.send_signal(number)
        assert process.communicate(timeout=WAIT_S)[1] == b""
    assert process.returncode == 0
    refresh(store, folder)
