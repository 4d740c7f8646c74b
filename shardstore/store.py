"""A store: a folder of sessions, and the doors into it.

Rule: opening writes nothing but `store.json`, once; everything else happens per session, so that two sessions never
share anything that can be contended.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from shardstore.backends.base import Backend, Draft
from shardstore.backends.filesystems import SyncMethod
from shardstore.backends.local import LocalBackend, make_root
from shardstore.background import Background
from shardstore.compact import CompactReport
from shardstore.errors import (
    Conflict,
    Corrupt,
    Deleted,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    ShardstoreError,
    Unavailable,
    UnsupportedFormat,
    describe,
)
from shardstore.ingest import Imported, ingest, ingest_many, restore
from shardstore.layout import DAMAGED, SESSIONS, STORE_FILE, TEMP_PREFIX, SessionKeys, unquote_id
from shardstore.log import SessionLog
from shardstore.manifest import Durability
from shardstore.reader import Reader, Selection
from shardstore.record import FORMAT, NewRecord, Record, seal, unseal
from shardstore.session import Options, Session, SessionInfo
from shardstore.verify import Finding
from shardstore.writer import bear, now_ms

__all__ = ["RECORD_BYTES_MAX", "Store", "open_store", "repair_store"]

RECORD_BYTES_MAX = 64 << 20
COMPACT_SHARDS = 1024

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class _StoreFile:
    shardstore: int
    created_at: int


def open_store(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    durability: Durability = "sync",
    record_bytes_max: int = RECORD_BYTES_MAX,
    compact_shards: int | None = COMPACT_SHARDS,
    sync_method: SyncMethod = "fdatasync",
) -> Store:
    """Open the store in the folder `path`; with `create`, make one there if the folder is missing or empty.

    `durability` is that of sessions born through this handle: `sync` (an acknowledged append survives a power loss)
    or `none` (it survives the crash of any process). `record_bytes_max` bounds one append. A session with
    `compact_shards` shards is compacted in the background by the writer that crosses the line; None: only on request.
    `sync_method="sync_file_range"` makes durable appends with one flush instead of two: as safe as ext4 with a journal
    and XFS on one device are written, which promise it nowhere (FORMAT.md has the argument); elsewhere InvalidRequest.

    Raises NotFound (no store and not `create`), InvalidRequest (a file, or a folder of something else), Unavailable
    (permission, or a network filesystem), UnsupportedFormat, Corrupt.
    """
    _check_options(durability, record_bytes_max, compact_shards)
    root = os.path.abspath(os.fspath(path))
    if "\0" in root:
        raise InvalidRequest(describe("a path can't hold a NUL", path=root))
    if create:
        make_root(root)
    elif not os.path.isdir(root):
        where = "a file lies where the store should be" if os.path.lexists(root) else "no store here"
        raise (InvalidRequest if os.path.lexists(root) else NotFound)(describe(where, path=root))
    backend = LocalBackend(root, sync_method=sync_method)
    _check_store_file(backend, root, create=create)
    options = Options(durability=durability, record_bytes_max=record_bytes_max, compact_shards=compact_shards)
    return Store(backend, options, root)


def _check_options(durability: str, record_bytes_max: int, compact_shards: int | None) -> None:
    if durability not in ("sync", "none"):
        raise InvalidRequest(describe("durability must be 'sync' or 'none'", durability=durability))
    if record_bytes_max < 1 or (compact_shards is not None and compact_shards < 1):
        raise InvalidRequest(
            describe("limits must be positive", record_bytes_max=record_bytes_max, compact_shards=compact_shards)
        )


def _check_store_file(backend: Backend, root: str, *, create: bool) -> None:
    data = backend.read(STORE_FILE)
    if data is None:
        strangers = [name for name in backend.list("") if not name.startswith(TEMP_PREFIX) and name != STORE_FILE]
        if not create and SESSIONS not in strangers:
            raise NotFound(describe("no store here", path=root))
        if strangers and backend.read(STORE_FILE) is None:
            if SESSIONS in strangers:
                raise Corrupt(describe("store.json is missing; `shardstore verify --repair` makes it again", path=root))
            raise InvalidRequest(
                describe("this folder holds something else; choose an empty one", path=root, found=strangers[0])
            )
        _write_store_file(backend)
        data = backend.read(STORE_FILE) or b""
    try:
        version = unseal(data, _StoreFile, what=STORE_FILE).shardstore
    except Corrupt as error:
        raise Corrupt(
            describe("store.json is damaged; `shardstore verify --repair` makes it again", path=root)
        ) from error
    if version > FORMAT:
        raise UnsupportedFormat(describe("store was made by a newer shardstore; upgrade", path=root, format=version))
    if version != FORMAT:
        raise Corrupt(describe("store file names an impossible format", path=root, format=version))


def _write_store_file(backend: Backend) -> None:
    draft = Draft((seal(_StoreFile(FORMAT, now_ms())),))
    backend.create(STORE_FILE, draft, sync=True)
    draft.close()


def repair_store(path: str | os.PathLike[str]) -> bool:
    """Make a store's missing or damaged `store.json` again; say whether that was needed. Sessions are not touched.

    Raises NotFound if nothing in the folder is a store's, UnsupportedFormat for the store of a newer version.
    """
    root = os.path.abspath(os.fspath(path))
    if not os.path.isdir(root):
        raise NotFound(describe("no store here", path=root))
    backend = LocalBackend(root)
    try:
        _check_store_file(backend, root, create=False)
    except UnsupportedFormat:
        raise
    except Corrupt:
        seen = backend.look(STORE_FILE, None)
        if seen is not None:
            draft = Draft((seen.data,))
            backend.create(f"{DAMAGED}/{STORE_FILE}-{now_ms()}", draft, sync=True)
            draft.close()
            backend.delete(STORE_FILE)
        _write_store_file(backend)
        return True
    return False


def _is_inside(path: str | os.PathLike[str], folder: str) -> bool:
    """Say whether `path` is `folder` or lies below it, whatever symlinks lead there."""
    home = os.path.realpath(folder)
    try:
        return os.path.commonpath([home, os.path.realpath(path)]) == home
    except ValueError:  # a NUL: what opens it says so
        return False


@contextmanager
def _told_as_corrupt() -> Iterator[None]:
    """Tell what the disk can't read as what can't be copied, which a target that can't be written is not."""
    try:
        yield
    except Unavailable as error:
        if error.errno != errno.EIO:
            raise
        raise Corrupt(str(error)) from error


def _readable(records: Iterator[Record]) -> Iterator[Record]:
    with _told_as_corrupt():
        yield from records


class Store:
    """A folder of sessions; safe to share between threads and across fork. Made by `shardstore.open`."""

    def __init__(self, backend: Backend, options: Options, path: str) -> None:
        self._backend = backend
        self._options = options
        self._background = Background()
        self.path = path

    def __repr__(self) -> str:
        return f"<shardstore.Store {self.path!r}>"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for compactions that this store's handles began, and let go of every descriptor."""
        self._background.join()
        self._backend.close()

    # -------------------------------------------------------------- sessions

    def session(self, id: str, *, create: bool = True) -> Session:  # noqa: A002
        """Return a handle to the session `id`, without touching anything yet.

        With `create`, the first append gives birth to a session that does not exist. Raises InvalidRequest for an id
        that is empty, or too long once it is quoted as a file name.
        """
        return Session(self._backend, id, self._options, self._background, create=create)

    def create(self, id: str, *, durability: Durability | None = None) -> Session:  # noqa: A002
        """Create the session `id`, empty. Raises Conflict if it exists, Deleted if it did."""
        session = self.session(id)
        _check_options(durability or "sync", 1, None)
        if not bear(SessionLog(self._backend, id), durability or self._options.durability):
            SessionLog(self._backend, id).look()
            raise Conflict(describe("session exists already", session=id))
        return session

    def ids(self) -> list[str]:
        """Return the ids of all session folders, sorted; whether each holds a session is for `sessions` to say."""
        return sorted(id_ for name in self._backend.list(SESSIONS) if (id_ := unquote_id(name)) is not None)

    def sessions(self, *, archived: bool = False, deleted: bool = False) -> Iterator[SessionInfo]:
        """Yield the facts of every session, sorted by id; archived and deleted ones only if asked for.

        Raises Corrupt for a session whose manifest is damaged; `verify` goes on in that case.
        """
        for id_ in self.ids():
            try:
                info = self.session(id_).info()
            except NotFound:
                continue
            if (archived or not info.archived) and (deleted or info.state == "open"):
                yield info

    def import_session(
        self,
        id: str,  # noqa: A002
        records: Iterable[bytes | NewRecord],
        *,
        durability: Durability | None = None,
    ) -> int:
        """Bear the session `id` with its whole history, straight into segments; return the number of records.

        Each item is a raw line (kept verbatim, kind `turn`, source `import`) or a `NewRecord`. It either exists whole
        afterwards or not at all. Memory stays bounded. Raises Conflict if the session exists.
        """
        _check_options(durability or "sync", 1, None)
        return ingest(
            SessionLog(self._backend, id),
            records,
            durability=durability or self._options.durability,
            bytes_max=self._options.record_bytes_max,
        )

    def import_sessions(
        self,
        sessions: Iterable[tuple[str, Iterable[bytes | NewRecord]]],
        *,
        durability: Durability | None = None,
    ) -> Iterator[Imported]:
        """Bear many sessions (id, records) as `import_session` does; yield what became of each, a batch at a time.

        One flush makes a batch durable, which is many times faster for small sessions. What one session meets, errors
        of its own iterator included, stands in its `error`, and the others go on. Where `error` is None the session is
        there, whole and durable, when it is yielded; nothing of it exists where it is anything but OutcomeUnknown.
        """
        _check_options(durability or "sync", 1, None)
        return ingest_many(
            self._backend,
            sessions,
            durability=durability or self._options.durability,
            bytes_max=self._options.record_bytes_max,
        )

    # -------------------------------------------------------------- maintenance

    def compact(self, *, on_progress: Progress | None = None) -> list[CompactReport]:
        """Compact every session; `on_progress` is called with (sessions done, sessions in all).

        A session that can't be compacted has its report say why in `error`, and the others go on.
        """
        for folder in ("", DAMAGED):
            with suppress(Unavailable, Corrupt):  # a stray of the store's own file is no reason to compact nothing
                self._backend.sweep_temps(folder)
        return [self._compact(id_) for id_ in self._walk(on_progress)]

    def _compact(self, id_: str) -> CompactReport:
        try:
            return self.session(id_).compact()
        except (Corrupt, Unavailable, OutcomeUnknown, NotFound, UnsupportedFormat) as error:
            return CompactReport(id_, False, 0, 0, 0, 0, str(error))

    def _walk(self, on_progress: Progress | None) -> Iterator[str]:
        ids = [id_ for id_ in self.ids() if self._exists(id_)]
        for done, id_ in enumerate(ids):
            if on_progress is not None:
                on_progress(done, len(ids))
            yield id_
        if on_progress is not None:
            on_progress(len(ids), len(ids))

    def _exists(self, id_: str) -> bool:
        """Say whether there is a session, or something in its place that whoever works on it will tell of."""
        try:
            there = self._backend.read(SessionKeys(id_).manifest, length=0) is not None
            return there or SessionLog(self._backend, id_).is_headless()
        except ShardstoreError:
            return True

    def verify(self, *, on_progress: Progress | None = None) -> list[Finding]:
        """Read everything in the store; return every damage and every oddity, by session."""
        return self._inspect(lambda session: session.verify(), on_progress)

    def repair(self, *, on_progress: Progress | None = None) -> list[Finding]:
        """Repair every session; return what was found and whether it is gone now. Run it while nobody appends."""
        return self._inspect(lambda session: session.repair(), on_progress)

    def _inspect(self, look: Callable[[Session], list[Finding]], on_progress: Progress | None) -> list[Finding]:
        try:
            names = sorted(name for name in self._backend.list(SESSIONS) if not name.startswith(TEMP_PREFIX))
        except Corrupt as error:
            return [Finding("", "foreign-object", SESSIONS, None, "damage", str(error))]
        findings: list[Finding] = []
        for done, name in enumerate(names):
            if on_progress is not None:
                on_progress(done, len(names))
            findings += self._inspect_one(name, look)
        if on_progress is not None:
            on_progress(len(names), len(names))
        return findings

    def _inspect_one(self, name: str, look: Callable[[Session], list[Finding]]) -> list[Finding]:
        id_, where = unquote_id(name), f"{SESSIONS}/{name}"
        if id_ is None or os.path.isfile(os.path.join(self.path, where)):
            return [Finding("", "stray-file", where, None, "note", "not the store's; left alone")]
        try:
            return look(self.session(id_))
        except NotFound:
            return [Finding(id_, "unfinished-birth", where, None, "note", "an empty folder; no session was born in it")]
        except ShardstoreError as error:
            return [Finding(id_, "unreadable-session", where, None, "damage", str(error))]

    def backup(self, target: str | os.PathLike[str], *, on_progress: Progress | None = None) -> int:
        """Copy every session into a new store at `target` while writers and compactors go on; return their number.

        Each copy is a prefix of its session, complete up to what was acknowledged before its turn came, compacted and
        verified on the way; seqs, nonces, keys and facts are the same, deleted sessions stay deleted.
        Raises Conflict if `target` holds sessions, InvalidRequest if it is this store or lies in it, and, once every
        other session has been copied, Corrupt that names those that do not read back.
        """
        if _is_inside(target, self.path):
            raise InvalidRequest(
                describe("the backup's target lies inside the store; choose a folder outside", path=os.fspath(target))
            )
        copied, left_out = 0, list[str]()
        with open_store(target, durability=self._options.durability) as copy:
            if copy.ids():
                raise Conflict(
                    describe("the backup's target holds sessions already; choose an empty folder", path=copy.path)
                )
            for id_ in self._walk(on_progress):
                try:
                    self._copy(id_, copy)
                    copied += 1
                except (Corrupt, NotFound, UnsupportedFormat) as error:
                    left_out.append(f"{id_} ({error})")
        if left_out:
            raise Corrupt(describe("not all sessions were copied; see verify", copied=copied, left_out=left_out))
        return copied

    def _copy(self, id_: str, copy: Store) -> None:
        log, target = SessionLog(self._backend, id_), SessionLog(copy._backend, id_)
        with _told_as_corrupt():
            log.require_unborn()
            manifest = log.glance()[1]
        if manifest.state == "open":
            try:
                restore(target, _readable(Reader(log).records(1, None, Selection(), reverse=False)), manifest)
            except Deleted:  # meanwhile
                manifest = log.glance()[1]
            else:
                return
        end = max([manifest.watermark, *log.listed(manifest.watermark)])  # a deletion that was begun ends in the copy
        bear(target, manifest.durability, replace(manifest, state="deleted", segments=(), watermark=end))
