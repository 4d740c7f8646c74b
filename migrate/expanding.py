"""Expanding: the lines in a compressed transcript, as a session beside the file's own.

Rule: the file's own session is the file, byte for byte. What is read here is that session, not the file, so both always
agree; the lines are labelled as those of the plain file would be, enter by a birth of many, and count as expanded once
they were read back. The catalog says of how many of the file's bytes that was done: a repeated run does what is left.
Strategy: after all other files of a run, so that a plain file has the id that both of them would get.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import msgspec

import shardstore

from .catalog import Catalog, Entry, records_of
from .damage import Inspector
from .finding import HEAD_BYTES_MAX, fitted
from .importing import IDS_MAX, Outcome
from .sources import ANY, FORMATS, MAIN, Format, Found, format_of
from .sources.openclaw import OPENCLAW, first_lane
from .unpacking import Unpacked, can_unpack, is_packed

__all__ = ["Expansion", "expand", "is_due"]

EXPANDED_BYTES_MIN = 256 << 20  # that any file may expand to
EXPANDED_TIMES_MAX = 1000  # its size: a larger one may expand to so much
TOLD_AT_ONCE = 128
_ENDS = re.compile(r"(?:\.jsonl)?\.zst(?:~[0-9]+)?$")


def is_due(outcome: Outcome) -> bool:
    """Say whether a file is compressed and imported, and not all of it was expanded."""
    entry = outcome.entry
    return entry is not None and is_packed(outcome.path) and entry.expanded != entry.size


class Expansion:
    """The lines of one compressed file on their way into a session."""

    def __init__(self, store: shardstore.Store, found: Found, outcome: Outcome, entry: Entry) -> None:
        self.outcome = outcome
        self.session = ""
        self.is_nothing = False
        self._store = store
        self._found = found
        self._entry = entry
        self._facts: tuple[int, str, dict[str, int]] = (0, "", {})  # lines, their SHA-256, their damage

    @property
    def proposal(self) -> str:
        """The id that the plain file would get."""
        return _ENDS.sub("", self._found.session)

    def records(self) -> Iterator[shardstore.NewRecord]:
        """Yield the lines as records. Raises Corrupt if not one can be read and the stream is damaged."""
        entry = self._entry
        payloads = (payload for _, payload in records_of(self._store, entry))
        stream = Unpacked(payloads, bytes_max=max(EXPANDED_BYTES_MIN, entry.size * EXPANDED_TIMES_MAX))
        batches = stream.lines()
        first, head = [], b""
        for batch in batches:
            first.append(batch)
            head += b"".join(batch)[:HEAD_BYTES_MAX]
            if len(head) >= HEAD_BYTES_MAX:
                break
        form, lane = self._format(head[:HEAD_BYTES_MAX])
        labeller, inspector, digest = form.labeller(lane), Inspector(), hashlib.sha256()
        at_ms = max(entry.mtime_ns, 0) // 1_000_000
        count = 0
        for batch in chain(_drained(first), batches):
            for line in batch:
                kind, source, own_ms = labeller.label(line)
                inspector.line(line)
                digest.update(line)
                at_ms = at_ms if own_ms is None else own_ms
                count += 1
                yield shardstore.NewRecord(payload=line, kind=kind, source=source, at_ms=at_ms)
        damage = inspector.finish() if count or not stream.torn else {}
        self._facts = (count, digest.hexdigest(), {**damage, **({"torn-stream": 1} if stream.torn else {})})
        self.is_nothing = bool(stream.torn) and not count
        if self.is_nothing:
            raise shardstore.Corrupt(f"no line can be read: {stream.torn}")

    def _format(self, head: bytes) -> tuple[Format, str]:
        """Return the format of the lines, and the lane that the plain file would have."""
        form = format_of(self._entry.format)
        if form is ANY:
            form = next(known for known in FORMATS if known.recognises(head))
        return form, self._found.inner or (first_lane(head) if form is OPENCLAW else MAIN)

    def reads_back(self) -> bool:
        """Say whether the session's view is the lines, and nothing else but what follows them."""
        count, sha256, _ = self._facts
        digest = hashlib.sha256()
        session = self._store.session(self.session, create=False)
        for piece in session.iter_jsonl(1, count) if count else ():
            digest.update(piece)
        return digest.hexdigest() == sha256 and session.head() >= count

    def holds_all(self) -> bool:
        """Say whether the session begins with all the lines: an earlier run may have left it."""
        theirs = self._there()
        for number, record in enumerate(self.records(), 1):
            if next(theirs, None) != (number, record.payload):
                return False
        return bool(self._facts[0]) or next(theirs, None) is None  # any session begins with nothing

    def _there(self) -> Iterator[tuple[int, bytes]]:
        """Yield what can be read of the session: (-1, b"") is what can't."""
        try:
            for record in self._store.session(self.session, create=False).records():
                yield record.seq, record.payload
        except (shardstore.NotFound, shardstore.Deleted, shardstore.Corrupt):
            yield -1, b""

    def entry(self) -> Entry:
        """Return the file's entry with what was expanded."""
        entry = self._entry
        count, _, damage = self._facts
        derived = {} if self.is_nothing else {self.session: [(1, count)] if count else []}
        return msgspec.structs.replace(entry, derived={**entry.derived, **derived}, expanded=entry.size, damage=damage)


def _drained(batches: list[list[bytes]]) -> Iterator[list[bytes]]:
    while batches:  # a long line is in memory once
        yield batches.pop(0)


def expand(
    store: shardstore.Store, catalog: Catalog, files: Sequence[Found], outcomes: Iterable[Outcome]
) -> Iterator[Outcome]:
    """Expand what is compressed in the files that `outcomes` tell of; yield these again, with what was made.

    What hinders one file is its outcome's `error`, and the others go on; without the library nothing is done.
    """
    found = {one.path: one for one in files}
    waiting = []
    catalog.refresh()
    for outcome in outcomes:
        if outcome.entry is not None:  # another run may have expanded it meanwhile
            outcome = replace(outcome, entry=catalog.latest(outcome.entry))
        if outcome.entry is not None and is_due(outcome) and can_unpack():
            waiting.append(Expansion(store, found[outcome.path], outcome, outcome.entry))
        else:
            yield outcome
    if not waiting:
        return
    catalog.refresh()
    taken = catalog.taken()
    for _ in range(IDS_MAX):
        if not waiting:
            return
        for one in waiting:
            one.session = _free(one.proposal, taken)
        again: list[Expansion] = []
        yield from _told(catalog, _round(store, waiting, again))
        waiting = again
    raise shardstore.Unavailable(f"no free session id was found in {IDS_MAX} rounds")


def _free(proposal: str, taken: set[str]) -> str:
    for number in range(1, IDS_MAX):
        id_ = fitted(proposal, "" if number == 1 else f"~{number}")
        if id_ not in taken:
            taken.add(id_)
            return id_
    raise shardstore.Unavailable(f"a file has begun {IDS_MAX} sessions session={proposal!r}")


def _round(store: shardstore.Store, waiting: list[Expansion], again: list[Expansion]) -> Iterator[Outcome]:
    """Bear sessions; those whose id is somebody else's come `again`."""
    of = {one.session: one for one in waiting}
    for result in store.import_sessions((id_, one.records()) for id_, one in of.items()):
        one = of[result.session]
        try:
            if _is_made(one, result):
                yield replace(one.outcome, entry=one.entry())
            else:
                again.append(one)
        except (OSError, shardstore.ShardstoreError) as error:
            yield replace(one.outcome, error=error)


def _is_made(one: Expansion, result: shardstore.Imported) -> bool:
    """Say whether the session is there and proved, or there is nothing to make; False if its id is taken."""
    error = result.error
    if isinstance(error, (shardstore.Conflict, shardstore.Deleted)):
        try:
            if not one.holds_all():
                return False
        except shardstore.Corrupt:
            if not one.is_nothing:
                raise
    elif error is not None and not one.is_nothing:
        raise error
    if one.is_nothing or one.reads_back():
        return True
    raise shardstore.Corrupt(f"the expanded session does not read back as the file's lines session={one.session!r}")


def _told(catalog: Catalog, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Tell the catalog of what was made, then the caller."""
    batch: list[Outcome] = []
    for outcome in outcomes:
        batch.append(outcome)
        if len(batch) >= TOLD_AT_ONCE:
            yield from _tell(catalog, batch)
            batch = []
    yield from _tell(catalog, batch)


def _tell(catalog: Catalog, batch: Sequence[Outcome]) -> Sequence[Outcome]:
    catalog.add([one.entry for one in batch if one.entry is not None and one.error is None])
    return batch
