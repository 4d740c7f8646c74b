"""Commands that add to a store or end a session: import, append, archive, delete.

Input is bounded: a line or a record longer than the limit is refused before it is held in memory whole.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import click

import shardstore
from shardstore.cli.app import (
    EXIT_FAILED,
    Settings,
    code_of,
    open_store,
    pass_settings,
    words_of,
)
from shardstore.cli.documents import of_receipt
from shardstore.cli.output import (
    Advance,
    complain,
    counted,
    flush,
    no_progress,
    note,
    progress_bar,
    visible,
    write_json,
    write_line,
)

__all__ = ["COMMANDS"]

RECORD_BYTES_MAX = 64 << 20  # the engine's default limit, which a command has no reason to change
PROGRESS_STEP_BYTES = 1 << 20

durability_option = click.option(
    "--durability",
    type=click.Choice(["sync", "none"]),
    default="sync",
    show_default=True,
    help="What an acknowledgement survives, for a session born by this: sync = a power loss, none = a crash of the "
    "process. Fixed for the session's life.",
)


@click.command("import", short_help="Make sessions of plain .jsonl files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--session", "session_id", metavar="ID", help="The id of the new session, for a single FILE.")
@durability_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each file.")
@pass_settings
def import_files(
    settings: Settings, files: tuple[str, ...], session_id: str | None, durability: shardstore.Durability, as_json: bool
) -> None:
    """Make a new session of each plain .jsonl FILE, a record for each line.

    Every line is kept byte for byte, also one that is not JSON, so that `export` gives back the same file. A session
    appears whole or not at all, however the import ends; the file is only read. Its id is the file's name without
    .jsonl unless --session says otherwise. FILE may be - for stdin, with --session. A FILE that can't be imported is
    told at the end, after the others, and the exit code is that of the first such FILE.

    \b
    Examples:  shardstore import ~/.pi/agent/sessions/*.jsonl
               shardstore import old.jsonl --session telegram:42
    """
    named = _name_sessions(files, session_id)
    failed: list[tuple[str, shardstore.ShardstoreError | OSError]] = []
    with open_store(settings, create=True, durability=durability) as store:
        for name, file in named:
            count: int | None = None
            try:
                with progress_bar(f"importing {name}", total=_size_of(file), is_bytes=True) as advance:
                    count = _import_one(store, name, file, advance, durability)
            except (shardstore.ShardstoreError, OSError) as error:
                failed.append((file, error))
            with _telling(f"{visible(name)} was imported" if count is not None else "nothing was imported"):
                if as_json:
                    reason = words_of(failed[-1][1]) if count is None else None
                    write_json({"session": name, "file": file, "records": count, "error": reason})
                elif count is not None:
                    write_line(f"{visible(name)}: {counted(count, 'record')} from {visible(file)}")
    _tell_failed(failed, len(named))


def _tell_failed(failed: list[tuple[str, shardstore.ShardstoreError | OSError]], total: int) -> None:
    """Name each file that was not imported, with its reason, and exit with the code of the first."""
    for file, error in failed:
        complain(f"{file} was not imported: {words_of(error)}")
    if failed and total > 1:
        complain(f"{len(failed):,} of {counted(total, 'file')} {'was' if len(failed) == 1 else 'were'} not imported")
    if failed:
        click.get_current_context().exit(code_of(failed[0][1]))


def _name_sessions(files: tuple[str, ...], session_id: str | None) -> list[tuple[str, str]]:
    """Pair each file with the id of the session that it becomes; refuse what would collide."""
    if session_id is not None and len(files) > 1:
        raise click.UsageError("--session names one session: give it one FILE")
    if session_id is None and "-" in files:
        raise click.UsageError("stdin has no name: add --session ID")
    missing = [file for file in files if file != "-" and not os.path.exists(file)]
    if missing:
        raise click.UsageError(f"no such file: {missing[0]}")
    named = [(session_id or _stem(file), file) for file in files]
    taken: dict[str, str] = {}
    for name, file in named:
        if name in taken:
            raise click.UsageError(
                f"{taken[name]} and {file} would both become session {name}: import one of them with --session ID"
            )
        taken[name] = file
    return named


def _stem(file: str) -> str:
    name = os.path.basename(file)
    return name.removesuffix(".jsonl") or name


def _size_of(file: str) -> int | None:
    return None if file == "-" else os.path.getsize(file)


def _import_one(
    store: shardstore.Store, name: str, file: str, advance: Advance, durability: shardstore.Durability
) -> int:
    """Import one file; a session that exists already is told apart from every other conflict."""
    try:
        if file == "-":
            return store.import_session(name, _lines(sys.stdin.buffer, file, advance), durability=durability)
        with Path(file).open("rb") as source:
            return store.import_session(name, _lines(source, file, advance), durability=durability)
    except shardstore.Deleted as error:
        raise shardstore.Deleted(f"{error} (import under another id: --session ID)") from error
    except shardstore.Conflict as error:
        raise shardstore.Conflict(f"{error} (`shardstore append ID --each-line`, or --session ID)") from error


def _lines(source: BinaryIO, file: str, advance: Advance) -> Iterator[bytes]:
    r"""Yield the lines of `source`, split at \n and nowhere else, and tell the progress bar now and then."""
    done = told = 0
    number = 0
    while line := source.readline(RECORD_BYTES_MAX + 1):
        number += 1
        if len(line) > RECORD_BYTES_MAX:
            raise shardstore.InvalidRequest(
                f"a line is longer than a record may be file={file!r} line={number} limit_bytes={RECORD_BYTES_MAX}"
            )
        yield line
        done += len(line)
        if done - told >= PROGRESS_STEP_BYTES:
            advance(done, None)
            told = done


@click.command("append", short_help="Commit a record.")
@click.argument("session_id", metavar="SESSION")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--each-line", is_flag=True, help="A record for each line, instead of one record for all of them.")
@click.option("--kind", type=click.Choice(["turn", "event"]), default="turn", show_default=True,
              help="turn: part of the conversation. event: a co-tenant's (heartbeat, cron, hook).")  # fmt: skip
@click.option("--source", default="main", show_default=True, metavar="LANE", help="Which lane writes it.")
@click.option("--key", metavar="KEY", help="Commit once: a retry with the same key gets the first record's seq.")
@click.option("--if-no-turn-since", type=click.IntRange(min=0), metavar="SEQ",
              help="Commit only if no turn was appended after record SEQ; else exit code 4.")  # fmt: skip
@click.option("--raw", is_flag=True, help="Take lines that are not JSON, too.")
@durability_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each record.")
@pass_settings
def append(
    settings: Settings,
    session_id: str,
    texts: tuple[str, ...],
    each_line: bool,
    kind: shardstore.Kind,
    source: str,
    key: str | None,
    if_no_turn_since: int | None,
    raw: bool,
    durability: shardstore.Durability,
    as_json: bool,
) -> None:
    """Commit TEXT, or stdin, to a session as one record; make the session if there is none.

    When this prints a seq, the record is on the disk, once, at that seq, and stays there whatever crashes next. All
    of it is committed or nothing. Each TEXT is a line and must be JSON, in which there is no NaN and no Infinity; so
    must the lines of stdin, which are kept byte for byte. --raw takes any line, but no empty TEXT. With --each-line,
    what was printed stays committed if a later line is refused; blank lines are left out unless --raw.

    \b
    Examples:  shardstore append a '{"role":"user","content":"hi"}'
               echo '{"type":"heartbeat"}' | shardstore append a --kind event --source heartbeat
               shardstore append a --key "$MESSAGE_ID" < turn.jsonl
    """
    if each_line and (key is not None or if_no_turn_since is not None):
        raise click.UsageError("--key and --if-no-turn-since are for one record: not with --each-line")
    with open_store(settings, create=True, durability=durability) as store:
        session = store.session(session_id)
        for entries in _records(texts, each_line=each_line, raw=raw):
            receipt = session.append(entries, kind=kind, source=source, key=key, if_no_turn_since=if_no_turn_since)
            with _telling(f"committed as record {receipt.seq}"):
                if as_json:
                    write_json(of_receipt(receipt))
                else:
                    already = ", which held this key already" if receipt.duplicate else ""
                    write_line(f"{visible(receipt.session)}: record {receipt.seq}{already}")


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Print what was done; where stdout can't take it, tell on stderr, and never that nothing was done."""
    try:
        yield
        flush()
    except OSError as error:
        raise shardstore.OutcomeUnknown(f"{what}, but stdout can't be written: {words_of(error)}") from error


def _records(texts: tuple[str, ...], *, each_line: bool, raw: bool) -> Iterator[bytes]:
    """Yield the payload of each record to append, checked."""
    blank = next((number for number, text in enumerate(texts, start=1) if not text.strip()), None)
    if blank is not None:
        which = f"TEXT {blank}" if len(texts) > 1 else "TEXT"
        raise shardstore.InvalidRequest(f"nothing to append: {which} is empty")
    if texts:
        lines = [os.fsencode(text) + b"\n" for text in texts]
        payloads = iter(lines) if each_line else iter([b"".join(lines)])
    elif sys.stdin.isatty():
        raise click.UsageError("nothing to append: give TEXT, or pipe lines to stdin")
    elif each_line:
        payloads = _lines(sys.stdin.buffer, "-", no_progress)
    else:
        payloads = iter([_whole_stdin()])
    first = 1
    for payload in payloads:
        if not raw:
            _check_json(payload, first)
        first += payload.count(b"\n")
        if raw or payload.strip():
            yield payload


def _whole_stdin() -> bytes:
    """Read stdin as one record."""
    payload = sys.stdin.buffer.read(RECORD_BYTES_MAX + 1)
    if len(payload) > RECORD_BYTES_MAX:
        raise shardstore.InvalidRequest(
            f"stdin is longer than a record may be limit_bytes={RECORD_BYTES_MAX} (--each-line makes a record a line)"
        )
    if not payload.strip():
        raise shardstore.InvalidRequest("nothing to append: stdin is empty")
    return payload


def _check_json(payload: bytes, first: int) -> None:
    """Raise InvalidRequest for the first line that is not JSON; `first` is the number of the payload's first line."""
    for number, line in enumerate(payload.split(b"\n"), start=first):
        if not line.strip():
            continue
        try:
            json.loads(line.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            start = line[:60].decode("utf-8", "backslashreplace")
            raise shardstore.InvalidRequest(
                f"line {number} is not JSON: {error} text={start!r} (--raw takes it as it is)"
            ) from error


def _refuse_constant(name: str) -> NoReturn:
    """Refuse what Python writes for a number that JSON has no word for."""
    raise ValueError(f"JSON has no {name}")


@click.command("archive", short_help="Leave a session out of ls.")
@click.argument("session_id", metavar="SESSION")
@click.option("--undo", is_flag=True, help="Bring it back into `ls`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@pass_settings
def archive(settings: Settings, session_id: str, undo: bool, as_json: bool) -> None:
    """Leave a session out of `ls`. Nothing moves, and it can still be read and appended to.

    \b
    Example:  shardstore archive telegram:42
    """
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        if undo:
            session.unarchive()
        else:
            session.archive()
    done = "back from the archive" if undo else "archived"
    with _telling(done):
        if as_json:
            write_json({"session": session_id, "archived": not undo})
        else:
            write_line(f"{visible(session_id)}: {done}")


@click.command("delete", short_help="Delete a session for good.")
@click.argument("session_id", metavar="SESSION")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@pass_settings
def delete(settings: Settings, session_id: str, yes: bool, as_json: bool) -> None:
    """Delete a session for good: its transcript is removed from the disk, its id is never used again.

    Writers that still hold it get an error with their next append, never an acknowledgement. There is no undo; see
    `archive`, `export` and `backup`.

    \b
    Example:  shardstore export a a.jsonl && shardstore delete a --yes
    """
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        info = session.info()
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("deleting asks first, and there is no terminal: add --yes")
            question = f"delete session {visible(session_id)} with its {counted(info.head, 'record')} for good?"
            if not click.confirm(question, err=True):
                note("nothing was deleted")
                click.get_current_context().exit(EXIT_FAILED)
        session.delete()
    with _telling("deleted"):
        if as_json:
            write_json({"session": session_id, "deleted": True})
        else:
            write_line(f"{visible(session_id)}: deleted")


COMMANDS = [import_files, append, archive, delete]
