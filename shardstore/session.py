"""A session: the handle through which programs append, read, follow and maintain one log.

Rule: a handle holds no truth. It remembers guesses (the head, the last manifest) and one fact of its own: which seq
it last delivered to its caller, which becomes the `base` of what that caller appends. Any number of handles, threads,
forks and processes may use one session at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from shardstore.backends.base import Backend
from shardstore.background import Background
from shardstore.compact import CompactReport, compact, sweep
from shardstore.describe import Description, describe_records
from shardstore.durable import make_durable
from shardstore.errors import Deleted, InvalidRequest, NotFound, describe
from shardstore.follow import Follower
from shardstore.ingest import check_fields, check_seqs
from shardstore.layout import SEQ_MAX
from shardstore.log import SessionLog
from shardstore.manifest import Durability
from shardstore.reader import Filter, Reader, Selection
from shardstore.record import Kind, Receipt, Record, encode_entries
from shardstore.repair import repair_session
from shardstore.rewrite import REWRITE, encode_rewrite
from shardstore.verify import Finding, verify_session
from shardstore.writer import Writer, bear

__all__ = ["Options", "Session", "SessionInfo"]

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a store hands to its sessions: see `shardstore.open`."""

    durability: Durability
    record_bytes_max: int
    compact_shards: int | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session's facts: `head` is its last seq, `watermark` the last one in a segment, times in ms since 1970.

    `birth` is random: another session under the same id, after the first was removed by hand, has another one.
    """

    id: str
    head: int
    watermark: int
    generation: int
    segments: int
    state: Literal["open", "closing", "deleted"]
    archived: bool
    durability: Durability
    created_at_ms: int
    birth: str


class Session:
    """One session. Made by `Store.session`; creating a handle touches nothing."""

    def __init__(
        self, backend: Backend, session_id: str, options: Options, background: Background, *, create: bool
    ) -> None:
        self._log = SessionLog(backend, session_id)
        self._options = options
        self._create = create
        self._reader = Reader(self._log, self._deliver)
        self._writer = Writer(
            self._log,
            self._reader,
            birth=options.durability if create else None,
            committed=self._on_commit,
        )
        self._background = background
        self._last_delivered = 0

    def __repr__(self) -> str:
        return f"<shardstore.Session {self.id!r}>"

    @property
    def id(self) -> str:
        """The session's id."""
        return self._log.id

    @property
    def delivered(self) -> int:
        """The last seq that this handle has delivered, 0 if none: what its caller knows."""
        return self._last_delivered

    def create(self) -> bool:
        """Make the session, empty, where there is none; say whether this very call made it.

        Raises Deleted, NotFound for a handle that may not create it, Corrupt, Unavailable.
        """
        try:
            self._log.look()
        except Deleted:
            raise
        except NotFound:
            if not self._create:
                raise
            if bear(self._log, self._options.durability):
                return True
            self._log.look()
        return False

    # -------------------------------------------------------------- append

    def append(
        self,
        entries: object,
        *,
        kind: Kind = "turn",
        source: str = "main",
        base: int | None = None,
        key: str | None = None,
        if_no_turn_since: int | None = None,
        at_ms: int | None = None,
    ) -> Receipt:
        """Commit `entries` as one record: one dict, msgspec Struct or raw lines as bytes, or an iterable of those.

        When this returns, the record lies at `receipt.seq` for good (in a `sync` session after a power loss too), and
        any append that begins from now on has a larger seq. `base` is the last seq the caller knew (0: none), by
        default the last one that this handle delivered. `key` makes the append idempotent: once committed, the same
        key is answered with the same seq. `if_no_turn_since=s` commits only if no turn lies above seq s.

        Raises InvalidRequest, Conflict, NotFound, Deleted, Unavailable (nothing was committed), OutcomeUnknown.
        """
        payload = encode_entries(entries)
        check_fields(kind, source, key, len(payload), bytes_max=self._options.record_bytes_max)
        if (base, if_no_turn_since, at_ms) != (None, None, None):
            check_seqs(base=base, if_no_turn_since=if_no_turn_since, at_ms=at_ms)
        known = (self._last_delivered or None) if base is None else base
        receipt = self._writer.append(
            payload, kind=kind, source=source, base=known, key=key, since=if_no_turn_since, at_ms=at_ms
        )
        if receipt.seq == self._last_delivered + 1:
            self._last_delivered = receipt.seq  # nothing lies between what the caller knew and what it wrote
        return receipt

    def event(
        self,
        entries: object,
        *,
        source: str,
        base: int | None = None,
        key: str | None = None,
        at_ms: int | None = None,
    ) -> Receipt:
        """Commit `entries` as one record of kind `event`: a co-tenant's, such as a heartbeat or a cron job."""
        return self.append(entries, kind="event", source=source, base=base, key=key, at_ms=at_ms)

    def rewrite(self, content: bytes, *, seen: int, holds: Iterable[tuple[int, int]] = ()) -> Receipt:
        """Commit `content` as what a mount shows in the place of everything up to seq `seen`; the old records stay.

        Records above `seen` are shown after it, but for those in the ranges `holds`, whose lines it has already. For
        `if_no_turn_since` this is a turn; readers that know no rewrites pass over it. Raises what `append` does.
        """
        check_seqs(seen=seen)
        if seen > (head := self.head()):
            raise InvalidRequest(describe("a rewrite can't have seen what is not there", seen=seen, head=head))
        payload = encode_rewrite(content, seen, holds)
        check_fields("event", REWRITE, None, len(payload), bytes_max=self._options.record_bytes_max)
        return self._writer.append(
            payload, kind="control", source=REWRITE, base=seen or None, key=None, since=None, at_ms=None
        )

    def _on_commit(self, seq: int, watermark: int) -> None:
        """Start a compaction in the background when enough shards have gathered."""
        threshold = self._options.compact_shards
        if threshold is None or seq - watermark < threshold or (seq - watermark) % max(threshold // 8, 1):
            return
        self._background.start(self.id, self.compact)

    # -------------------------------------------------------------- read

    def _deliver(self, seq: int) -> None:
        self._last_delivered = max(self._last_delivered, seq)

    def _delivering(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._deliver(record.seq)
            yield record

    def records(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        kind: Filter = None,
        source: Filter = None,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """Yield the records with seqs `first`..`last` (to the end by default), of some kinds and sources.

        Forwards this is a prefix-true snapshot: it ends at a slot that was free when it got there. Raises NotFound,
        Deleted, Corrupt, Unavailable.
        """
        _check_range(first, last)
        return self._delivering(self._reader.records(first, last, Selection(kind, source), reverse=reverse))

    def last(self, k: int, *, kind: Filter = None, source: Filter = None) -> list[Record]:
        """Return the last `k` records (of some kinds and sources), in seq order, at a cost that does not grow."""
        return list(self._delivering(iter(self._reader.last(k, Selection(kind, source)))))

    def entries(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        kind: Filter = None,
        source: Filter = None,
        reverse: bool = False,
        invalid: Literal["raise", "raw"] = "raise",
    ) -> Iterator[Any]:
        """Yield the decoded entries of the selected records; control records hold none.

        A stored line that is no JSON raises InvalidRequest, or is yielded as bytes with `invalid="raw"`.
        """
        _check_range(first, last)
        selection = Selection(kind, source)
        if not reverse:
            return self._reader.entries(first, last, selection, invalid)
        backwards = self._reader.records(first, last, selection, reverse=True)
        return (entry for record in backwards for entry in reversed(record.entries(invalid=invalid)))

    def iter_jsonl(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        kind: Filter = None,
        source: Filter = None,
        exclude_source: Filter = None,
    ) -> Iterator[bytes]:
        """Yield the view in pieces: exactly the bytes that were appended, in seq order.

        Only where a record lacks its final newline and another one follows, a newline stands between them.
        """
        _check_range(first, last)
        return self._reader.view(first, last, Selection(kind, source, exclude_source))

    def read_jsonl(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        kind: Filter = None,
        source: Filter = None,
        exclude_source: Filter = None,
    ) -> bytes:
        """Return the view's bytes; see `iter_jsonl`."""
        pieces = self.iter_jsonl(first, last, kind=kind, source=source, exclude_source=exclude_source)
        return b"".join(pieces)

    def payload_blocks(
        self, first: int = 1, last: int | None = None, *, delivered: bool = True
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Yield (last seq, payloads of turns and events) of consecutive records, a quarter of a megabyte or one record.

        Their bytes are those that `iter_jsonl` joins; a block without either has an empty list. Without `delivered`
        the caller only measures them, and its appends have no other base for it.
        """
        _check_range(first, last)
        for block in self._reader.blocks(first, last):
            if delivered:
                self._deliver(block.last)
            yield block.last, block.payloads(("turn", "event"))

    def follow(
        self,
        after: int | None = None,
        *,
        poll_ms: int = 1000,
        watch: bool = True,
        stop: threading.Event | None = None,
    ) -> Follower:
        """Return an iterator (and async iterator) over the records after seq `after`, from now on by default.

        It waits for more until `stop` is set or it is closed. Woken by the system's notifications where there are
        any (`watch`), and every `poll_ms` milliseconds in any case.
        """
        return Follower(
            self._log, self._reader, after, poll_ms=poll_ms, watch=watch, stop=stop, delivered=self._deliver
        )

    # -------------------------------------------------------------- facts

    def head(self) -> int:
        """Return the last seq; 0 for an empty session."""
        return self._reader.head()

    def settle(self) -> None:
        """Return once every record that could be read before the call survives what the session's durability promises.

        Whoever shows records to others calls it first. Raises NotFound, Deleted, Corrupt, Unavailable.
        """
        if self._log.look().durability == "sync":
            self._log.backend.settle(self._log.keys.shards)

    def info(self, *, head: int | None = None) -> SessionInfo:
        """Return the session's facts, of a deleted one too; a `head` that is given is not looked for.

        Raises NotFound, Corrupt.
        """
        try:
            head = self._reader.head() if head is None else head
            manifest = self._log.glance()[1]
        except Deleted:
            manifest = self._log.glance()[1]
            head = manifest.watermark
        return SessionInfo(
            self.id,
            head,
            manifest.watermark,
            manifest.generation,
            len(manifest.segments),
            manifest.state,
            manifest.archived,
            manifest.durability,
            manifest.created_at,
            manifest.birth,
        )

    def describe(self, *, on_progress: Progress | None = None) -> Description:
        """Read the whole session and count it; `on_progress` is called with (records done, records in all)."""
        total = self.head()

        def counted() -> Iterator[Record]:
            for record in self._reader.records(1, None, Selection(), reverse=False):
                if on_progress is not None and record.seq % 1000 == 0:
                    on_progress(record.seq, total)
                yield record

        return describe_records(counted())

    def files(self) -> list[tuple[str, int]]:
        """Return (path relative to the store, size in bytes) of the files that hold the session, in reading order."""
        manifest = self._log.look()
        out = [(self._log.keys.manifest, len(self._log.backend.read(self._log.keys.manifest) or b""))]
        out += [(self._log.keys.segment(segment), segment.size) for segment in manifest.segments]
        for seq in self._log.listed(manifest.watermark):
            data = self._log.shard(seq)
            if data is not None:
                out.append((self._log.keys.shard(seq), len(data)))
        return out

    def sync(self) -> None:
        """Return once everything visible now survives a power loss, whatever the session's durability.

        Raises NotFound, Deleted, Corrupt, Unavailable, OutcomeUnknown.
        """
        make_durable(self._log)

    # -------------------------------------------------------------- maintenance

    def compact(self, *, on_progress: Progress | None = None) -> CompactReport:
        """Merge the shards into segments now. Raises NotFound, Corrupt, Unavailable."""
        return compact(self._log, on_progress=on_progress)

    def verify(self) -> list[Finding]:
        """Read everything and return what is damaged or odd; writers may go on meanwhile."""
        return verify_session(self._log)

    def repair(self) -> list[Finding]:
        """Repair what can be; run it while nobody appends. See `shardstore.repair` for what it may do."""
        return repair_session(self._log)

    def archive(self) -> None:
        """Flag the session as archived: listings leave it out, everything else goes on."""
        self._writer.mark(archived=True)

    def unarchive(self) -> None:
        """Take the archive flag back."""
        self._writer.mark(archived=False)

    def delete(self) -> None:
        """Delete the session and its bytes for good; its id answers Deleted from now on and is never used again.

        Repeating it after a crash goes on where it stopped. It needs room for one manifest: on a disk without a single
        free block it is Unavailable, and nothing changes.
        """
        self._writer.delete()
        with self._log.backend.exclusive(self._log.keys.folder) as held:
            if held:
                sweep(self._log)


def _check_range(first: int, last: int | None) -> None:
    if not 1 <= first <= SEQ_MAX or (last is not None and last < 0):
        raise InvalidRequest(describe("seqs begin at 1", first=first, last=last))
