"""Verification: read everything that a session claims to hold, and name every damage and every oddity.

Rule: it only reads, and it never cries wolf: writers and compactors may go on meanwhile, so what looks damaged is
damaged only if the manifest, looked at afterwards, still wants it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from shardstore.errors import Corrupt, NotFound, Unavailable, UnsupportedFormat, describe
from shardstore.layout import (
    DAMAGED,
    SEGMENTS,
    SEQ_MAX,
    SHARDS,
    TEMP_PREFIX,
    parse_segment_name,
    parse_shard_name,
    segment_name,
)
from shardstore.log import HOLES_MAX, LOOKS_MAX, SessionLog, Vanished, segment_of
from shardstore.manifest import Manifest, SegmentRef
from shardstore.record import LOST, Header, counts_as_turn, decode_shard, open_shard
from shardstore.segment import KEY_PAIRS, TRAILER_BYTES, TURN_FLAG, IndexEntry, check_trailer, key_hash, kind_of, span

__all__ = ["LOST_RECORD", "Finding", "verify_session", "walk_segment"]

LOST_RECORD = "lost-record"
UNREADABLE = "the disk can't read it; copy the store to another one, then repair the copy"
READ_BYTES = 8 << 20
_KNOWN = {"manifest.json", "head", SHARDS, SEGMENTS, DAMAGED}


@dataclass(frozen=True, slots=True)
class Finding:
    """One damage or note: what it is, where it lies (a path relative to the store), which seqs, what to do."""

    session: str
    what: str
    where: str
    seqs: tuple[int, int] | None
    severity: Literal["damage", "note"]
    advice: str
    repaired: bool = False


def verify_session(log: SessionLog) -> list[Finding]:
    """Return everything that is wrong or odd about a session; an empty list says that every record reads back.

    What was verified stays so when it is merged meanwhile, for records never change. Raises NotFound if there is no
    folder of that name, Unavailable.
    """
    try:
        manifest = log.glance()[1]
    except NotFound:
        findings = _without_manifest(log)
        with suppress(Corrupt, UnsupportedFormat):
            if not log.is_born():
                return findings
        return verify_session(log)  # born meanwhile: what was found is what a birth leaves
    except UnsupportedFormat as error:
        return [_damage(log, "newer-format", log.keys.manifest, None, f"upgrade shardstore ({error})")]
    except Corrupt as error:
        return [_damaged_manifest(log, error)]
    findings = []
    position = 1
    hint = log.backend.hint(log.keys.folder)
    for _ in range(LOOKS_MAX):
        try:
            while position <= manifest.watermark and manifest.segments:
                segment = segment_of(manifest, position)
                check = _SegmentCheck(log, segment, position)
                try:
                    check.run()
                finally:
                    findings += check.findings
                    position = check.position
            if manifest.state != "deleted":
                findings += _shards(log, manifest) + _short_log(log, hint)
            return findings + _leftovers(log, log.glance()[1])
        except Vanished:
            manifest = log.glance()[1]
        except Corrupt as error:
            return [*findings, _damage(log, "foreign-object", log.keys.folder, None, str(error))]
    raise Unavailable(describe("segments kept vanishing during verification", session=log.id))


def _damage(log: SessionLog, what: str, where: str, seqs: tuple[int, int] | None, advice: str) -> Finding:
    return Finding(log.id, what, where, seqs, "damage", advice)


def _note(log: SessionLog, what: str, where: str, advice: str) -> Finding:
    return Finding(log.id, what, where, None, "note", advice)


def _add_lost(findings: list[Finding], log: SessionLog, where: str, seq: int) -> None:
    """Note a record that is marked lost, in the finding of the one before it if that is lost too."""
    last = findings[-1] if findings else None
    if last is not None and last.what == LOST_RECORD and last.seqs is not None and last.seqs[1] == seq - 1:
        findings[-1] = replace(last, seqs=(last.seqs[0], seq))
        return
    advice = "marked lost by a repair, or after a power loss; a backup or damaged/ may hold it"
    findings.append(Finding(log.id, LOST_RECORD, where, (seq, seq), "note", advice))


def _is_lost(header: Header) -> bool:
    return header.kind == "control" and header.source == LOST


def _short_log(log: SessionLog, hint: int) -> list[Finding]:
    """Note a log that once reached further: shards removed by somebody, or by a power loss before they were durable."""
    if hint > SEQ_MAX or log.has_shard(hint) or log.glance()[1].watermark >= hint or log.listed(hint):
        return []
    advice = f"record {hint} was there once; unless a power loss took it unacknowledged, restore it from a backup"
    return [_note(log, "short-log", log.keys.shards, advice)]


def _damaged_manifest(log: SessionLog, error: Corrupt) -> Finding:
    """Tell a manifest that repair can make again from something else that lies in its place, or in its folder's."""
    try:
        log.backend.look(log.keys.manifest, None)
    except Corrupt:
        return _damage(log, "foreign-object", log.keys.manifest, None, _ADVICE["foreign-object"])
    return _damage(log, "damaged-manifest", log.keys.manifest, None, f"repair rebuilds it ({error})")


def _without_manifest(log: SessionLog) -> list[Finding]:
    if not any(True for _ in log.backend.list(log.keys.folder)):
        raise NotFound(describe("no such session", session=log.id))
    if log.is_headless():
        return [_damage(log, "missing-manifest", log.keys.manifest, None, "repair rebuilds it from what is there")]
    advice = "no session: an import that never ended, or one that lost its manifest; import it again or look yourself"
    return [_note(log, "unfinished-birth", log.keys.folder, advice)]


# ------------------------------------------------------------------ segments


class _SegmentCheck:
    """Verifies a segment from seq `position` on.

    `position` says how far it came when the segment vanished, `findings` what was found up to there.
    """

    def __init__(self, log: SessionLog, segment: SegmentRef, position: int) -> None:
        self._log = log
        self._segment = segment
        self.position = position
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Find what is wrong with the segment, or odd. Raises Vanished."""
        log, segment = self._log, self._segment
        where, seqs = log.keys.segment(segment), (self.position, segment.last)
        try:
            self._records(where)
        except Vanished:
            if segment not in log.glance()[1].segments:
                raise
            advice = "restore it from a backup; repair marks its records lost"
            self._add("missing-segment", (segment.first, segment.last), advice)
        except Unavailable as error:
            if error.errno != errno.EIO:
                raise
            self._add("unreadable-segment", seqs, UNREADABLE)
        except UnsupportedFormat as error:
            self._add("newer-format", seqs, f"upgrade shardstore ({error})")
        except Corrupt as error:
            self._add("damaged-segment", seqs, f"repair keeps what can be read ({error})")
        self.position = segment.last + 1

    def _add(self, what: str, seqs: tuple[int, int], advice: str) -> None:
        self.findings.append(_damage(self._log, what, self._log.keys.segment(self._segment), seqs, advice))

    def _records(self, where: str) -> None:
        log, segment = self._log, self._segment
        check_trailer(segment, log.segment_bytes(segment, segment.size - TRAILER_BYTES, TRAILER_BYTES), what=where)
        if log.backend.read(where, start=segment.size, length=1):
            raise Corrupt(describe("bytes were appended to a segment", what=where))
        pairs = {pair for number in range(-(-segment.keys // KEY_PAIRS)) for pair in log.key_pairs(segment, number)}
        for seq, shard, header in walk_segment(log, segment, self.position):
            if shard is None or header is None:
                self._add("damaged-record", (seq, seq), "restore it from a backup; repair marks it lost")
            elif _is_lost(header):
                _add_lost(self.findings, log, where, seq)
            elif header.key is not None and (key_hash(header.key), seq) not in pairs:
                raise Corrupt(describe("a key of a segment is not in its footer", what=where, seq=seq))
            self.position = seq + 1


def walk_segment(log: SessionLog, segment: SegmentRef, seq: int) -> Iterator[tuple[int, bytes | None, Header | None]]:
    """Yield (seq, shard bytes, header) of every record from `seq` on, None where it can't be read.

    Raises Vanished, Corrupt.
    """
    for entries in log.entries(segment, seq, segment.last):
        begin = 0
        while begin < len(entries):
            (origin, size), end = span(entries[begin]), begin + 1
            while end < len(entries) and size + span(entries[end])[1] <= READ_BYTES:
                size += span(entries[end])[1]
                end += 1
            data = log.segment_bytes(segment, origin, size)
            for entry in entries[begin:end]:
                offset, length = span(entry)
                shard = data[offset - origin : offset - origin + length]
                header = _check_record(entry, shard)
                yield seq, shard if header is not None else None, header
                seq += 1
            begin = end


def _check_record(entry: IndexEntry, shard: bytes) -> Header | None:
    """Return the header if the shard is whole and is what its index entry says."""
    try:
        header, payload, header_length, crc32 = open_shard(shard, what="")
        turn = bool(entry[4] & TURN_FLAG)
        same = kind_of(entry[4]) == header.kind and turn == counts_as_turn(header.kind, header.source)
        same = same and entry[1:4] == (len(payload), header_length, crc32)
    except (Corrupt, UnsupportedFormat):
        return None
    return header if same else None


# ------------------------------------------------------------------ shards and the rest


def _shards(log: SessionLog, manifest: Manifest) -> list[Finding]:
    """Check the shards above W; start again if they were compacted meanwhile."""
    listed, holes = log.missing(manifest.watermark)
    damages = [(what, (seq, seq)) for seq in listed if (what := _shard_damage(log, seq))]
    damages += [("missing-shard", hole) for hole in holes]
    gone = next((hole for hole in holes if hole[1] - hole[0] >= HOLES_MAX), None)
    findings: list[Finding] = []
    for what, seqs in sorted(damages, key=lambda damage: damage[1]):
        if what == "missing-shard" and log.has_shard(seqs[0]):
            continue  # a listing is of no one moment
        if log.glance()[1].watermark >= seqs[0]:
            raise Vanished(seqs)
        far = gone is not None and seqs[0] >= gone[0]
        if what == LOST_RECORD:
            if not far:
                _add_lost(findings, log, log.keys.shard(seqs[0]), seqs[0])
            continue
        tolerated = what == "torn-shard" and manifest.durability == "none"
        advice = _ADVICE.get(what, "restore it from a backup; repair marks it lost")
        if tolerated:
            advice = "an unsynced record did not survive; it reads as lost"
        if far:
            what, advice = "far-shard", "nothing acknowledged can lie behind so wide a gap; repair moves it to damaged/"
        findings.append(Finding(log.id, what, log.keys.shard(seqs[0]), seqs, "note" if tolerated else "damage", advice))
    return findings


_ADVICE = {
    "unreadable-shard": UNREADABLE,
    "foreign-object": "this, or a folder above it, is none of the store's; look what it is, move it away, then repair",
    "newer-format": "a newer shardstore wrote it: upgrade this one",
    "torn-shard": "restore it from a backup; repair marks it lost and keeps the original in damaged/",
}


def _shard_damage(log: SessionLog, seq: int) -> str:
    """Return what is wrong with the shard at `seq`, or that it marks a lost record; "" for nothing."""
    try:
        data = log.shard(seq)
    except Corrupt:
        return "foreign-object"
    except Unavailable as error:
        if error.errno != errno.EIO:
            raise
        return "unreadable-shard"
    try:
        if data is not None and _is_lost(decode_shard(data, what=log.keys.shard(seq))[0]):
            return LOST_RECORD
    except Corrupt:
        return "torn-shard"
    except UnsupportedFormat:
        return "newer-format"
    return ""


def _leftovers(log: SessionLog, manifest: Manifest) -> list[Finding]:
    keys, backend = log.keys, log.backend
    findings: list[Finding] = []
    unswept = [
        name
        for name in backend.list(keys.shards)
        if (seq := parse_shard_name(name)) is not None and seq <= manifest.watermark
    ]
    if unswept:
        advice = f"{len(unswept)} files that compaction covers; the next one sweeps them"
        findings.append(_note(log, "unswept-shard", keys.shards, advice))
    named = {segment_name(segment) for segment in manifest.segments}
    findings += [
        _note(log, "unnamed-segment", f"{keys.segments}/{name}", "the next compaction sweeps it")
        for name in backend.list(keys.segments)
        if parse_segment_name(name) is not None and name not in named
    ]
    folders = [(keys.folder, _KNOWN.__contains__), (keys.shards, parse_shard_name), (keys.segments, parse_segment_name)]
    findings += [
        _note(log, "stray-file", f"{folder}/{name}", "not the store's; left alone")
        for folder, known in folders
        for name in backend.list(folder)
        if not name.startswith(TEMP_PREFIX) and known(name) in (None, False)
    ]
    return findings
