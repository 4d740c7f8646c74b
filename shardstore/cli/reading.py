"""Commands that only read: ls, show, cat, tail. None of them makes a store, a session or a lock.

`tail -f` watches its own stdout: when the reader of the pipe goes away while nothing is being written, no write would
ever fail, and the process would wait for ever.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import click

import shardstore
from shardstore.cli.app import EXIT_FAILED, Settings, open_store, pass_settings
from shardstore.cli.documents import of_description, of_files, of_info, of_record
from shardstore.cli.output import (
    ReaderGone,
    complain,
    counted,
    flush,
    progress_bar,
    show_size,
    show_table,
    show_time,
    visible,
    write_bytes,
    write_json,
    write_line,
)

__all__ = ["COMMANDS"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
records_option = click.option(
    "--records", "--json", "as_records", is_flag=True, help="Print each record's metadata as a JSON line, no payload."
)
kind_option = click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind: turn, event, control. Repeatable."
)
source_option = click.option(
    "--source", "sources", multiple=True, metavar="LANE", help="Only what this lane wrote. Repeatable."
)


@click.command("ls", short_help="List the sessions.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Archived and deleted sessions too.")
@json_option
@pass_settings
def list_sessions(settings: Settings, show_all: bool, as_json: bool) -> None:
    """List the store's sessions, sorted by id.

    Sessions that others make or delete meanwhile may or may not be among them. A damaged one is named on stderr, the
    others are listed, and the exit code is 1. With --json: one session a line.

    \b
    Example:  shardstore ls -a
    """
    with open_store(settings) as store:
        damaged: list[shardstore.ShardstoreError] = []
        found = _listed(store, show_all, damaged)
        if as_json:
            for info in found:
                write_json(of_info(info))
        else:
            _show_sessions([_session_row(info) for info in found])
    for error in damaged:
        complain(str(error))
    if damaged:
        click.get_current_context().exit(EXIT_FAILED)


def _listed(
    store: shardstore.Store, show_all: bool, damaged: list[shardstore.ShardstoreError]
) -> Iterator[shardstore.SessionInfo]:
    """Yield the sessions to list; what one that can't be read has to say is put in `damaged`."""
    for session_id in store.ids():
        try:
            info = store.session(session_id, create=False).info()
        except shardstore.NotFound:  # a folder without a session: an import under way, or one that never ended
            continue
        except (shardstore.Corrupt, shardstore.UnsupportedFormat, shardstore.Unavailable) as error:
            damaged.append(error)
            continue
        if show_all or (info.state == "open" and not info.archived):
            yield info


def _show_sessions(rows: list[list[str]]) -> None:
    if rows:
        show_table(None, ["session", "records", "loose", "segments", "state", "created"], rows, shape=" rrrll")
    else:
        write_line("no sessions")


def _session_row(info: shardstore.SessionInfo) -> list[str]:
    """One line of `ls`; loose = records that still lie in a file each."""
    state = "archived" if info.archived and info.state == "open" else info.state
    loose = max(0, info.head - info.watermark)
    return [info.id, f"{info.head:,}", f"{loose:,}", str(info.segments), state, show_time(info.created_at_ms)]


@click.command("show", short_help="Describe one session: counts, lanes, files.")
@click.argument("session_id", metavar="SESSION")
@json_option
@pass_settings
def show_session(settings: Settings, session_id: str, as_json: bool) -> None:
    """Describe one session: what it holds, who wrote it, where it lies.

    Counts records, entries and bytes by kind and by source; says who wrote without having seen what another had
    already written (nothing was lost by it: that is what a fence would have punished); names the files. Reads the
    whole session once. With --json: one document.

    \b
    Example:  shardstore show telegram:42
    """
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        info = session.info()
        with progress_bar("reading", total=info.head) as advance:
            description = session.describe(on_progress=advance)
        files = session.files()
    if as_json:
        write_json({"info": of_info(info), **of_description(description), "files": of_files(files)})
        return
    _show_facts(info, description)
    columns = ["", "records", "entries", "size", "first (UTC)", "last (UTC)"]
    show_table("by kind", columns, _tally_rows(description.kinds), shape=" rrrll")
    show_table("by source", columns, _tally_rows(description.sources), shape=" rrrll")
    _show_overlaps(description)
    _show_files(store.path, files)


def _show_facts(info: shardstore.SessionInfo, description: shardstore.Description) -> None:
    """Write the facts that have no table."""
    state = f"{info.state}, archived" if info.archived else info.state
    entries = counted(description.entries, "entry", "entries")
    segments = counted(info.segments, "segment")
    facts = [
        ("session", visible(info.id)),
        ("state", f"{state}, durability {info.durability}, created {show_time(info.created_at_ms)}"),
        ("holds", f"{counted(description.records, 'record')}, {entries}, {show_size(description.bytes)}"),
        ("watermark", f"{info.watermark:,} of {counted(info.head, 'record')} compacted, in {segments}"),
    ]
    for name, fact in facts:
        write_line(f"{name:<10} {fact}")
    write_line("")


def _tally_rows(tallies: dict[str, shardstore.Tally]) -> list[list[str]]:
    """One row for each name, the largest first; times to the minute, or a row would not fit into 80 columns."""
    minutes = "%Y-%m-%d %H:%M"
    ordered = sorted(tallies.items(), key=lambda item: (-item[1].records, item[0]))
    return [
        [
            name,
            f"{tally.records:,}",
            f"{tally.entries:,}",
            show_size(tally.bytes),
            show_time(tally.first_at_ms, form=minutes),
            show_time(tally.last_at_ms, form=minutes),
        ]
        for name, tally in ordered
    ]


def _show_overlaps(description: shardstore.Description) -> None:
    """Say who wrote concurrently with whom."""
    if not description.concurrent:
        write_line("no lane is known to have written without having seen another lane's records")
        write_line("")
        return
    rows = [[overlap.source, f"{overlap.count:,}", overlap.other] for overlap in description.concurrent]
    show_table("written concurrently", ["records of", "count", "had not seen an earlier one of"], rows, shape=" r ")


def _show_files(store_path: str, files: list[tuple[str, int]]) -> None:
    """Say where the session lies: every file while they are few, else how many there are in each folder."""
    few = 20
    write_line(f"files, under {visible(store_path)}")
    if len(files) <= few:
        for path, size_bytes in files:
            write_line(f"  {show_size(size_bytes):>10}  {visible(path)}")
        return
    folders: dict[str, list[int]] = {}
    for path, size_bytes in files:
        folders.setdefault(os.path.dirname(path), []).append(size_bytes)
    for folder, sizes in sorted(folders.items()):
        write_line(f"  {show_size(sum(sizes)):>10}  {visible(folder)}/  ({counted(len(sizes), 'file')})")


@click.command("cat", short_help="Write a session to stdout, byte for byte.")
@click.argument("session_id", metavar="SESSION")
@click.option("--first", type=click.IntRange(min=1), default=1, metavar="SEQ", help="From this record on.")
@click.option("--last", type=click.IntRange(min=0), default=None, metavar="SEQ", help="Up to this record.")
@kind_option
@source_option
@click.option("--exclude-source", "excluded", multiple=True, metavar="LANE", help="Without what this lane wrote.")
@records_option
@pass_settings
def cat_session(
    settings: Settings,
    session_id: str,
    first: int,
    last: int | None,
    kinds: tuple[str, ...],
    sources: tuple[str, ...],
    excluded: tuple[str, ...],
    as_records: bool,
) -> None:
    """Write a session to stdout: the very bytes that were appended, in order.

    What you get is a prefix of the one order that every reader sees, whatever is being appended or compacted
    meanwhile. Where a record lacks a final newline, one stands before the next record.

    \b
    Examples:  shardstore cat a | jq .
               shardstore cat a --kind turn --exclude-source heartbeat
               shardstore cat a --first 100 --last 120 --records
    """
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        if as_records:
            for record in session.records(first, last, kind=kinds or None, source=sources or None):
                if record.source not in excluded:
                    write_json(of_record(session_id, record))
            return
        chunks = session.iter_jsonl(
            first, last, kind=kinds or None, source=sources or None, exclude_source=excluded or None
        )
        for chunk in chunks:
            write_bytes(chunk)


@click.command("tail", short_help="Write the last records, and with -f what follows.")
@click.argument("session_id", metavar="SESSION")
@click.option("-n", "--records-count", "count", type=click.IntRange(min=0), default=10, show_default=True,
              metavar="N", help="How many records to begin with.")  # fmt: skip
@click.option("-f", "--follow", "follow", is_flag=True, help="Wait for more, until Ctrl-C.")
@kind_option
@source_option
@records_option
@pass_settings
def tail_session(
    settings: Settings,
    session_id: str,
    count: int,
    follow: bool,
    kinds: tuple[str, ...],
    sources: tuple[str, ...],
    as_records: bool,
) -> None:
    """Write the last records of a session, and with -f every further one as it is committed.

    Following misses nothing and repeats nothing, across compactions too. Each record ends with a newline here, also
    one that was appended without.

    \b
    Example:  shardstore tail -f -n 3 telegram:42
    """
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        seen = session.head()
        shown = session.last(count, kind=kinds or None, source=sources or None) if count else []
        _write_records(session_id, shown, as_records)
        flush()
        if follow:
            after = max([seen, *(record.seq for record in shown)])
            _follow(session, after, kinds, sources, as_records)


def _follow(
    session: shardstore.Session, after: int, kinds: tuple[str, ...], sources: tuple[str, ...], as_records: bool
) -> None:
    """Write what is committed after `after`, until Ctrl-C or until nobody reads stdout any more."""
    gone = threading.Event()
    _watch_stdout(gone)
    with closing(session.follow(after, stop=gone)) as follower:
        for record in follower:
            if (not kinds or record.kind in kinds) and (not sources or record.source in sources):
                _write_records(session.id, [record], as_records)
                flush()
    if gone.is_set():
        raise ReaderGone


def _write_records(session_id: str, records: Iterable[shardstore.Record], as_records: bool) -> None:
    """Write records as metadata, or as the lines that a reader of the session's view would see."""
    for record in records:
        if as_records:
            write_json(of_record(session_id, record))
        elif record.kind != "control":
            write_bytes(record.payload if record.payload.endswith(b"\n") else record.payload + b"\n")


def _watch_stdout(gone: threading.Event) -> None:
    """Set `gone` once the other end of a pipe at stdout is closed; other kinds of stdout can't go away."""
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def wait() -> None:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)  # no event asked for: only errors and a hang-up are reported
        poller.poll()
        gone.set()

    threading.Thread(target=wait, name="stdout-watch", daemon=True).start()


COMMANDS = [list_sessions, show_session, cat_session, tail_session]
