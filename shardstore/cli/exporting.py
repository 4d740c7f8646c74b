"""The command `export`: a session's exact bytes, in a file that is there whole or not at all.

The file is written under a temporary name in the same folder, synced, and only then given its own name: by link(2),
which fails where the name is taken, or with --force by rename(2), which replaces it in one step.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

import shardstore
from shardstore.cli.app import Settings, open_store, pass_settings
from shardstore.cli.output import progress_bar, show_size, visible, write_bytes, write_json, write_line

__all__ = ["COMMANDS"]


@click.command("export", short_help="Write the exact bytes to a file.")
@click.argument("session_id", metavar="SESSION")
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document about FILE.")
@pass_settings
def export(settings: Settings, session_id: str, file: str | None, force: bool, as_json: bool) -> None:
    """Write a session's exact bytes to FILE, or to stdout without one.

    FILE appears whole, synced and readable by you alone, or not at all. What was imported comes back byte for byte.
    Records appended meanwhile may be missing at the end, never in the middle.

    \b
    Example:  shardstore export telegram:42 telegram-42.jsonl
    """
    if file is None or file == "-":
        if as_json:
            raise click.UsageError("--json tells about FILE, and stdout is taken by the session: name a FILE")
        with open_store(settings) as store:
            session = store.session(session_id, create=False)
            for chunk in session.iter_jsonl():
                write_bytes(chunk)
        return
    _check_target(file, force)
    with open_store(settings) as store:
        session = store.session(session_id, create=False)
        session.info()  # a session that does not exist is told before anything is written
        size_bytes, digest = _write_file(session, file, force)
    if as_json:
        write_json({"session": session_id, "file": file, "bytes": size_bytes, "sha256": digest})
    else:
        write_line(f"{visible(session_id)}: {show_size(size_bytes)} to {visible(file)} (sha256 {digest})")


def _check_target(file: str, force: bool) -> None:
    """Refuse a name that is taken, and with --force one that is not a plain file: a device must not be replaced."""
    if not os.path.lexists(file):
        return
    if not stat.S_ISREG(os.lstat(file).st_mode):
        raise shardstore.InvalidRequest(f"not a plain file; write to stdout instead file={file!r}")
    if not force:
        raise shardstore.Conflict(f"{file} exists (--force replaces it)")


def _write_file(session: shardstore.Session, file: str, force: bool) -> tuple[int, str]:
    """Write the session to `file`; return its size and SHA-256."""
    digest = hashlib.sha256()
    size_bytes = 0
    with _new_file(file, force) as target, progress_bar("exporting", is_bytes=True) as advance:
        for chunk in session.iter_jsonl():
            target.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            advance(size_bytes, None)
    return size_bytes, digest.hexdigest()


@contextmanager
def _new_file(file: str, force: bool) -> Iterator[BinaryIO]:
    """Yield a file that gets the name `file` when the block ends well, and is removed otherwise."""
    folder = os.path.dirname(file) or "."
    descriptor, temporary = tempfile.mkstemp(prefix=".shardstore-export-", dir=folder)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        if force:
            os.replace(temporary, file)
        else:
            _link(temporary, file)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _link(temporary: str, file: str) -> None:
    """Give the finished file its name, unless somebody else took the name meanwhile."""
    try:
        os.link(temporary, file)
    except FileExistsError as error:
        raise shardstore.Conflict(f"{file} exists (--force replaces it)") from error
    os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


COMMANDS = [export]
