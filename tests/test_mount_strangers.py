"""A mounted folder beside what else happens: names that change elsewhere, files that lie beneath, copies by size."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import ENVIRONMENT, command
from mounts import Mounted, append, mounted_in, why_not
from shardstore_migrate.finding import find

import shardstore
from shardstore.mount import files
from shardstore.mount.handles import Sessions

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LINE = b'{"n":1}\n'
READS_MAX = 1_000_000


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store."""
    yield from mounted_in(tmp_path)


def refused(store: Path, *words: str) -> bytes:
    """Run a command that must be refused; return what it says."""
    done = subprocess.run(command(store, *words), env=ENVIRONMENT, capture_output=True, timeout=60)
    assert done.returncode == 2, done
    return done.stderr


def test_what_happens_elsewhere_is_seen_at_once(mount: Mounted) -> None:
    """A session that the API has archived is not there, however short a time ago it was asked for."""
    for number in range(20):
        path = mount.path / f"{number}.jsonl"
        append(path, LINE)
        assert path.exists()
        mount.session(str(number)).archive()
        assert not path.exists()


def test_folders_of_sessions_are_no_loop(mount: Mounted) -> None:
    """Folders within folders, all implied by one session, have inodes of their own: tools go through them."""
    mount.session("a/b/c/s").append(LINE)
    folders = [mount.path, *(mount.path / name for name in ("a", "a/b", "a/b/c"))]
    assert len({folder.stat().st_ino for folder in folders}) == len(folders)
    found = subprocess.run(["find", ".", "-name", "*.jsonl"], cwd=mount.path, capture_output=True, check=True)
    assert (found.stdout, found.stderr) == (b"./a/b/c/s.jsonl\n", b"")
    shutil.rmtree(mount.path / "a")
    assert not (mount.path / "a").exists()


def test_a_folder_stays_when_its_last_session_goes(mount: Mounted) -> None:
    """Files can be made in it again; it goes when it is removed itself."""
    folder = mount.path / "agents" / "main"
    mount.session("agents/main/s").append(LINE)
    mount.session("agents/other").append(LINE)
    os.unlink(folder / "s.jsonl")
    append(folder / "t.jsonl", LINE)
    os.rename(folder / "t.jsonl", mount.path / "t.jsonl")
    assert os.listdir(folder) == []
    os.rmdir(folder)
    assert os.listdir(mount.path / "agents") == ["other.jsonl"]


def test_no_folder_has_a_name_of_a_session(mount: Mounted) -> None:
    """What lay in it could become a session's name by a rename, and would be hidden."""
    with pytest.raises(PermissionError):
        os.mkdir(mount.path / "a.jsonl")


def test_what_was_brought_in_does_not_come_back(mount: Mounted) -> None:
    """A transcript beneath its session is not shown when that was renamed, removed or archived; mounting goes on."""
    mount.stop()
    for name in "xyz":
        (mount.path / f"{name}.jsonl").write_bytes(b"old\n")
        mount.session(name).append(b"old\n")
    (mount.path / "plain.txt").write_bytes(b"plain")
    mount.start()
    os.rename(mount.path / "x.jsonl", mount.path / "x.jsonl.reset.1")
    os.unlink(mount.path / "y.jsonl")
    mount.session("z").archive()
    for _ in range(2):
        assert sorted(os.listdir(mount.path)) == ["plain.txt", "x.jsonl.reset.1"]
        assert not any((mount.path / f"{name}.jsonl").exists() for name in "xyz")
        mount.stop()
        mount.start()
    append(mount.path / "x.jsonl", LINE)
    assert (mount.path / "x.jsonl").read_bytes() == LINE
    mount.stop()
    assert (mount.path / "x.jsonl").read_bytes() == b"old\n"  # the folder beneath is as it was


def test_transcripts_that_the_mount_would_hide_are_refused(tmp_path: Path) -> None:
    """Plain files elsewhere (`--files`) are no reason to hide what lies in the folder itself."""
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "old.jsonl").write_bytes(LINE)
    told = refused(tmp_path / "store", "mount", str(tmp_path / "mount"), "--files", str(tmp_path / "files"))
    assert b"old.jsonl" in told
    assert b"shardstore migrate run" in told


@pytest.mark.parametrize("prefix", ["..", ".", "x//y", "a.jsonl", ".real", "n" * 300])
def test_a_prefix_without_a_place_is_refused(tmp_path: Path, prefix: str) -> None:
    """No session could be made below it."""
    assert b"prefix" in refused(tmp_path / "store", "mount", str(tmp_path / "mount"), "--prefix", prefix)


def test_what_differs_from_its_session_is_refused(mount: Mounted) -> None:
    """What was written while nothing was mounted would be hidden, and nobody would have it."""
    for name, archived in (("shown", False), ("archived", True)):
        session = mount.session(name)
        session.append(b"old\n")
        if archived:
            session.archive()
    gone = mount.session("deleted")
    gone.append(b"old\n")
    gone.delete()
    mount.stop()
    for name in ("shown", "archived", "deleted", "\u6f22" * 60):
        path = mount.path / f"{name}.jsonl"
        path.write_bytes(b"old\nnew\n")
        assert path.name.encode() in refused(mount.store_path, "mount", str(mount.path))
        path.unlink()
    (mount.path / "shown.jsonl").write_bytes(b"ol")
    mount.start()
    assert (mount.path / "shown.jsonl").read_bytes() == b"old\n"


@pytest.mark.parametrize("options", [(), ("--purge",)])
def test_a_purge_takes_what_lies_beneath(mount: Mounted, options: tuple[str, ...]) -> None:
    """Whoever deletes for good does not keep a copy under the name; without that, it stays."""
    path = mount.path / "s.jsonl"
    mount.session("s").append(b"old\n")
    mount.stop()
    path.write_bytes(b"old\n")
    mount.start(*options)
    os.unlink(path)
    mount.stop()
    assert path.exists() == (not options)


def test_a_rename_leaves_what_lies_hidden(mount: Mounted) -> None:
    """A session that takes the name of an archived one does not take the transcript that lies beneath."""
    mount.stop()
    (mount.path / "b.jsonl").write_bytes(b"old\n")
    session = mount.session("b")
    session.append(b"old\n")
    session.archive()
    mount.start()
    append(mount.path / "a.jsonl", LINE)
    os.rename(mount.path / "a.jsonl", mount.path / "b.jsonl")
    assert (mount.path / "b.jsonl").read_bytes() == LINE
    mount.stop()
    assert (mount.path / "b.jsonl").read_bytes() == b"old\n"


def test_a_copy_by_the_size_shown_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads at the end for long without a pause gets an error, unless the size that he sees is right."""
    monkeypatch.setattr(files, "IDLE_S", 0.05)
    monkeypatch.setattr(files, "PAUSE_S", 5.0)
    sessions = Sessions(shardstore.open(tmp_path / "store", durability="none"))
    sessions.create("s.jsonl", os.O_RDWR, os.getpid()).write(LINE, 0)
    copied = sessions.open("s.jsonl", os.O_RDONLY, os.getpid())
    assert copied.read(100, 0) == LINE
    with pytest.raises(OSError, match="Input/output"):
        any(copied.read(100, len(LINE)) for _ in range(READS_MAX))
    assert copied.read(100, 0) == LINE
    polled = sessions.open("s.jsonl", os.O_RDONLY, os.getpid())
    polled.shows_size = True
    deadline_s = time.monotonic() + 0.2
    while time.monotonic() < deadline_s:
        assert polled.read(100, len(LINE)) == b""


def test_the_size_shown_is_above_what_programs_copy(mount: Mounted) -> None:
    """OpenClaw copies transcripts up to 64 MiB by their size."""
    append(mount.path / "s.jsonl", LINE)
    assert (mount.path / "s.jsonl").stat().st_size > 64 << 20


def test_nothing_is_brought_in_from_a_mounted_store(mount: Mounted, tmp_path: Path) -> None:
    """It would feed a session to itself; the mount is named, whichever way the search comes to it."""
    append(mount.path / "s.jsonl", LINE)
    (tmp_path / "other.jsonl").write_bytes(LINE)
    for paths in ([str(mount.path)], [str(mount.path / "s.jsonl")], [str(mount.real)]):
        found, problems = find(paths, home=str(tmp_path), environ={})
        assert found == []
        assert [(one.path, "mounted" in one.reason) for one in problems] == [(str(mount.path), True)]
    found, _ = find([str(tmp_path)], home=str(tmp_path), environ={})
    assert [one.path for one in found if "/store/" not in one.path] == [str(tmp_path / "other.jsonl")]
