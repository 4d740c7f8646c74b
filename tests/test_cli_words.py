"""What the command line says to people: every refusal names its reason, and every line can be read and searched."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, ENVIRONMENT, call, command, documents, fill, run

import shardstore
from shardstore.cli import trial
from shardstore.cli.output import readable
from shardstore.demo.count import Outcome
from shardstore.demo.run import Report

LONG = "telegram:42-with-a-long-name"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's path, not made yet."""
    return tmp_path / "store"


def hurt(store: Path, session: str, seq: int) -> None:
    """Flip a bit of a record that still lies in a file of its own."""
    shard = store / "sessions" / session / "shards" / f"{seq:020d}.shard"
    damaged = bytearray(shard.read_bytes())
    damaged[-3] ^= 1
    shard.chmod(0o600)
    shard.write_bytes(damaged)


def lines_on_terminal(store: Path, *arguments: str, columns: int = 80) -> list[str]:
    """Run a command on a terminal of that width; return the lines that it wrote to stdout."""
    ours, theirs = pty.openpty()
    environment = {**ENVIRONMENT, "COLUMNS": str(columns)}
    got = b""
    with subprocess.Popen(
        command(store, *arguments), stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the last writer has gone
                break
            if not chunk:
                break
            got += chunk
        process.wait(DEADLINE_S)
    os.close(ours)
    return re.sub("\x1b\\[[0-9;]*m|\r", "", got.decode()).splitlines()


# ------------------------------------------------------------------ verify


@pytest.mark.parametrize("compacted", [False, True])
def test_verify_names_what_was_lost(store: Path, compacted: bool) -> None:
    """Records that a repair marked lost are a note of each later verify, compacted or not, and the exit code is 0."""
    fill(store, "a", 5)
    for seq in (2, 3, 5):
        hurt(store, "a", seq)
    repaired = run(store, "verify", "--repair").stdout.decode().splitlines()
    assert repaired[0] == f"repaired: torn-shard in a, record 2: sessions/a/shards/{2:020d}.shard"
    assert repaired[-1] == "no damage, 2 notes"
    if compacted:
        run(store, "compact")
    found = documents(run(store, "verify", "--json"))[0]
    assert found["ok"]
    assert [(one["what"], one["severity"], one["seqs"]) for one in found["findings"]] == [
        ("lost-record", "note", [2, 3]), ("lost-record", "note", [5, 5]),
    ]  # fmt: skip
    told = run(store, "verify").stdout.decode()
    assert "note: lost-record in a, records 2-3: sessions/a/s" in told
    assert told.endswith("no damage, 2 notes\n")


def test_findings_are_lines(store: Path) -> None:
    """A finding is one line in a pipe; on a terminal of 80 columns it takes a few, none cut and none too wide."""
    fill(store, "a", 3)
    hurt(store, "a", 2)
    where = f"sessions/a/shards/{2:020d}.shard"
    piped = run(store, "verify", code=1).stdout.decode().splitlines()
    assert len(piped) == 2
    assert piped[0].startswith(f"damage: torn-shard in a, record 2: {where}: restore it")
    assert piped[1] == "1 damage"
    shown = lines_on_terminal(store, "verify")
    assert shown[0] == f"damage: torn-shard in a, record 2: {where}"
    assert all(len(line) <= 80 for line in shown)
    assert " ".join(line.strip() for line in shown[1:-1]) in piped[0]
    narrow = lines_on_terminal(store, "verify", columns=60)
    assert narrow[:2] == ["damage: torn-shard in a, record 2:", f"    {where}"]


def test_tables_fold_no_number_and_no_date(store: Path) -> None:
    """On a terminal of 80 columns an id may be folded in a table; dates, counts and states never are."""
    with shardstore.open(store) as opened:
        opened.session(LONG).append(b"{}\n", source="cron:daily-report-of-everything")
    shown = [*lines_on_terminal(store, "ls"), *lines_on_terminal(store, "show", LONG)]
    assert all(len(line) <= 80 for line in shown if "  sessions/" not in line and str(store) not in line)
    rows = [line for line in shown if re.search(r" \d{4}-\d\d-\d\d", line)]
    assert len(rows) >= 4
    assert all(re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d(:\d\dZ)?$", line.rstrip()) for line in rows)


# ------------------------------------------------------------------ import


def test_import_does_what_it_can(store: Path, tmp_path: Path) -> None:
    """A file that can't be imported does not keep the others out; at the end each one is named with its reason."""
    files = []
    for name in ("a", "b", "c", "x" * 300):
        files.append(tmp_path / f"{name[:100]}.jsonl")
        files[-1].write_bytes(b'{"n":1}\n')
    fill(store, "b", 1)
    done = run(store, "import", *map(str, files[:3]), code=4)
    assert done.stdout.decode() == f"a: 1 record from {files[0]}\nc: 1 record from {files[2]}\n"
    told = done.stderr.decode().splitlines()
    assert told[0].startswith(f"shardstore: {files[1]} was not imported: session exists already; append to it")
    assert told[0].endswith("session=b (`shardstore append ID --each-line`, or --session ID)")
    assert told[1:] == ["shardstore: 1 of 3 files was not imported"]
    again = run(store, "import", *map(str, files), "--json", code=4)
    answers = documents(again)
    assert [(one["session"][:1], one["records"], one["error"] is None) for one in answers] == [
        ("a", None, False), ("b", None, False), ("c", None, False), ("x", 1, True),
    ]  # fmt: skip
    assert again.stderr.endswith(b"shardstore: 3 of 4 files were not imported\n")


def test_import_tells_an_unreadable_file_apart(store: Path, tmp_path: Path) -> None:
    """A single file that can't be imported is one line on stderr and the code of its own error."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"{}\n")
    assert run(store, "import", str(file)).stdout.decode() == f"a: 1 record from {file}\n"
    assert run(store, "import", str(file), code=4).stderr.count(b"\n") == 1
    run(store, "delete", "a", "--yes")
    assert run(store, "import", str(file), code=3).stderr.count(b"\n") == 1


# ------------------------------------------------------------------ append


def test_append_refuses_an_empty_text(store: Path) -> None:
    """An empty TEXT, alone or among others, raw or not, is refused, and nothing at all is committed."""
    for words in (("",), (" \n",), ("{}", ""), ("", "--raw"), ("{}", "", "--each-line")):
        assert b"is empty" in run(store, "append", "a", *words, code=2).stderr
    run(store, "cat", "a", code=3)


@pytest.mark.parametrize("text", ["NaN", '{"cost":NaN}', "[-Infinity]", "Infinity", "[" * 100_000])
def test_append_takes_no_json_of_python_alone(store: Path, text: str) -> None:
    """What only Python takes for JSON, or nobody can read, is no JSON as TEXT and on stdin; --raw keeps it."""
    assert b"not JSON" in run(store, "append", "a", text, code=2).stderr
    assert b"--raw" in run(store, "append", "a", stdin=text.encode(), code=2).stderr
    run(store, "append", "a", "--raw", text)
    assert run(store, "cat", "a").stdout == text.encode() + b"\n"


# ------------------------------------------------------------------ sessions without a manifest, backups


def test_a_missing_manifest_is_told_by_every_command(
    store: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """Where a session has lost its manifest, no command says that there was no such session."""
    fill(store, "a", 2)
    (store / "sessions" / "a" / "manifest.json").unlink()
    for words in (
        ["ls"],
        ["show", "a"],
        ["cat", "a"],
        ["cat", "a", "--records"],
        ["tail", "a"],
        ["tail", "-f", "a"],
        ["export", "a"],
        ["export", "a", str(tmp_path / "out")],
        ["compact", "a"],
        ["archive", "a"],
        ["delete", "a", "--yes"],
        ["append", "a", "{}"],
        ["backup", str(tmp_path / "backup")],
    ):
        answer = call(capfdbinary, store, *words)
        assert answer.code == 1, words
        assert b"the manifest is missing; run verify, then repair" in answer.stderr, words
    assert b"missing-manifest in a" in run(store, "verify", code=1).stdout


def test_backup_into_the_store_itself(store: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A backup into the store or below it is a wrong request, and writes nothing there."""
    fill(store, "a", 1)
    for target in (store, store / "backup", store / "sessions" / "b"):
        answer = call(capfdbinary, store, "backup", str(target))
        assert (answer.code, answer.stdout) == (2, b"")
        assert b"inside the store" in answer.stderr
    assert sorted(file.name for file in store.iterdir()) == ["sessions", "store.json"]


# ------------------------------------------------------------------ counts and endings


def test_one_is_no_plural(store: Path, tmp_path: Path) -> None:
    """What is counted is spelled as people do, and where there is nothing to compact, that is said."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"{}\n")
    assert run(store, "import", str(file)).stdout.startswith(b"a: 1 record from")
    run(store, "append", "a", "{}")
    shown = run(store, "show", "a").stdout
    assert b"2 records, 2 entries" in shown
    assert b"1 of 2 records compacted, in 1 segment\n" in shown
    assert run(store, "compact", "a").stdout.startswith(b"a: compacted up to record 2 (1 record, ")
    assert run(store, "compact", "a").stdout == b"a: nothing to compact\n"
    assert run(store, "compact").stdout == b"a: nothing to compact\n"
    assert documents(run(store, "compact", "--json"))[0]["records"] == 0


def test_the_demo_tells_a_note_from_damage(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's closing lines name each finding, and say that there is no damage where there are only notes."""
    note = shardstore.Finding("demo", "unswept-shard", "sessions/demo/shards", None, "note", "the next one sweeps them")
    damage = shardstore.Finding("demo", "torn-shard", "sessions/demo/shards/1.shard", (1, 1), "damage", "restore it")
    outcome = Outcome("x", 0, 0, 0, 0, 0, None, None, 0, 0, [], 0, {}, 0, True, 0, 0, 0)
    for findings, words in (
        ([], "verify: no damage, every byte was read\n"),
        ([note], "verify: no damage, 1 note, every byte was read\n"),
        ([note, damage], "verify: 1 damage, 1 note\n"),
    ):
        trial._show_where(Report("f", "f/demo.jsonl", "f/store", "demo", 0, outcome, outcome, findings, []))
        told = capsys.readouterr().out
        assert words in told
        assert ("note: unswept-shard in demo: sessions/demo/shards: the next" in told) == (note in findings)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no such session session='a'", "no such session session=a"),
        ("no store here path='/tmp/with space'", 'no store here path="/tmp/with space"'),
        ("x path=PosixPath('/tmp/a') data=b'a\\xff'", "x path=/tmp/a data=a\\xff"),
        ("no such kind kind=['x', 'y'] known=('turn', 'event')", "no such kind kind=x,y known=turn,event"),
        ("it's gone id=\"it's\" seq=3 base=None", "it's gone id=it's seq=3 base=none"),
        ("damaged (index of a segment what='a b' page=0)", 'damaged (index of a segment what="a b" page=0)'),
        ("got=<class 'int'> reason='Str is not valid: x'", 'got=int reason="Str is not valid: x"'),
        ("id='\\x1b\\u202e' empty=''", 'id=\x1b\u202e empty=""'),
        ("half='open", "half='open"),
    ],
)
def test_facts_are_spelled_for_people(message: str, words: str) -> None:
    """The facts of an error keep their names and lose the spelling of Python; anything else stays as it is."""
    assert readable(message) == words


def test_errors_hold_no_python(store: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """No error of a command shows a quoted Python value, whatever it was that it refused."""
    fill(store, "a", 1)
    for path, *words in (
        (store, "cat", "nobody"),
        (store, "verify", "nobody"),
        (store, "cat", "a", "--kind", "nonsense"),
        (tmp_path / "missing", "ls"),
        (store / "store.json", "ls"),
        (store, "append", "a", "hello"),
        (store, "append", "a", "{}", "--source", ""),
        (store, "export", "a", str(tmp_path), "--force"),
        (store, "export", "a", str(tmp_path / "no" / "folder")),
        (store, "backup", str(store)),
    ):
        answer = call(capfdbinary, path, *words)
        assert answer.code != 0
        assert not [odd for odd in (b"='", b"=(", b"=[", b"Posix", b"b'", b"[Errno") if odd in answer.stderr], answer
