"""What the commands of a migration share: options, the store they open, how outcomes are spelled."""

from __future__ import annotations

import click

import shardstore
from shardstore.cli.app import EXIT_FAILED, Settings, words_of

from .catalog import text_of
from .importing import Outcome
from .running import RECORD_BYTES_MAX

__all__ = ["document_of", "end", "json_option", "open_store", "paths_argument", "reason_of"]

paths_argument = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(readable=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def open_store(settings: Settings, *, create: bool) -> shardstore.Store:
    """Open the chosen store, with room for records of any size."""
    return shardstore.open(settings.store_path, create=create, record_bytes_max=RECORD_BYTES_MAX)


def end(*, failed: bool) -> None:
    """End the command with the exit code that says whether anything failed."""
    click.get_current_context().exit(EXIT_FAILED if failed else 0)


def reason_of(error: Exception | None) -> str:
    """Return an error in words, "" for none."""
    if error is None:
        return ""
    return words_of(error) if isinstance(error, (shardstore.ShardstoreError, OSError)) else repr(error)


def document_of(outcome: Outcome) -> dict[str, object]:
    """Return what became of a file, as JSON has it."""
    entry = outcome.entry
    return {
        "path": text_of(outcome.path),
        "status": outcome.status,
        "bytes_new": outcome.bytes_new,
        "lines_new": outcome.lines_new,
        "error": None if outcome.error is None else reason_of(outcome.error),
        "session": None if entry is None else entry.session,
        "format": None if entry is None else entry.format,
        "sha256": None if entry is None else entry.sha256,
        "damage": {} if entry is None else entry.damage,
        "derived": [] if entry is None else sorted(entry.derived),
    }
