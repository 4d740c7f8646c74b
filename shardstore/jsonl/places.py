"""Which session a path means.

Rule: one file, one session. A path is resolved as the system would, symlinks included, and belongs to the nearest
folder at or above it that holds a store, so whoever names the same file gets the same session. A plain file with
content that lies there is never shadowed: its lines would seem lost.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from dataclasses import dataclass
from shlex import quote
from weakref import WeakKeyDictionary

from shardstore.errors import InvalidRequest, NotFound, describe
from shardstore.forksafe import ForkSafeLock
from shardstore.session import Session
from shardstore.store import Store, open_store

__all__ = ["Name", "Place", "locate"]

FOLDER = ".shardstore"
SUFFIX = ".jsonl"
STORES_MAX = 16  # of a further one the descriptors are let go of; files that are open in it take new ones
HANDLES_MAX = 4096  # of a store; a session beyond that is one whose reading is forgotten

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_Identity = tuple[int, int]

_stores: OrderedDict[str, tuple[_Identity, Store]] = OrderedDict()  # by real path
_handles: WeakKeyDictionary[Store, OrderedDict[str, Session]] = WeakKeyDictionary()
_opening = ForkSafeLock()


@dataclass(frozen=True, slots=True)
class Place:
    """A session, and the name under which it was asked for."""

    session: Session
    name: str | bytes

    def missing(self) -> FileNotFoundError:
        """Return what `open` raises for a file that is not there."""
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.name)

    def exists(self, why: str) -> FileExistsError:
        """Return what `open` raises for a file that may not be there."""
        return FileExistsError(errno.EEXIST, why, self.name)


def locate(file: Session | Name, store: Store | str | os.PathLike[str] | None, *, create: bool) -> Place:
    """Return the place of `file`; with `create`, make the store where there is none.

    Raises FileNotFoundError, IsADirectoryError, FileExistsError (a plain file), InvalidRequest, and what opening a
    store raises.
    """
    if isinstance(file, Session):
        if store is not None:
            raise InvalidRequest(describe("a Session has its store already; leave `store` out", session=file.id))
        return Place(file, file.id)
    if isinstance(file, int):
        raise TypeError("a file descriptor names no session; pass a path or a Session")
    name = os.fspath(file)
    if store is not None:
        return _in_store(name, store, create=create)
    return _at_path(name, create=create)


def _in_store(name: str | bytes, store: Store | str | os.PathLike[str], *, create: bool) -> Place:
    if not isinstance(store, Store):
        store = _shared(os.path.realpath(os.fspath(store)), os.fspath(store), create=create)
    return Place(_handle(store, os.fsdecode(name).removesuffix(SUFFIX)), name)


def _at_path(name: str | bytes, *, create: bool) -> Place:
    path = os.path.realpath(os.fsdecode(name))
    if not name or os.path.isdir(path) or os.path.basename(os.fsdecode(name)) in ("", "."):
        code = errno.EISDIR if name else errno.ENOENT
        raise OSError(code, os.strerror(code), name)
    if not path.endswith(SUFFIX) or os.path.basename(path) == SUFFIX:
        raise InvalidRequest(describe(f"a path must end with {SUFFIX}; or pass a Session, or store=…", path=name))
    folder = os.path.dirname(path)
    root = _root_of(folder)
    there = os.path.isdir(folder)
    if root is None:
        root = folder
        _refuse_plain_file(path, name, root)
        if not (create and there):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    store = _shared(os.path.join(root, FOLDER), name, create=create)
    session = _handle(store, os.path.relpath(path, root).removesuffix(SUFFIX))
    if (os.path.lexists(path) or not there) and not _exists(session):
        _refuse_plain_file(path, name, root)
        if not there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return Place(session, name)


def _root_of(folder: str) -> str | None:
    """Return the nearest folder at or above `folder` that holds a store; the path is as long as it is, so it ends."""
    while not os.path.isdir(os.path.join(folder, FOLDER)):
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above
    return folder


def _exists(session: Session) -> bool:
    try:
        session.info()
    except NotFound:
        return False
    return True


def _refuse_plain_file(path: str, name: str | bytes, root: str) -> None:
    if not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path)):
        return
    store, session = os.path.join(root, FOLDER), os.path.relpath(path, root).removesuffix(SUFFIX)
    why = (
        "A plain file lies here, and no session; bring its lines in with "
        f"`SHARDSTORE_PATH={quote(store)} shardstore import --session {quote(session)} {quote(path)}`, "
        "or all transcripts with `shardstore migrate run`"
    )
    raise FileExistsError(errno.EEXIST, why, name)


def _handle(store: Store, id_: str) -> Session:
    """Return this process's handle to a session, one for all its files: what it has read, it knows when it writes."""
    with _opening.lock:
        handles = _handles.setdefault(store, OrderedDict())
        session = handles.get(id_)
        if session is None:
            session = handles[id_] = store.session(id_)
            if len(handles) > HANDLES_MAX:
                handles.popitem(last=False)
        handles.move_to_end(id_)
        return session


def _shared(root: str, name: str | bytes, *, create: bool) -> Store:
    """Return this process's store in the folder `root`, one for all handles, opened anew if the folder is another.

    Raises FileNotFoundError with `name` if there is none.
    """
    with _opening.lock:
        kept = _stores.get(root)
        if kept is not None and kept[0] == _identity(root):
            _stores.move_to_end(root)
            return kept[1]
        try:
            store = open_store(root, create=create)
        except NotFound as error:
            raise FileNotFoundError(errno.ENOENT, "There is no store", name) from error
        identity = _identity(root)
        if identity is not None:
            _stores[root] = (identity, store)
            _stores.move_to_end(root)
            if len(_stores) > STORES_MAX:
                _, (_, oldest) = _stores.popitem(last=False)
                oldest.close()
        return store


def _identity(root: str) -> _Identity | None:
    try:
        found = os.stat(root)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
