"""The folder of a view: who it belongs to, and that it has one writer.

Rule: a folder is written only if its marker names this store, and only by whoever holds the marker's lock, which dies
with its process. What a dead writer has not finished is swept before anything else is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress

from shardstore.errors import Conflict, InvalidRequest, describe
from shardstore.layout import VIEW_MARKER
from shardstore.viewfiles import unfinished_name

__all__ = ["claim", "is_own"]

VIEW_FORMAT = 1


def claim(folder: str, store: str) -> int:
    """Make `folder` a view of `store` if it is empty or missing; return its marker's descriptor, locked.

    Raises InvalidRequest for a folder of something else, Conflict if another process keeps the view, OSError.
    """
    if os.path.commonpath([folder, store]) == store:
        raise InvalidRequest(describe("the view's folder lies inside the store; choose one outside", folder=folder))
    with suppress(FileExistsError):
        os.makedirs(folder, 0o700)
    if not os.path.isdir(folder):
        raise InvalidRequest(describe("a file lies where the view's folder should be", folder=folder))
    path = os.path.join(folder, VIEW_MARKER)
    if not os.path.lexists(path):
        strangers = [name for name in os.listdir(folder) if not name.startswith(VIEW_MARKER)]
        if strangers:
            what = "this folder holds something else and is no view; choose an empty one"
            raise InvalidRequest(describe(what, folder=folder, found=min(strangers)))
        _write_marker(path, store)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _lock(descriptor, folder)
        _check_marker(descriptor, folder, store)
        _sweep(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_marker(path: str, store: str) -> None:
    """Write the marker, whole or not at all; another one may be quicker."""
    temporary = unfinished_name(os.path.dirname(path))
    document = {"shardstore_view": VIEW_FORMAT, "store": store}
    with open(temporary, "x", encoding="ascii") as file:
        file.write(json.dumps(document) + "\n")
    with suppress(FileExistsError, FileNotFoundError):  # another one was quicker, and has perhaps swept this
        os.link(temporary, path)
    with suppress(FileNotFoundError):
        os.unlink(temporary)


def _lock(descriptor: int, folder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(describe("another process keeps this view; end it first", folder=folder)) from error
    if not is_own(descriptor, folder):
        raise Conflict(describe("the view's marker was removed or replaced; start again", folder=folder))


def is_own(descriptor: int, folder: str) -> bool:
    """Say whether the marker that is open as `descriptor` still is the folder's."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(os.path.join(folder, VIEW_MARKER)))
    except OSError:
        return False


def _check_marker(descriptor: int, folder: str, store: str) -> None:
    try:
        marker = json.loads(os.pread(descriptor, 65_536, 0))
        version, owner = int(marker["shardstore_view"]), str(marker["store"])
    except (ValueError, TypeError, KeyError) as error:
        what = "the view's marker can't be read; remove the folder, a view can be made again"
        raise InvalidRequest(describe(what, path=os.path.join(folder, VIEW_MARKER))) from error
    if version != VIEW_FORMAT:
        raise InvalidRequest(
            describe("the view was made by a newer shardstore; upgrade", folder=folder, format=version)
        )
    if owner != store:
        what = "this folder is the view of another store; choose another one, or remove it if the store was moved"
        raise InvalidRequest(describe(what, folder=folder, store=owner))


def _sweep(folder: str) -> None:
    """Remove what a writer that was killed had not finished. It is dead, for the lock is ours."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            if name.startswith(f"{VIEW_MARKER}-") and stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)
