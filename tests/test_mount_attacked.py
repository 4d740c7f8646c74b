"""What an attack on the mount found: cut lines of shared handles, stale looks and sizes, a folder behind a symlink."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, run
from mounts import Mounted, append, mounted_in, needs, why_not

import shardstore
from shardstore.mount.handles import Sessions

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """An empty store, mounted."""
    yield from mounted_in(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        """{ /bin/echo -n '{"a":'; /bin/echo -n 1; /bin/echo '}'; } >> "$0" """,
        """exec 3>> "$0"; printf '{"a":' >&3; printf '1}\n' >&3""",
        """{ /bin/echo -n '{"a":'; /bin/echo -n 1; /bin/echo '}'; } > "$0" """,
        """{ (/bin/echo -n '{"a":'); (/bin/echo -n 1); /bin/echo '}'; } >> "$0" """,
    ],
)
def test_a_line_is_whole_though_one_descriptor_of_its_handle_is_closed_in_its_midst(
    mounted: Mounted, script: str
) -> None:
    """A handle that other descriptors or processes share is not closed yet: its line waits for its end."""
    path = mounted.path / "a.jsonl"
    subprocess.run(["bash", "-c", script, path], check=True, timeout=DEADLINE_S)
    assert path.read_bytes() == b'{"a":1}\n'


def test_a_line_of_a_shared_handle_is_whole_though_its_file_was_replaced(mounted: Mounted) -> None:
    """A rename over the file in the midst of the line does not end it: the handle is that of the session."""
    path, temporary = mounted.path / "a.jsonl", mounted.path / "a.jsonl.tmp"
    append(path, b"{}\n")
    script = """exec 3>> "$0"; printf '{"a":' >&3; cp "$0" "$1"; mv "$1" "$0"; /bin/echo -n 1 >&3; printf '}\n' >&3"""
    subprocess.run(["bash", "-c", script, path, temporary], check=True, timeout=DEADLINE_S)
    assert path.read_bytes() == b'{}\n{"a":1}\n'


def test_a_cut_line_is_there_once_its_handle_is_closed(mounted: Mounted) -> None:
    """A descriptor closed for good commits what it has, also where its program has the file open a second time."""
    path = mounted.path / "a.jsonl"
    with open(path, "ab", buffering=0) as other:
        append(path, b'{"cut":1}')
        assert path.read_bytes() == b'{"cut":1}\n'
        other.write(b'{"b":2}\n')
    assert path.read_bytes() == b'{"cut":1}\n{"b":2}\n'


def test_a_file_renamed_over_a_session_has_seen_no_more_than_was_there_when_it_was_made(mounted: Mounted) -> None:
    """What came after the new file was made stays, though its process looked at the session in between."""
    path, temporary = mounted.path / "a.jsonl", mounted.path / "a.jsonl.tmp"
    append(path, b'{"n":1}\n')
    assert path.read_bytes() == b'{"n":1}\n'
    temporary.write_bytes(b'{"n":"edited"}\n')
    mounted.session("a").append({"by": "another"})
    assert b"another" in path.read_bytes()
    temporary.rename(path)
    assert path.read_bytes() == b'{"n":"edited"}\n{"by":"another"}\n'


def test_appending_is_no_look_at_what_others_appended(tmp_path: Path) -> None:
    """An open to append, which looks at nothing, does not make an old size a fresh one."""
    with shardstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.session("a").append({"n": 1})
        sessions = Sessions(store)
        known = sessions.facts("a.jsonl")
        assert known is not None
        opened = sessions._open("a")
        looked_s = opened._looked_s
        sessions.open_known(known, os.O_WRONLY | os.O_APPEND, os.getpid()).release()
        assert opened._looked_s == looked_s
        sessions.close()


def test_a_folder_behind_a_symlink_is_mounted_once_and_unmounted(mounted: Mounted, tmp_path: Path) -> None:
    """The folder that a symlink leads to is the mount: a second one is refused, and unmounting finds it."""
    link = tmp_path / "link"
    link.symlink_to(mounted.path)
    told = run(mounted.store_path, "mount", str(link), "--background", code=4).stderr
    assert b"mounted here already" in told
    run(mounted.store_path, "unmount", str(link))
    assert not mounted.is_mounted()


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_takes_no_name_of_a_session_by_a_rename_either(mounted: Mounted, there: bool) -> None:
    """It is refused as making one there is; nothing is lost beneath a session, and the folder mounts again."""
    path, link = mounted.path / "a.jsonl", mounted.path / "link"
    if there:
        append(path, b"{}\n")
    link.symlink_to("elsewhere")
    with pytest.raises(PermissionError):
        link.rename(path)
    assert link.is_symlink()
    assert path.exists() == there
    mounted.stop()
    mounted.start()


@needs("vim")
def test_vim_keeps_what_others_appended_since_it_loaded_the_file(mounted: Mounted) -> None:
    """The copy that vim makes of a file before each write is no look at it: its buffer knows nothing of that."""
    path = mounted.path / "a.jsonl"
    append(path, b'{"n":1}\n')
    vim = ["vim", "-N", "-u", "NONE", "-i", "NONE", "-es", str(path)]
    for number in (2, 3):
        vim += ["-c", f"s/{number - 1}/{number}/", "-c", f"silent !echo {number} >> {path}", "-c", "w!"]
    subprocess.run([*vim, "-c", "q"], check=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    assert path.read_bytes() == b'{"n":3}\n2\n3\n'
    subprocess.run([*vim[:8], "-c", "$d", "-c", "w", "-c", "$d", "-c", "wq"], check=True, timeout=DEADLINE_S)
    assert path.read_bytes() == b'{"n":3}\n'


def test_a_temporary_file_that_was_left_is_used_again(mounted: Mounted) -> None:
    """What was appended after it began to be written anew is shown, whoever renames it over the session."""
    path, temporary = mounted.path / "a.jsonl", mounted.path / "a.jsonl.tmp"
    temporary.write_bytes(b"left by a run that failed")
    append(path, b'{"a":1}\n')
    subprocess.run(["bash", "-c", """sed s/1/2/ "$0" > "$1" """, path, temporary], check=True, timeout=DEADLINE_S)
    append(path, b'{"b":1}\n')
    subprocess.run(["mv", temporary, path], check=True, timeout=DEADLINE_S)
    assert path.read_bytes() == b'{"a":2}\n{"b":1}\n'
