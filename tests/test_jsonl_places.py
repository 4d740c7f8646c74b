"""Which session a path means, and what is refused before anything is written."""

from __future__ import annotations

import gc
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import in_child

import shardstore
from shardstore import jsonl
from shardstore.jsonl import places


def write(path: Any, text: str = "x\n", **options: Any) -> None:
    with jsonl.open(path, "a", **options) as file:
        file.write(text)


def read(path: Any, **options: Any) -> str:
    with jsonl.open(path, **options) as file:
        text: str = file.read()
    return text


def ids(folder: Path) -> list[str]:
    """Return the ids in the store of a folder, as a handle of its own sees them."""
    with shardstore.open(folder / ".shardstore", create=False) as store:
        return store.ids()


def test_the_first_writer_makes_a_store_beside_the_file(tmp_path: Path) -> None:
    """A path's session lies in `.shardstore` of its folder, made by the first who writes, not by who reads."""
    path = tmp_path / "chat.jsonl"
    with pytest.raises(FileNotFoundError) as refused:
        jsonl.open(path)
    assert (refused.value.errno, refused.value.filename) == (2, str(path))
    assert list(tmp_path.iterdir()) == []
    write(path)
    assert [read(path), read(str(path)), read(os.fsencode(path))] == ["x\n"] * 3
    assert ids(tmp_path) == ["chat"]
    assert [name.name for name in tmp_path.iterdir()] == [".shardstore"]


def test_the_nearest_store_above_has_it(tmp_path: Path) -> None:
    """Folders below a store's are part of the id; a store further below takes over what lies below it."""
    write(tmp_path / "top.jsonl")
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "deep.jsonl")
    assert ids(tmp_path) == ["a/b/deep", "top"]
    shardstore.open(tmp_path / "a" / ".shardstore").close()
    write(tmp_path / "a" / "b" / "deep.jsonl", "y\n")
    assert ids(tmp_path / "a") == ["b/deep"]
    assert read(tmp_path / "a" / "b" / "deep.jsonl") == "y\n"


def test_a_store_that_was_not_finished(tmp_path: Path) -> None:
    """An empty folder in the store's place, left by a kill, holds nothing for a reader; a writer completes it."""
    (tmp_path / ".shardstore").mkdir()
    with pytest.raises(FileNotFoundError):
        jsonl.open(tmp_path / "s.jsonl")
    write(tmp_path / "s.jsonl")
    assert read(tmp_path / "s.jsonl") == "x\n"


def test_one_file_is_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a file is named, relative, by dots or through symlinks, it is the same session."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "latest.jsonl").symlink_to(real / "one.jsonl")
    monkeypatch.chdir(real)
    for name in ("one.jsonl", "../link/one.jsonl", real / "one.jsonl", tmp_path / "latest.jsonl"):
        write(name)
    assert read("./one.jsonl") == "x\n" * 4
    assert ids(real) == ["one"]


def test_a_folder_must_be_there_unless_the_session_is(tmp_path: Path) -> None:
    """A missing folder is FileNotFoundError, as for a file; a session with such an id can be used all the same."""
    write(tmp_path / "top.jsonl")
    for folder in (tmp_path / "none", tmp_path.parent / "none"):
        for mode in ("a", "r", "x"):
            with pytest.raises(FileNotFoundError):
                jsonl.open(folder / "s.jsonl", mode)
    with shardstore.open(tmp_path / ".shardstore") as store:
        store.session("none/s").append(b"z\n")
    write(tmp_path / "none" / "s.jsonl")
    assert read(tmp_path / "none" / "s.jsonl") == "z\nx\n"


@pytest.mark.parametrize("above", [False, True], ids=["no store", "a store"])
@pytest.mark.parametrize("mode", ["r", "a", "w", "x", "a+"])
def test_a_plain_file_is_never_shadowed(tmp_path: Path, mode: str, above: bool) -> None:
    """Where a plain file with content lies and no session is, any mode is refused, and the way in is named."""
    if above:
        write(tmp_path / "other.jsonl")
    path = tmp_path / "old.jsonl"
    path.write_text("precious\n")
    with pytest.raises(FileExistsError, match="shardstore migrate run") as refused:
        jsonl.open(path, mode)
    assert refused.value.filename == str(path)
    assert path.read_text() == "precious\n"
    assert (tmp_path / ".shardstore").exists() == above


def test_the_way_in_works(tmp_path: Path) -> None:
    """The command that the refusal names brings the file in, whatever its name, and the path can be opened then."""
    path = tmp_path / "it's old.jsonl"
    path.write_text("precious\n")
    with pytest.raises(FileExistsError) as refused:
        jsonl.open(path)
    words = shlex.split(refused.value.strerror.split("`")[1])
    assert words[1] == "shardstore"
    command = [sys.executable, "-m", *words[1:]]
    environment = {**os.environ, **dict([words[0].split("=", 1)])}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    write(path)
    assert read(path) == "precious\nx\n"


def test_an_empty_plain_file_hides_nothing(tmp_path: Path) -> None:
    """An empty file in the place is left alone; once the session is there, so is a file with content."""
    path = tmp_path / "s.jsonl"
    path.touch()
    write(path)
    path.write_text("a copy, or a view\n")
    assert read(path) == "x\n"


def test_a_store_of_ones_own(tmp_path: Path) -> None:
    """With `store`, a Store or its path, the name is the id, with or without `.jsonl`; a Session needs neither."""
    store = shardstore.open(tmp_path / "elsewhere", durability="none")
    write("telegram:42", store=store)
    write("telegram:42.jsonl", store=tmp_path / "elsewhere")
    write(store.session("telegram:42"), kind="event", source="cron:x")
    assert read(b"telegram:42", store=store) == "x\n" * 3
    records = list(store.session("telegram:42").records())
    assert [(record.kind, record.source) for record in records] == [("turn", "main")] * 2 + [("event", "cron:x")]
    assert store.session("telegram:42").info().durability == "none"
    with jsonl.open(store.session("telegram:42")) as file:
        assert file.name == "telegram:42"
    with pytest.raises(FileNotFoundError):
        jsonl.open("x", store=tmp_path / "no store")
    with pytest.raises(shardstore.InvalidRequest):
        jsonl.open(store.session("telegram:42"), store=store)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (3, TypeError),
        (True, TypeError),
        (None, TypeError),
        (1.5, TypeError),
        ("", FileNotFoundError),
        (".", IsADirectoryError),
        ("a\0.jsonl", ValueError),
        ("notes.txt", ValueError),
        (".jsonl", ValueError),
        ("x" * 300 + ".jsonl", (ValueError, FileNotFoundError)),
        (b"\xff.jsonl", (ValueError, FileNotFoundError)),
    ],
)
def test_what_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any, expected: Any) -> None:
    """Descriptors, folders, other endings and names that can't be ids are refused, in every mode."""
    monkeypatch.chdir(tmp_path)
    for mode in ("r", "a", "w", "x"):
        with pytest.raises(expected):
            jsonl.open(path, mode)
        write("filled.jsonl")  # with and without a store


def test_what_would_change_records_is_refused(tmp_path: Path) -> None:
    """r+, w on content, truncate, and a write in the middle say that records never change, and change none."""
    path = tmp_path / "s.jsonl"
    with jsonl.open(path, "w+") as file:
        file.write("one\n")
        file.seek(0)
        with pytest.raises(io.UnsupportedOperation, match="never change"):
            file.write("two\n")
        file.seek(0, 2)
        file.write("three\n")
        for size in (None, 0):
            with pytest.raises(io.UnsupportedOperation, match="never change"):
                file.truncate(size)
    for mode in ("r+", "rb+"):
        with pytest.raises(io.UnsupportedOperation, match="never change"):
            jsonl.open(path, mode)
    for mode in ("w", "wb", "w+"):
        with pytest.raises(FileExistsError, match="append with 'a'"):
            jsonl.open(path, mode)
    with pytest.raises(ValueError, match="don't end with a byte LF"):
        jsonl.open(path, "a", encoding="utf-16")
    assert read(path) == "one\nthree\n"


def test_a_deleted_session(tmp_path: Path) -> None:
    """A deleted session is not there for a reader, and its name is spent for a writer."""
    session = shardstore.open(tmp_path / "store").session("s")
    with jsonl.open(session, "a") as file, jsonl.open(session) as reader:
        file.write("x\n")
        session.delete()
        with pytest.raises(shardstore.Deleted):
            file.write("y\n")
        with pytest.raises(shardstore.Deleted):
            reader.read()
        with pytest.raises(shardstore.Deleted):
            file.close()
        assert file.closed
    with pytest.raises(FileNotFoundError):
        jsonl.open(session)
    for mode in ("a", "w", "x"):
        with pytest.raises(shardstore.Deleted):
            jsonl.open(session, mode)


def test_a_handle_that_may_not_create(tmp_path: Path) -> None:
    """A Session that was made with create=False is not born by opening it."""
    session = shardstore.open(tmp_path / "store").session("s", create=False)
    for mode in ("r", "a", "w", "x"):
        with pytest.raises(FileNotFoundError):
            jsonl.open(session, mode)


def test_stores_are_shared_until_the_folder_is_another(tmp_path: Path) -> None:
    """Handles of one path share a store in a process; a store that was removed and made again is opened anew."""
    path = tmp_path / "s.jsonl"
    write(path)
    (tmp_path / ".shardstore").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        jsonl.open(path)
    write(path, "new\n")
    assert read(path) == "new\n"
    assert read("s", store=tmp_path / "away") == "x\n"


def test_handles_survive_a_fork(tmp_path: Path) -> None:
    """A child goes on with the parent's handles: each line of both is there, whole."""
    path = tmp_path / "s.jsonl"
    with jsonl.open(path, "a+") as file:
        file.write("parent\n")

        def child() -> None:
            file.write("child\n")
            file.close()
            write(path, "grandchild\n")

        assert in_child(child) == 0
        file.write("parent again\n")
    assert read(path) == "parent\nchild\ngrandchild\nparent again\n"


def test_stores_that_are_done_with_are_let_go_of(tmp_path: Path) -> None:
    """Files in any number of folders take a bounded number of descriptors; one that is open goes on."""
    (tmp_path / "held").mkdir()
    held = jsonl.open(tmp_path / "held" / "s.jsonl", "a")
    for number in range(places.STORES_MAX):
        _visit(tmp_path / "first" / str(number))
    before = len(os.listdir("/dev/fd"))
    for number in range(4 * places.STORES_MAX):
        _visit(tmp_path / "more" / str(number))
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before + places.STORES_MAX
    held.write("still here\n")
    held.close()
    assert read(tmp_path / "held" / "s.jsonl") == "still here\n"


def _visit(folder: Path) -> None:
    folder.mkdir(parents=True)
    with jsonl.open(folder / "s.jsonl", "a") as file:
        file.write("1\n")
    with jsonl.open(folder / "s.jsonl") as file:
        assert file.read() == "1\n"
