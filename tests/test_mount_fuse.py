"""Sessions as files, through the kernel: what plain builtins and system calls find and leave on a mounted store."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted, append, append_elsewhere, lines_of, mounted_in, why_not

import shardstore

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ONE, TWO, THREE = b'{"n":1}\n', b'{"n":2}\n', b'{"n":3}\n'


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted store, empty."""
    yield from mounted_in(tmp_path)


def fingerprint(path: Path) -> tuple[int, ...]:
    """Return what a fence compares."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


# -------------------------------------------------------------- reading and appending


def test_what_is_appended_is_a_session(mount: Mounted) -> None:
    """A file that is created is a session at once; each line appended is a record; readers find the exact bytes."""
    path = mount.path / "a.jsonl"
    with open(path, "xb", buffering=0) as file:
        assert mount.session("a").head() == 0
        file.write(ONE)
        assert mount.view("a") == ONE
        file.write(TWO + THREE)
    assert path.read_bytes() == mount.view("a") == ONE + TWO + THREE
    assert [record.payload for record in mount.session("a").records()] == [ONE, TWO + THREE]
    assert path.read_text().splitlines() == ['{"n":1}', '{"n":2}', '{"n":3}']
    with pytest.raises(FileExistsError), open(path, "xb"):
        pass


def test_what_the_api_appends_is_in_the_file(mount: Mounted) -> None:
    """A reader that stands at the end of an open file gets what another process appends, with no open in between."""
    session = mount.session("a/b c/ü")
    session.append(ONE)
    path = mount.path / "a" / "b c" / "ü.jsonl"
    with open(path, "rb", buffering=0) as file:
        assert file.read(1 << 20) == ONE
        assert file.read(1 << 20) == b""
        session.event(TWO, source="heartbeat")
        assert file.read(1 << 20) == TWO
        file.seek(2)
        assert file.read(3) == ONE[2:5]
    assert path.read_bytes() == ONE + TWO


def test_listing_shows_sessions_and_plain_files(mount: Mounted) -> None:
    """Folders that ids imply are listed and can be walked; `.real` is not listed, and shows the same."""
    for id_ in ("top", "a/one", "a/b/two"):
        mount.session(id_).append(ONE)
    (mount.path / "sessions.json").write_text("{}")
    (mount.path / "a" / "one.jsonl.lock").write_text("1")  # beneath a folder that only sessions imply
    (mount.path / "empty").mkdir()
    for top in (mount.path, mount.real):
        assert sorted(os.listdir(top)) == ["a", "empty", "sessions.json", "top.jsonl"]
        assert sorted(os.listdir(top / "a")) == ["b", "one.jsonl", "one.jsonl.lock"]
        found = sorted(str(path.relative_to(top)) for path in top.rglob("*.jsonl"))
        assert found == ["a/b/two.jsonl", "a/one.jsonl", "top.jsonl"]
    with pytest.raises(OSError, match="not empty"):
        (mount.path / "a").rmdir()
    (mount.path / "empty").rmdir()
    with pytest.raises(FileNotFoundError):
        os.listdir(mount.path / "nothing")


def test_a_line_waits_for_its_newline(mount: Mounted) -> None:
    """Half a line is no record before its newline comes; a close without one commits what there is."""
    with open(mount.path / "a.jsonl", "ab", buffering=0) as file:
        file.write(ONE[:4])
        append(mount.path / "a.jsonl", TWO)
        assert mount.view("a") == TWO
        file.write(ONE[4:] + THREE[:5])
        assert mount.view("a") == TWO + ONE
    assert mount.view("a") == TWO + ONE + THREE[:5]
    append(mount.path / "a.jsonl", TWO)
    assert lines_of(mount.path / "a.jsonl") == [TWO, ONE, THREE[:5] + b"\n", TWO]


def test_a_shared_descriptor_commits_at_its_last_close(mount: Mounted) -> None:
    """A duplicated descriptor is one handle: an unfinished line of either is there once both are closed."""
    elsewhere = mount.path.parent / "a.jsonl"  # another file of that name is nobody's business
    held = elsewhere.open("wb")
    first = os.open(mount.path / "a.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    second = os.dup(first)
    os.write(second, b"half")
    os.close(second)
    assert mount.view("a") == b""
    os.close(first)
    assert mount.view("a") == b"half"
    held.close()


def test_lines_that_the_kernel_splits(mount: Mounted) -> None:
    """A line of many writes is one record, and nothing of another program stands in its middle."""
    long = b'{"long":"' + b"x" * 5_000_000 + b'"}\n'
    with open(mount.path / "a.jsonl", "ab", buffering=0) as file:
        assert file.write(long) == len(long)
        append(mount.path / "a.jsonl", ONE)
    assert [len(record.payload) for record in mount.session("a").records()] == [len(long), len(ONE)]
    assert (mount.path / "a.jsonl").read_bytes() == long + ONE


# -------------------------------------------------------------- attributes


def test_the_fingerprint_never_changes(mount: Mounted) -> None:
    """dev, inode, size, mtime and ctime are the same after any append, by whomever, and (but for dev) remounted."""
    path = mount.path / "a.jsonl"
    append(path, ONE)
    before = fingerprint(path)
    assert before[2] > len(ONE)
    with open(path, "ab", buffering=0) as file:
        file.write(TWO)
        assert os.fstat(file.fileno()).st_size == before[2]
        assert fingerprint(path) == before
    append_elsewhere(path, THREE)
    mount.session("a").append(ONE)
    os.utime(path)
    os.chmod(path, 0o644)
    assert fingerprint(path) == before
    assert os.stat(path).st_mode & 0o777 == 0o600
    mount.stop()
    mount.start()
    assert fingerprint(path)[1:] == before[1:]
    assert lines_of(path) == [ONE, TWO, THREE, ONE]


def test_the_size_is_larger_than_the_content(mount: Mounted) -> None:
    """It doubles when the content passes half of it, and stays below what node can read."""
    line = b'"' + b"x" * ((11 << 20) - 3) + b'"\n'
    path = mount.path / "a.jsonl"
    sizes = []
    for _ in range(4):
        mount.session("a").append(line)
        sizes.append(os.stat(path).st_size >> 20)
    assert sizes == [64, 64, 128, 128]
    assert path.read_bytes() == line * 4


def test_real_attributes_are_true(mount: Mounted) -> None:
    """`.real` shows true sizes and the last record's time at every stat, and files that can be appended to."""
    append(mount.path / "a.jsonl", ONE)
    path = mount.real / "a.jsonl"
    assert os.stat(path).st_size == len(ONE)
    assert os.stat(path).st_ino == os.stat(mount.path / "a.jsonl").st_ino
    receipt = mount.session("a").append(TWO)
    (record,) = mount.session("a").last(1)
    assert (record.seq, os.stat(path).st_size) == (receipt.seq, len(ONE + TWO))
    assert os.stat(path).st_mtime_ns == record.at_ms * 1_000_000
    append(path, THREE)
    with open(path, "rb") as file:
        assert file.seek(0, os.SEEK_END) == len(ONE + TWO + THREE)
        file.seek(-len(THREE), os.SEEK_END)
        assert file.read() == THREE


def test_real_can_be_the_default(tmp_path: Path) -> None:
    """With --real the folder itself has true sizes."""
    for mount in mounted_in(tmp_path, "--real"):
        append(mount.path / "a.jsonl", ONE)
        assert os.stat(mount.path / "a.jsonl").st_size == os.stat(mount.real / "a.jsonl").st_size == len(ONE)


def test_a_prefix_shows_a_part(tmp_path: Path) -> None:
    """With --prefix only what lies below it is shown, without it, and what is created lies below it."""
    with shardstore.open(tmp_path / "store") as store:
        store.session("main/a").append(ONE)
        store.session("other").append(TWO)
    for mount in mounted_in(tmp_path, "--prefix", "main"):
        assert os.listdir(mount.path) == ["a.jsonl"]
        append(mount.path / "b.jsonl", THREE)
        assert mount.view("main/b") == THREE


# -------------------------------------------------------------- names


def test_unlink_archives(mount: Mounted) -> None:
    """A removed session is gone from the folder and archived in the store; its name can be used anew."""
    path = mount.path / "a.jsonl"
    append(path, ONE)
    path.unlink()
    assert not path.exists()
    assert os.listdir(mount.path) == []
    assert mount.session("a").info().archived
    append(path, TWO)
    assert path.read_bytes() == TWO
    assert mount.view("a") == ONE


def test_purge_deletes(tmp_path: Path) -> None:
    """With --purge a removed session is deleted for good."""
    for mount in mounted_in(tmp_path, "--purge"):
        append(mount.path / "a.jsonl", ONE)
        (mount.path / "a.jsonl").unlink()
        with pytest.raises(shardstore.Deleted):
            mount.view("a")


def test_rename_keeps_the_content(mount: Mounted) -> None:
    """A renamed session has the new name, its bytes, and readers that hold it open; `.reset.…` archives it."""
    old, new, reset = (mount.path / name for name in ("a.jsonl", "b.jsonl", "b.jsonl.reset.2026"))
    append(old, ONE)
    with open(old, "ab", buffering=0) as file:
        old.rename(new)
        file.write(TWO)
    assert not old.exists()
    assert new.read_bytes() == ONE + TWO
    new.rename(reset)
    assert sorted(os.listdir(mount.path)) == ["b.jsonl.reset.2026"]
    assert reset.read_bytes() == ONE + TWO
    assert mount.session("a").info().archived
    append(old, THREE)
    assert old.read_bytes() == THREE


def test_an_unlinked_file_goes_on_for_those_who_hold_it(mount: Mounted) -> None:
    """Plain files and sessions that were removed or replaced can be read and written by whoever has them open."""
    plain, session = mount.path / "plain", mount.path / "a.jsonl"
    plain.write_bytes(b"old")
    append(session, ONE)
    with open(plain, "r+b", buffering=0) as held, open(session, "ab", buffering=0) as log:
        (mount.path / "temporary").write_bytes(b"new")
        (mount.path / "temporary").rename(plain)
        session.unlink()
        assert held.read() == b"old"
        held.write(b"er")
        held.truncate(3)
        assert os.fstat(held.fileno()).st_size == 3
        assert log.write(TWO) == len(TWO)
    assert plain.read_bytes() == b"new"
    assert mount.view("a") == ONE + TWO
    assert not [name for name in os.listdir(mount.path) if "fuse_hidden" in name]


def test_a_session_takes_the_place_of_a_plain_file(mount: Mounted) -> None:
    """A session that is renamed over a plain file replaces it, beneath the mount too."""
    append(mount.path / "a.jsonl", ONE)
    (mount.path / "a.jsonl.bak").write_bytes(b"plain")
    (mount.path / "a.jsonl").rename(mount.path / "a.jsonl.bak")
    assert (mount.path / "a.jsonl.bak").read_bytes() == ONE
    assert os.listdir(mount.path) == ["a.jsonl.bak"]
    mount.stop()
    assert os.listdir(mount.path) == []


# -------------------------------------------------------------- rewriting


def test_truncation_keeps_the_log(mount: Mounted) -> None:
    """What is written after O_TRUNC is the file; the old records stay in the store."""
    path = mount.path / "a.jsonl"
    append(path, ONE + TWO)
    path.read_bytes()
    path.write_bytes(THREE)
    assert path.read_bytes() == THREE
    assert mount.view("a").startswith(ONE + TWO)
    os.truncate(path, 4)
    assert path.read_bytes() == THREE[:4] + b"\n"
    with open(path, "r+b") as file:
        file.truncate(2)
    assert path.read_bytes() == THREE[:2] + b"\n"


def test_a_rewrite_keeps_what_others_appended(mount: Mounted) -> None:
    """Whoever rewrites a file, by O_TRUNC or by a rename over it, costs nobody what came since he looked."""
    path = mount.path / "a.jsonl"
    append(path, ONE)
    seen = path.read_bytes()
    mount.session("a").event(TWO, source="heartbeat")
    path.write_bytes(b'{"changed":1}\n')
    assert path.read_bytes() == b'{"changed":1}\n' + TWO
    seen = path.read_bytes()
    append_elsewhere(path, ONE)
    temporary = mount.path / "a.jsonl.tmp"
    temporary.write_bytes(seen.upper())
    temporary.replace(path)
    assert path.read_bytes() == seen.upper() + ONE
    assert os.listdir(mount.path) == ["a.jsonl"]


def test_a_rewrite_that_only_adds_appends(mount: Mounted) -> None:
    """New content that begins with what its writer had seen is an ordinary append of the rest."""
    path = mount.path / "a.jsonl"
    append(path, ONE)
    path.write_bytes(path.read_bytes() + TWO)
    assert [record.kind for record in mount.session("a").records()] == ["turn", "turn"]
    assert mount.view("a") == ONE + TWO


# -------------------------------------------------------------- plain files


def test_plain_files_are_plain(mount: Mounted) -> None:
    """Everything that is no session has ordinary semantics, and lies in the folder beneath."""
    plain = mount.path / "sessions.json"
    plain.write_text("one")
    os.utime(plain, ns=(1_000, 2_000))
    assert (os.stat(plain).st_size, os.stat(plain).st_mtime_ns, os.stat(plain).st_atime_ns) == (3, 2_000, 1_000)
    subprocess.run(["touch", "-m", str(plain)], check=True)
    assert os.stat(plain).st_atime_ns == 1_000 < os.stat(plain).st_mtime_ns - 10**18
    plain.chmod(0o640)
    assert os.stat(plain).st_mode & 0o777 == 0o640
    os.link(plain, mount.path / "second")
    os.symlink("second", mount.path / "link")
    assert os.readlink(mount.path / "link") == "second"
    assert (mount.path / "link").read_text() == "one"
    lock = os.open(mount.path / "a.jsonl.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.close(lock)
    with pytest.raises(FileExistsError):
        os.open(mount.path / "a.jsonl.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileExistsError):
        (mount.path / "second").mkdir()
    (mount.path / ".fuse.trajectory.jsonl").write_text("x")
    (mount.path / "a.trajectory.jsonl").write_text("x")
    os.truncate(plain, 1)
    assert os.statvfs(mount.path).f_bsize > 0
    mount.stop()
    assert plain.read_text() == "o"
    names = ["second", "sessions.json", ".fuse.trajectory.jsonl", "a.jsonl.lock", "a.trajectory.jsonl", "link"]
    assert sorted(os.listdir(mount.path)) == sorted(names)


def test_what_a_session_refuses(mount: Mounted) -> None:
    """Links to and under a session's name are refused, and a rename with flags leaves both files alone."""
    append(mount.path / "a.jsonl", ONE)
    (mount.path / "plain").write_text("x")
    for call in (os.link, os.symlink):
        with pytest.raises(PermissionError):
            call(mount.path / "plain", mount.path / "b.jsonl")
    with pytest.raises(PermissionError):
        os.link(mount.path / "a.jsonl", mount.path / "second")
    with pytest.raises(OSError, match="not supported") as refused:
        os.getxattr(mount.path / "a.jsonl", "user.x")
    assert refused.value.errno == errno.ENOTSUP


def test_plain_files_elsewhere(tmp_path: Path) -> None:
    """With --files they lie in that folder."""
    for mount in mounted_in(tmp_path, "--files", str(tmp_path / "plain")):
        (mount.path / "sessions.json").write_text("{}")
        append(mount.path / "a.jsonl", ONE)
        assert os.listdir(tmp_path / "plain") == ["sessions.json"]
