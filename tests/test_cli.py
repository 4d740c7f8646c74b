"""The command line: what each command does, answers and refuses. How it ends otherwise is in test_cli_endings."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_runner import AWKWARD, DEADLINE_S, ENVIRONMENT, call, command, documents, fill, run

import shardstore
from shardstore.cli.app import cli


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's path, not made yet."""
    return tmp_path / "store"


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """A transcript with everything that a text tool would mangle."""
    file = tmp_path / "awkward.jsonl"
    file.write_bytes(AWKWARD)
    return file


# ------------------------------------------------------------------ import, export, cat


def test_import_and_export_give_back_the_same_bytes(store: Path, awkward: Path, tmp_path: Path) -> None:
    """Whatever a file holds, import and export, to a file and to stdout, return it byte for byte."""
    assert documents(run(store, "import", str(awkward), "--json"))[0]["records"] == AWKWARD.count(b"\n") + 1
    target = tmp_path / "out.jsonl"
    told = documents(run(store, "export", "awkward", str(target), "--json"))[0]
    assert target.read_bytes() == AWKWARD
    assert told["bytes"] == len(AWKWARD)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run(store, "export", "awkward").stdout == AWKWARD
    assert run(store, "cat", "awkward").stdout == AWKWARD


def test_import_from_stdin(store: Path) -> None:
    """`-` is stdin and wants an id."""
    run(store, "import", "-", stdin=AWKWARD, code=2)
    run(store, "import", "-", "--session", "x", stdin=AWKWARD)
    assert run(store, "cat", "x").stdout == AWKWARD


def test_import_refuses_what_would_collide(store: Path, awkward: Path, tmp_path: Path) -> None:
    """A session that exists is a conflict that says what to do; two files of one name and one id for two are usage."""
    twin = tmp_path / "other" / "awkward.jsonl"
    twin.parent.mkdir()
    twin.write_bytes(b"{}\n")
    assert b"both become" in run(store, "import", str(awkward), str(twin), code=2).stderr
    assert b"one FILE" in run(store, "import", str(awkward), str(twin), "--session", "x", code=2).stderr
    assert b"no such file" in run(store, "import", str(tmp_path / "none.jsonl"), code=2).stderr
    assert not store.exists()
    run(store, "import", str(awkward))
    assert b"--session ID" in run(store, "import", str(twin), code=4).stderr
    assert run(store, "cat", "awkward").stdout == AWKWARD


def test_export_never_overwrites_unasked_nor_leaves_halves(store: Path, awkward: Path, tmp_path: Path) -> None:
    """An existing file stays as it is without --force; a failed export leaves nothing behind."""
    run(store, "import", str(awkward))
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "x.jsonl"
    target.write_bytes(b"mine")
    assert b"--force" in run(store, "export", "awkward", str(target), code=4).stderr
    assert target.read_bytes() == b"mine"
    run(store, "export", "awkward", str(target), "--force")
    assert target.read_bytes() == AWKWARD
    run(store, "export", "nobody", str(folder / "y.jsonl"), code=3)
    run(store, "export", "awkward", str(tmp_path / "no" / "folder"), code=5)
    assert [file.name for file in folder.iterdir()] == ["x.jsonl"]
    link = folder / "link"
    link.symlink_to(target)
    run(store, "export", "awkward", str(link), "--force", code=2)


def test_cat_selects(store: Path) -> None:
    """Ranges, kinds and sources leave out records and nothing else; --records shows what they are."""
    run(store, "append", "a", '{"n":1}')
    run(store, "append", "a", '{"n":2}', "--kind", "event", "--source", "heartbeat")
    run(store, "append", "a", '{"n":3}')
    assert run(store, "cat", "a", "--first", "2", "--last", "2").stdout == b'{"n":2}\n'
    assert run(store, "cat", "a", "--kind", "turn").stdout == b'{"n":1}\n{"n":3}\n'
    assert run(store, "cat", "a", "--source", "heartbeat").stdout == b'{"n":2}\n'
    assert run(store, "cat", "a", "--exclude-source", "heartbeat").stdout == b'{"n":1}\n{"n":3}\n'
    records = documents(run(store, "cat", "a", "--records"))
    assert [(one["seq"], one["kind"], one["source"]) for one in records] == [
        (1, "turn", "main"), (2, "event", "heartbeat"), (3, "turn", "main"),
    ]  # fmt: skip


# ------------------------------------------------------------------ append


def test_append_takes_arguments_and_stdin(store: Path) -> None:
    """Arguments together, or the whole of stdin, are one record; --each-line makes a record of each line."""
    assert documents(run(store, "append", "a", '{"n":1}', '{"n":2}', "--json"))[0]["seq"] == 1
    assert documents(run(store, "append", "a", "--json", stdin=b'{"n":3}\n{"n":4}\n'))[0]["seq"] == 2
    each = documents(run(store, "append", "a", "--json", "--each-line", stdin=b'{"n":5}\n\n{"n":6}'))
    assert [one["seq"] for one in each] == [3, 4]
    assert run(store, "cat", "a").stdout == b"".join(b'{"n":%d}\n' % n for n in range(1, 6)) + b'{"n":6}'


def test_append_wants_json_unless_told_otherwise(store: Path) -> None:
    """What is not JSON, or is nothing at all, exits 2 and commits nothing; --raw keeps it as it is."""
    assert b"line 2 is not JSON" in run(store, "append", "a", stdin=b"{}\nhello\n", code=2).stderr
    run(store, "append", "a", "hello", code=2)
    run(store, "append", "a", stdin=b" \n", code=2)
    run(store, "append", "a", stdin=b"", code=2)
    run(store, "append", "a", "--raw", stdin=b"hello\xff")
    assert run(store, "cat", "a").stdout == b"hello\xff"


def test_append_under_a_key_and_a_condition(store: Path) -> None:
    """A key commits once; a turn since the seq is a conflict; both are for single records."""
    first = documents(run(store, "append", "a", "{}", "--key", "k", "--json"))[0]
    again = documents(run(store, "append", "a", "{}", "--key", "k", "--json"))[0]
    assert (first["seq"], first["duplicate"], again["seq"], again["duplicate"]) == (1, False, 1, True)
    run(store, "append", "a", '{"other":1}', "--key", "k", code=4)
    run(store, "append", "a", "{}", "--if-no-turn-since", "0", code=4)
    run(store, "append", "a", "{}", "--if-no-turn-since", "1")
    run(store, "append", "a", "{}", "--each-line", "--key", "k", code=2)
    assert documents(run(store, "ls", "--json"))[0]["records"] == 2


# ------------------------------------------------------------------ what is not there


READERS = [
    ("ls",), ("show", "a"), ("cat", "a"), ("tail", "a"), ("export", "a"), ("compact",), ("compact", "a"), ("verify",),
    ("verify", "a"), ("verify", "--repair"), ("backup", "b"), ("archive", "a"), ("delete", "a", "--yes"),
]  # fmt: skip


def test_a_mistyped_store_is_not_made(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Every command but import and append answers 3 for a store that is not there, and does not make it."""
    missing = tmp_path / "missing"
    for arguments in READERS:
        answer = call(capfdbinary, missing, *arguments)
        assert answer.code == 3
        assert answer.stderr.startswith(b"shardstore: no store")
        assert not missing.exists()


def test_a_missing_session_and_bad_ids(store: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A session that is not there answers 3; an impossible id, a store that is a file and wrong usage answer 2."""
    fill(store, "there", 1)
    for arguments in READERS:
        if "a" in arguments:
            assert call(capfdbinary, store, *arguments).code == 3
    for path, *words in (
        (store, "cat", ""),
        (store, "append", "x" * 300, "{}"),
        (store / "store.json", "ls"),
        ("", "ls"),
        (store, "nonsense"),
        (store, "cat"),
        (store, "cat", "there", "--first", "0"),
    ):
        answer = call(capfdbinary, path, *(str(word) for word in words))
        assert answer.code == 2
        assert answer.stderr.startswith(b"shardstore: ")
    run(store, b"cat", b"\xff", code=2)
    assert [one["session"] for one in documents(run(store, "ls", "--json"))] == ["there"]


# ------------------------------------------------------------------ listings


def test_ls_show_archive_delete(store: Path) -> None:
    """Archived sessions leave `ls` and stay readable; deleted ones are gone, and only -a names them."""
    run(store, "append", "a", '{"n":1}')
    run(store, "append", "b", '{"n":1}', "--kind", "event", "--source", "cron:daily", "--durability", "none")
    shown = documents(run(store, "show", "b", "--json"))[0]
    assert shown["sources"]["cron:daily"]["records"] == shown["kinds"]["event"]["records"] == shown["records"] == 1
    assert shown["info"]["durability"] == "none"
    assert all((store / file["path"]).stat().st_size == file["bytes"] for file in shown["files"])
    run(store, "archive", "a")
    assert [one["session"] for one in documents(run(store, "ls", "--json"))] == ["b"]
    assert run(store, "cat", "a").stdout == b'{"n":1}\n'
    assert b"--yes" in run(store, "delete", "b", code=2).stderr
    run(store, "delete", "b", "--yes")
    for arguments in (["cat", "b"], ["append", "b", "{}"], ["export", "b"], ["tail", "b"]):
        run(store, *arguments, code=3)
    listed = {one["session"]: one["state"] for one in documents(run(store, "ls", "-a", "--json"))}
    assert listed == {"a": "open", "b": "deleted"}
    run(store, "archive", "a", "--undo")
    assert b"a " in run(store, "ls").stdout


def test_one_damaged_session_does_not_hide_the_others(store: Path) -> None:
    """`ls` lists every session that can be read, names the damaged one, and exits 1."""
    for name in ("a", "b", "c"):
        fill(store, name, 1)
    (store / "sessions" / "b" / "manifest.json").write_bytes(b"{")
    done = run(store, "ls", "--json", code=1)
    assert [one["session"] for one in documents(done)] == ["a", "c"]
    assert done.stderr.count(b"\n") == 1
    assert b"sessions/b/" in done.stderr


def test_show_says_who_had_not_seen_whom(store: Path) -> None:
    """A reply written without having seen a heartbeat is counted as concurrent with it, and nothing else is."""
    with shardstore.open(store) as opened:
        main, other = opened.session("a"), opened.session("a")
        main.append(b"{}\n")
        list(main.records())
        other.event(b"{}\n", source="heartbeat")
        main.append(b"{}\n")
    concurrent = documents(run(store, "show", "a", "--json"))[0]["concurrent"]
    assert {"source": "main", "other": "heartbeat", "count": 1} in concurrent


def test_ids_cannot_command_a_terminal(store: Path) -> None:
    """Control characters, bidi overrides and lone escapes in an id reach neither a terminal nor a pipe unescaped."""
    hostile = "a\x1b]0;owned\x07\u202eb\nc"
    fill(store, hostile, 1)
    for arguments in (["ls"], ["show", hostile], ["verify"], ["compact"], ["cat", hostile + "x"]):
        done = subprocess.run(command(store, *arguments), capture_output=True, env=ENVIRONMENT, timeout=DEADLINE_S)
        assert b"\x1b" not in done.stdout + done.stderr
        assert "\u202e".encode() not in done.stdout + done.stderr
    assert b"a\\x1b]0;owned" in run(store, "ls").stdout
    assert documents(run(store, "ls", "--json"))[0]["session"] == hostile
    assert b"\x1b]0;" not in on_terminal(command(store, "ls"))


def on_terminal(arguments: list[str | bytes]) -> bytes:
    """Run a command on a terminal; return what it printed there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        got = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the last writer has gone
                break
            if not chunk:
                break
            got += chunk
    os.close(ours)
    assert process.returncode == 0
    return got


# ------------------------------------------------------------------ verify, backup, help


def test_verify_finds_damage_and_repair_keeps_the_rest(store: Path) -> None:
    """A flipped bit exits 1 and is named; --repair mends the session, after which the other records still read."""
    fill(store, "a", 3)
    run(store, "verify")
    shard = sorted((store / "sessions" / "a" / "shards").iterdir())[1]
    damaged = bytearray(shard.read_bytes())
    damaged[-3] ^= 1
    shard.chmod(0o600)
    shard.write_bytes(damaged)
    found = documents(run(store, "verify", "--json", code=1))[0]
    assert not found["ok"]
    assert [one["seqs"] for one in found["findings"] if one["severity"] == "damage"] == [[2, 2]]
    assert b"1 damage" in run(store, "verify", "a", code=1).stdout
    repaired = documents(run(store, "verify", "--repair", "--json"))[0]
    assert repaired["ok"]
    assert any(one["repaired"] for one in repaired["repairs"])
    assert run(store, "cat", "a").stdout == b'{"n":1}\n' * 2


def test_verify_repairs_a_store_file_that_is_gone(store: Path) -> None:
    """A store whose store.json is missing reads again after --repair."""
    fill(store, "a", 1)
    (store / "store.json").unlink()
    run(store, "ls", code=1)
    run(store, "verify", "--repair")
    assert run(store, "cat", "a").stdout == b'{"n":1}\n'


def test_backup_is_a_store(store: Path, awkward: Path, tmp_path: Path) -> None:
    """A backup verifies and holds the same bytes; a target that holds sessions already is refused."""
    run(store, "import", str(awkward))
    fill(store, "b", 3)
    target = tmp_path / "backup"
    assert documents(run(store, "backup", str(target), "--json"))[0]["sessions"] == 2
    run(target, "verify")
    assert run(target, "cat", "awkward").stdout == AWKWARD
    run(store, "backup", str(target), code=4)


def test_every_command_explains_itself(store: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each command's help has an example, and the group's names every exit code and where the store is chosen."""
    overview = run(store, "--help").stdout.decode()
    assert all(word in overview for word in ("SHARDSTORE_PATH", "130  interrupted", "141  ", "6  the outcome"))
    assert call(capfdbinary, store, "--version").stdout.strip().endswith(shardstore.__version__.encode())
    names = cli.list_commands(click.Context(cli))
    assert names == sorted(
        [
            "append",
            "archive",
            "backup",
            "cat",
            "compact",
            "delete",
            "demo",
            "export",
            "import",
            "ls",
            "migrate",
            "mount",
            "show",
            "tail",
            "unmount",
            "verify",
            "view",
        ]
    )
    for name in names:
        answer = call(capfdbinary, store, name, "--help")
        assert answer.code == 0
        assert b"Example" in answer.stdout


def test_the_store_is_chosen_by_the_environment(tmp_path: Path) -> None:
    """$SHARDSTORE_PATH names the store where --store does not."""
    environment = {**ENVIRONMENT, "SHARDSTORE_PATH": str(tmp_path / "chosen")}
    words = [sys.executable, "-m", "shardstore", "append", "a", "{}"]
    subprocess.run(words, check=True, capture_output=True, env=environment, timeout=DEADLINE_S)
    assert run(tmp_path / "chosen", "cat", "a").stdout == b"{}\n"
