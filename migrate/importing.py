"""Importing: each file a session, each line a record, and nothing is called imported before it was read back.

Rule: the store's bytes decide. A file counts as imported once the session's view, read back from the store, is the file
byte for byte, or has the SHA-256 that it had while it was read; only then the catalog says so. A run that was killed
anywhere is simply run again: what lies in the store already is compared with its file and taken over, so nothing comes
twice.
What became of a file that is known: unchanged, grown (its new lines are appended), moved (the same file under another
name), or rewritten: then the older session stays as it is, and the file begins a new one, `<id>~2`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import msgspec

import shardstore

from .catalog import Catalog, Entry, path_of, records_of, text_of
from .damage import Inspector
from .finding import fitted
from .labelling import WORTH_BYTES, Facts, labelled_aside, labelled_here
from .lines import SourceFile, holds_lines, is_begun_by
from .mirroring import Rewritten, append_lines, caught_up, extends
from .sources import Found, format_of

__all__ = ["IDS_MAX", "Importer", "Outcome"]

IDS_MAX = 1000  # sessions that one path may have begun
INODE_ENTRIES_MAX = 8  # that a file is compared with: file systems use the inodes of dead files again
CATALOG_BATCH = 128
COMPARED_BYTES = 1 << 20  # from here on comparing bytes is faster than hashing them

Status = Literal["imported", "unchanged", "grown", "moved", "rewritten", "failed"]
Advance = Callable[[int], None]
Inodes = Mapping[tuple[int, int], Sequence[Entry]]  # the entries of each inode, the likeliest first


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: `bytes_new` of it are in the store now that were not before.

    An `error` of one that has not failed is what hindered making a session beside its own; it is imported all the same.
    """

    path: str
    status: Status
    bytes_new: int = 0
    lines_new: int = 0
    entry: Entry | None = None
    error: Exception | None = None


class _Reading:
    """One file on its way into a new session."""

    def __init__(self, found: Found, session: str, advance: Advance, *, unfinished: bool, aside: bool) -> None:
        self.found = found
        self.session = session
        self.entry: Entry | None = None
        self.inode: tuple[int, int] | None = None  # that the file had when no entry was found to be its own
        self._advance = advance
        self._unfinished = unfinished
        self._aside = aside
        self._facts: Facts = ("", {})

    def records(self) -> Iterator[shardstore.NewRecord]:
        """Yield the file's lines as records. Raises OSError, also for a file that was rewritten meanwhile."""
        found = self.found
        record = shardstore.NewRecord
        aside = self._aside and os.stat(found.path).st_size >= WORTH_BYTES
        with SourceFile(found.path, aside=aside) as source:
            if self.inode not in (None, (source.status.st_dev, source.status.st_ino)):
                raise FileNotFoundError(errno.ENOENT, "another file has this name by now; run again", found.path)
            labelled = labelled_aside if aside else labelled_here
            at_ms = source.at_ms
            batches = labelled(found, at_ms, source, unfinished=self._unfinished, tell=self._tell)
            with closing(batches):
                for lines, (pairs, codes, times) in batches:
                    for line, code, at_ms in zip(lines, codes, times, strict=True):
                        kind, lane = pairs[code]
                        yield record(payload=line, kind=kind, source=lane, at_ms=at_ms)
                    self._advance(sum(map(len, lines)))
            if source.has_changed():
                raise OSError(f"the file was rewritten while it was read; run again: {found.path}")
            self.entry = entry_of(found, self.session, source, *self._facts)

    def _tell(self, facts: Facts) -> None:
        self._facts = facts


def entry_of(found: Found, session: str, source: SourceFile, lane: str, damage: dict[str, int]) -> Entry:
    """Return the entry of a file of which `source` has been read from its beginning."""
    status = source.status
    return Entry(
        path=_text(found),
        name=text_of(found.name),
        format=found.format,
        agent=found.agent,
        session=session,
        lane=lane,
        size=source.size,
        lines=source.lines,
        sha256=source.sha256(),
        mtime_ns=status.st_mtime_ns,
        mode=stat.S_IMODE(status.st_mode),
        dev=status.st_dev,
        ino=status.st_ino,
        ranges=[(1, source.lines)] if source.lines else [],
        damage=damage,
    )


def _text(found: Found) -> str:
    return text_of(os.path.abspath(found.path))


class Importer:
    """Brings files into a store; `advance` is told of bytes as they are read.

    Without `unfinished` a last line that has no newline yet is left for later: an agent may be writing it.
    """

    def __init__(
        self,
        store: shardstore.Store,
        catalog: Catalog,
        *,
        unfinished: bool = True,
        advance: Advance = lambda _bytes: None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._unfinished = unfinished
        self._advance = advance
        self._aside = False
        self._taken: set[str] = set()
        self._inodes: dict[str, tuple[int, int]] = {}
        self._doubted: set[str] = set()

    def doubt(self, path: str) -> None:
        """Compare that file the next time, even if its size and time are those that are known."""
        self._doubted.add(path)

    def run(self, files: Sequence[Found]) -> Iterator[Outcome]:
        """Import what is new in `files`; yield what became of each, once that is proved and durable.

        What one file meets is its own outcome's `error`, and the others go on. Raises what concerns the store as a
        whole (Unavailable, Corrupt).
        """
        new: list[Found] = []
        yield from self.known(files, new)
        yield from self.first(new)

    # -------------------------------------------------------------- files that are known

    def known(self, files: Sequence[Found], new: list[Found]) -> Iterator[Outcome]:
        """Take what is new of the files that have a session, also under another name; put the others into `new`."""
        self._catalog.refresh()
        current = self._catalog.current()
        inodes: dict[tuple[int, int], list[Entry]] = defaultdict(list)
        replaced = [entry for entry in self._catalog.entries() if entry.state == "replaced"]
        for entry in reversed([*replaced, *current.values()]):
            inodes[entry.dev, entry.ino].append(entry)
        for found in sorted(files, key=lambda found: _text(found) in current):  # those that were moved come first
            try:
                outcome = self._of_known(found, current, inodes)
            except (OSError, shardstore.ShardstoreError) as error:
                outcome = Outcome(found.path, "failed", error=error)
            if outcome is None:
                new.append(found)
            else:
                self._inodes.pop(found.path, None)
                yield outcome

    def _of_known(self, found: Found, current: dict[str, Entry], inodes: Inodes) -> Outcome | None:
        """Take what is new of a file that is known by this name, or was by another; None if it is neither."""
        own = current.get(_text(found))
        for entry in self._candidates(found, own, inodes):
            outcome = self._again(found, entry, instead_of=None if entry is own else own)
            if outcome is not None:
                if entry is not own and current.get(entry.path) is entry:  # another file may have its name by now
                    del current[entry.path]
                return outcome
        if own is not None:
            self._catalog.add([self._replaced(own)])
        return None

    def _replaced(self, entry: Entry) -> Entry:
        return msgspec.structs.replace(caught_up(self._store, entry), state="replaced")

    def _candidates(self, found: Found, own: Entry | None, inodes: Inodes) -> Iterator[Entry]:
        """Yield the entries that a file may go on with: its inode tells more than its name."""
        status = os.stat(found.path)
        inode = self._inodes[found.path] = (status.st_dev, status.st_ino)
        stays = own is not None and (own.dev, own.ino) == inode
        if own is not None and stays:
            yield own
        for entry in islice(inodes.get(inode, ()), INODE_ENTRIES_MAX):
            if entry is not own and self._has_moved(entry, _text(found), stays=stays):
                yield entry
        if own is not None and not stays:
            yield own

    def _has_moved(self, entry: Entry, path: str, *, stays: bool) -> bool:
        """Say whether the file of an entry may be that which has its inode now; an empty one tells nothing."""
        if not entry.size and not caught_up(self._store, entry).size:
            return False
        if entry.path == path:
            return not stays  # it is back
        try:
            other = os.stat(path_of(entry.path))
        except OSError:
            return True
        return (other.st_dev, other.st_ino) != (entry.dev, entry.ino)

    def _again(self, found: Found, entry: Entry, *, instead_of: Entry | None = None) -> Outcome | None:
        """Take what is new of a known file; None if it is another file by now."""
        status = os.stat(found.path)
        path = _text(found)
        same = (entry.size, entry.mtime_ns, entry.dev, entry.ino, entry.path)
        now = (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, path)
        if same == now and found.path not in self._doubted and entry.state == "imported":
            return Outcome(found.path, "unchanged", entry=entry)
        whole = caught_up(self._store, entry)
        with SourceFile(found.path) as source:
            self._doubted.discard(found.path)
            if not extends(source, whole):
                return None
            inode = (source.status.st_dev, source.status.st_ino)
            if inode != (entry.dev, entry.ino) and source.status.st_size > whole.size:
                # first, for after a kill and a renaming only the inode tells whose the lines are
                self._catalog.add([msgspec.structs.replace(whole, dev=inode[0], ino=inode[1])])
            try:
                grown = append_lines(self._store, whole, source, unfinished=self._unfinished, advance=self._advance)
            except Rewritten:
                return None
        grown = msgspec.structs.replace(grown, path=path, name=text_of(found.name), state="imported")
        before = [] if instead_of is None else [self._replaced(instead_of)]
        if grown != entry:
            self._catalog.add([*before, grown])
        size, lines = grown.size - entry.size, grown.lines - entry.lines
        moved: Status = "moved" if entry.path != path else "unchanged"
        return Outcome(found.path, "grown" if size else moved, size, lines, grown)

    # -------------------------------------------------------------- files that are new

    def first(self, files: Iterable[Found], *, aside: bool = False) -> Iterator[Outcome]:
        """Import files that have no session yet, in batches. With `aside` another process helps with large ones."""
        self._aside = aside
        files = list(files)
        self._catalog.refresh()
        known = self._catalog.current()  # what another run has imported meanwhile is taken over
        self._taken = self._catalog.taken() - {known[path].session for path in map(_text, files) if path in known}
        waiting: list[_Reading] = []
        for found in files:
            try:
                waiting.append(self._reading(found))
            except shardstore.Unavailable as error:
                yield Outcome(found.path, "failed", error=error)
        for _ in range(IDS_MAX):
            again: list[_Reading] = []
            entries: list[Entry] = []
            outcomes: list[Outcome] = []
            readings = {reading.session: reading for reading in waiting}
            for result in self._store.import_sessions((id_, of.records()) for id_, of in readings.items()):
                reading = readings[result.session]
                outcome = self._proved(reading, result, again)
                if outcome is not None:
                    outcomes.append(outcome)
                    entries += [outcome.entry] if outcome.entry is not None else []
                if len(outcomes) >= CATALOG_BATCH:
                    yield from self._told(entries, outcomes)
            yield from self._told(entries, outcomes)
            if not again:
                return
            waiting = again
        raise shardstore.Unavailable(f"no free session id was found in {IDS_MAX} rounds")

    def _reading(self, found: Found) -> _Reading:
        id_ = self._free(found.session)
        reading = _Reading(found, id_, self._advance, unfinished=self._unfinished, aside=self._aside)
        reading.inode = self._inodes.get(found.path)
        return reading

    def _told(self, entries: list[Entry], outcomes: list[Outcome]) -> Iterator[Outcome]:
        """Tell the catalog, then the caller."""
        self._catalog.add(entries)
        yield from outcomes
        entries.clear()
        outcomes.clear()

    def _proved(self, reading: _Reading, result: shardstore.Imported, again: list[_Reading]) -> Outcome | None:
        """Read a session back; None if the id is taken, and the file tries another."""
        found, error = reading.found, result.error
        if isinstance(error, (shardstore.Conflict, shardstore.Deleted)):
            try:
                return self._adopted(reading, again)
            except (OSError, shardstore.ShardstoreError) as fault:
                return Outcome(found.path, "failed", error=fault)
        entry = reading.entry
        if error is None and entry is not None:
            try:
                whole = self._reads_back(entry)
            except shardstore.ShardstoreError as fault:
                return Outcome(found.path, "failed", error=fault)
            if whole:
                return Outcome(found.path, "imported", entry.size, entry.lines, entry)
            error = shardstore.Corrupt(f"the session does not read back as the file session={reading.session!r}")
        return Outcome(found.path, "failed", error=error or shardstore.Unavailable("nothing was read"))

    def _reads_back(self, entry: Entry) -> bool:
        """Say whether the session holds the file: by its bytes where that is faster, which it is for long ones."""
        view = self._store.session(entry.session).iter_jsonl
        if entry.size >= COMPARED_BYTES:
            with suppress(OSError):
                if is_begun_by(path_of(entry.path), view(), entry.size):
                    return True
        elif hashlib.sha256(b"".join(view())).hexdigest() == entry.sha256:
            return True
        digest = hashlib.sha256()  # perhaps the file has changed, or others have appended to the session by now
        for _, payload in records_of(self._store, entry):
            digest.update(payload)
        return digest.hexdigest() == entry.sha256

    def _adopted(self, reading: _Reading, again: list[_Reading]) -> Outcome | None:
        """Take over the session that an earlier, killed run left; otherwise try the next id."""
        self._catalog.refresh()
        path = _text(reading.found)
        id_ = reading.session
        others = any((one.session == id_ and one.path != path) or id_ in one.derived for one in self._catalog.entries())
        known = self._catalog.current().get(path)
        if known is not None and known.session == id_ and (outcome := self._again(reading.found, known)) is not None:
            return outcome  # of another run
        entry = None if others else self._left_by_a_run(reading)
        if entry is None:
            again.append(self._reading(reading.found))
            return None
        self._catalog.add([entry])
        outcome = self._again(reading.found, entry)
        if outcome is None or outcome.entry is None:
            self._catalog.add([msgspec.structs.replace(entry, state="replaced")])
            again.append(self._reading(reading.found))
            return None
        return Outcome(reading.found.path, "imported", outcome.entry.size, outcome.entry.lines, outcome.entry)

    def _left_by_a_run(self, reading: _Reading) -> Entry | None:
        """Return the entry of a session without one, if its records are the file's first lines, else None."""
        session = self._store.session(reading.session, create=False)
        labeller = format_of(reading.found.format).labeller(reading.found.lane)
        inspector = Inspector()
        try:
            born = session.info().watermark
            records = session.records()
            with SourceFile(reading.found.path) as source:
                lines = (line for batch in source.batches() for line in batch)
                size = count = 0
                digest = hashlib.sha256()
                for record in records:
                    line = next(lines, None)
                    if line is None and size and record.seq > born:
                        break  # what follows was appended since
                    if line != record.payload:
                        return None
                    labeller.label(line)
                    inspector.line(line)
                    digest.update(line)
                    size += len(line)
                    count += 1
                damage = inspector.finish() if holds_lines(reading.found.name) else {}
                entry = entry_of(reading.found, reading.session, source, labeller.lane, damage)
        except (shardstore.NotFound, shardstore.Deleted):
            return None
        ranges = [(1, count)] if count else []
        return msgspec.structs.replace(
            entry, size=size, lines=count, sha256=digest.hexdigest(), ranges=ranges, mtime_ns=0
        )

    def _free(self, proposal: str) -> str:
        """Return an id that no other file has; the store may still have it."""
        for number in range(1, IDS_MAX):
            id_ = fitted(proposal, "" if number == 1 else f"~{number}")
            if id_ not in self._taken:
                self._taken.add(id_)
                return id_
        raise shardstore.Unavailable(f"a file has begun {IDS_MAX} sessions; choose another store path={proposal!r}")
