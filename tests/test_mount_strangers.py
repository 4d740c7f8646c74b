"""A mounted folder beside what else happens: names that change elsewhere, files that lie beneath, copies by size."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import ENVIRONMENT, command
from mounts import Mounted, append, mounted_in, why_not
from shardstore_migrate.finding import find

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


def test_a_copy_by_the_size_shown_ends(mount: Mounted) -> None:
    """Whoever reads at the end for ever gets an error; `.real` has the right size, and the file stays usable."""
    path = mount.path / "s.jsonl"
    append(path, LINE)
    assert path.stat().st_size > 64 << 20
    with open(path, "rb", buffering=0) as file:
        assert file.read(100) == LINE
        with pytest.raises(OSError, match="Input/output") as told:
            any(file.read(100) for _ in range(READS_MAX))
    assert told.value.errno == errno.EIO
    append(path, LINE)
    assert path.read_bytes() == (mount.real / "s.jsonl").read_bytes() == LINE * 2


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
