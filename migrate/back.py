"""The commands that go back: list, check, export, undo."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import click

import shardstore
from shardstore.cli.app import Settings
from shardstore.cli.output import (
    complain,
    counted,
    note,
    progress_bar,
    show_size,
    show_table,
    visible,
    write_json,
    write_line,
)

from .catalog import Catalog, Entry, path_of, text_of
from .checking import Difference
from .checking import check as check_entry
from .exporting import export as export_entries
from .exporting import export_session
from .importing import Outcome
from .undoing import undo as undo_entries
from .words import document_of, end, json_option, open_store, paths_argument, reason_of

__all__ = ["COMMANDS"]


def _chosen(catalog: Catalog, paths: Sequence[str], *, older: bool = False) -> list[Entry]:
    """Return the current entries of files at or below `paths`, all of them without any.

    With `older` also those of what the files were before, and those of which only derived sessions are left.
    """
    catalog.refresh()
    states = ("imported", "replaced") if older else ("imported",)
    entries = [one for one in catalog.entries() if one.state in states or (older and one.derived)]
    if not paths:
        return entries
    wanted = [place for path in paths for place in (os.path.abspath(path), os.path.realpath(path))]
    chosen = [entry for entry in entries if entry.session in paths or _lies_in(path_of(entry.path), wanted)]
    if not chosen:
        raise shardstore.NotFound(f"nothing was imported from there; see `migrate list` paths={list(paths)!r}")
    return chosen


def _lies_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


@click.command("list")
@paths_argument
@json_option
@click.pass_obj
def list_(settings: Settings, paths: tuple[str, ...], as_json: bool) -> None:
    """Show which file became which session, and which were made beside it (salvaged, expanded)."""
    with open_store(settings, create=False) as store:
        entries = _chosen(Catalog(store), paths)
    if as_json:
        for entry in entries:
            write_json(document_of(Outcome(path_of(entry.path), "unchanged", entry=entry)))
        return
    rows = []
    for entry in entries:
        rows.append([entry.session, path_of(entry.path), show_size(entry.size), f"{entry.lines:,}"])
        for id_, ranges in entry.derived.items():
            rows.append([id_, path_of(entry.path), "", f"{sum(last - first + 1 for first, last in ranges):,}"])
    show_table(None, ["session", "file", "size", "lines"], rows, shape="  rr")


@click.command("check")
@paths_argument
@json_option
@click.pass_obj
def check(settings: Settings, paths: tuple[str, ...], as_json: bool) -> None:
    """Compare store and files record by record; exit code 1 if any file is not in the store as it is now."""
    with open_store(settings, create=False) as store:
        entries = _chosen(Catalog(store), paths)
        differences = []
        with progress_bar("checking", total=sum(entry.size for entry in entries), is_bytes=True) as advance:
            done = 0
            for entry in entries:
                difference = _checked(store, entry)
                if difference is not None:
                    differences.append((entry, difference))
                done += entry.size
                advance(done, None)
    if as_json:
        for _, difference in differences:
            write_json({**asdict(difference), "error": reason_of(difference.error)})
    else:
        for entry, difference in differences:
            write_line(f"{visible(path_of(entry.path))}: {_told(difference)}")
        same = len(entries) - len(differences)
        write_line(f"{same:,} of {counted(len(entries), 'file')} in the store as they are")
    end(failed=bool(differences))


def _checked(store: shardstore.Store, entry: Entry) -> Difference | None:
    try:
        return check_entry(store, entry)
    except OSError as error:  # of this file, or of its session alone
        return Difference(entry.path, entry.session, "unreadable", error=error)


def _told(difference: Difference) -> str:
    """Return a difference in words."""
    if difference.status == "grew":
        return f"grew by {show_size(difference.grew_bytes)} since it was imported; run brings it in"
    if difference.status == "gone":
        return "is gone; the store has all of it"
    if difference.status == "unreadable":
        return f"can't be compared: {visible(reason_of(difference.error))}"
    words = {
        "rewritten": "was rewritten since it was imported; the store has what it was",
        "lacks": "the store lacks records of it; run `shardstore verify`",
        "differs": "the store holds other bytes than were imported; run `shardstore verify`",
    }[difference.status]
    where = "" if difference.line is None else f", from line {difference.line:,} on"
    return f"{words}{where}"


@click.command("export")
@click.argument("target", type=click.Path(readable=False))
@paths_argument
@click.option("--session", "session_id", metavar="SESSION", help="One session as it is today, into the file TARGET.")
@click.option("--force", is_flag=True, help="Where another file lies, keep it under a new name and write.")
@json_option
@click.pass_obj
def export(
    settings: Settings, target: str, paths: tuple[str, ...], session_id: str | None, force: bool, as_json: bool
) -> None:
    """Write the files as they were: the same bytes, names, modes and times, below TARGET under their own paths.

    With TARGET `/` they return to their places; a file that lies there with other bytes is never overwritten.

    \b
    Examples:  shardstore migrate export /tmp/back
               shardstore migrate export / ~/.openclaw
               shardstore migrate export --session openclaw/main/4f2a… session.jsonl
    """
    if session_id is not None and paths:
        raise click.UsageError("--session names all that is exported; leave out the paths")
    with open_store(settings, create=False) as store:
        if session_id is not None:
            result = export_session(store, session_id, target, force=force)
            if as_json:
                write_json({"path": text_of(result.path), "status": result.status, "error": None})
            return
        entries = _chosen(Catalog(store), paths)
        failed = 0
        written = 0
        with progress_bar("exporting", total=len(entries)) as advance:
            for number, result in enumerate(export_entries(store, entries, target, force=force), 1):
                advance(number, None)
                reason = reason_of(result.error)
                failed += result.error is not None
                written += result.error is None
                if as_json:
                    write_json({"path": text_of(result.path), "status": result.status, "error": reason or None})
                elif reason:
                    complain(f"{result.path}: {reason}")
    if not as_json:
        write_line(f"{counted(written, 'file')} below {visible(target)}")
    end(failed=bool(failed))


@click.command("undo")
@paths_argument
@json_option
@click.confirmation_option(prompt="Delete the imported sessions that nobody has appended to?")
@click.pass_obj
def undo(settings: Settings, paths: tuple[str, ...], as_json: bool) -> None:
    """Delete imported sessions that nobody has appended to since; the files stay as they are. It asks first.

    With them go the sessions made beside them (salvaged, expanded), and those of what a file held before.
    """
    with open_store(settings, create=False) as store:
        entries = _chosen(Catalog(store), paths, older=True)
        gone = kept = 0
        for result in undo_entries(store, entries):
            gone += result.status == "undone"
            kept += result.status != "undone"
            reason = result.reason or reason_of(result.error)
            if as_json:
                write_json({"session": result.session, "status": result.status, "reason": reason, "late": result.late})
            elif result.status != "undone" or result.late:
                note(f"{visible(result.session)}: {result.status}: {visible(reason)}")
    if not as_json:
        write_line(f"{counted(gone, 'session')} removed, {counted(kept, 'session')} kept")
    end(failed=bool(kept))


COMMANDS = [list_, check, export, undo]
