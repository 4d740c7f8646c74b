"""Fuzz targets over bytes: what decodes a single object must answer with its value or a typed error, nothing else.

Rule: a target takes any bytes at all and raises only if a promise is broken: another exception than the typed ones, a
value that is not what the bytes say, more memory than the input warrants, more steps than the input warrants.
Strategy: checksums keep a blind fuzzer out, so each target also closes what it was given with a right checksum and
tries again. The same targets serve hypothesis in the ordinary test run and a coverage-guided fuzzer (`fuzz`).
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from shardstore import Corrupt, InvalidRequest, UnsupportedFormat
from shardstore.layout import (
    parse_segment_name,
    parse_shard_name,
    quote_id,
    segment_name,
    shard_name,
    unquote_id,
)
from shardstore.manifest import Manifest, SegmentRef, decode_manifest, encode_manifest
from shardstore.record import (
    KINDS,
    control_shard,
    decode_header,
    decode_line,
    decode_payloads,
    encode_header,
    open_shard,
    record_of,
    split_lines,
)
from shardstore.segment import (
    INDEX_ENTRIES,
    KEY_PAIRS,
    SegmentIndex,
    check_trailer,
    decode_index_page,
    decode_key_page,
    decode_trailer,
    index_page_range,
    kind_of,
    span,
)

__all__ = [
    "INTERESTING",
    "PURE",
    "Broken",
    "Choices",
    "bounded",
    "edited",
    "sealed_line",
    "sealed_page",
    "sealed_shard",
]

SEAL_BYTES = 21
EDITS_MAX = 6  # edits of one object
STEPS_MAX = 20_000  # system calls in one example; a whole example of an undamaged store takes some 900; and one a byte
CPU_SECONDS_MAX = 20  # ends a loop that makes no system call; an example takes some hundredths
ADDRESS_BYTES_MAX = 256 << 20  # what one example may map on top of what the process has
MEMORY_BYTES = 8 << 20  # what reading takes however small the store is: blocks, pages, the interpreter's own
MEMORY_FACTOR = 100  # bytes of memory a byte of input warrants: an empty JSON object of 3 bytes takes 64, and a slot
INTERESTING = (
    *(0, 1, 2, 3, 127, 128, 129, 255, 256, 4096, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**53, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -(2**63)),
)  # fmt: skip


class Broken(BaseException):
    """A promise was broken; no handler of the engine can swallow it."""


# ------------------------------------------------------------------ bounds


@contextmanager
def bounded(size_bytes: int, *, memory: bool = False) -> Iterator[None]:
    """Raise Broken for more system calls, processor time or (with `memory`) memory than an input may cost."""
    with _counted_calls(STEPS_MAX + size_bytes), _processor_time(), _address_space():
        if not memory:
            yield
            return
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak > MEMORY_BYTES + MEMORY_FACTOR * size_bytes:
            raise Broken(f"{peak} bytes of memory for {size_bytes} bytes of input")


@contextmanager
def _counted_calls(calls_max: int) -> Iterator[None]:
    left = calls_max

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Broken(f"more than {calls_max} system calls")
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat", "pread", "link"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


@contextmanager
def _processor_time() -> Iterator[None]:
    def expired(*_: object) -> None:
        raise Broken(f"more than {CPU_SECONDS_MAX} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _address_space() -> Iterator[None]:
    """Let a huge allocation fail with MemoryError at once, and not take the machine down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_BYTES_MAX
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ------------------------------------------------------------------ bytes into choices


class Choices:
    """A fuzzer's bytes as a row of choices; where they run out every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        piece = self._data[self._at : self._at + length]
        self._at += length
        return piece

    def number(self, limit: int) -> int:
        """Return a number below `limit`."""
        width = max(1, (limit - 1).bit_length() + 7 >> 3)
        return int.from_bytes(self.take(width), "little") % limit

    def integer(self) -> int:
        """Return a whole number, most often one at the edge of something."""
        pick = self.number(len(INTERESTING) + 4)
        return INTERESTING[pick] if pick < len(INTERESTING) else int.from_bytes(self.take(8), "little")

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))


def edited(data: bytes, choices: Choices) -> bytes:
    """Return `data` after a few edits: flipped, overwritten, cut, extended, doubled."""
    out = bytearray(data)
    for _ in range(choices.number(EDITS_MAX) + 1):
        at = choices.number(len(out) + 1)
        match choices.number(7):
            case 0 if at < len(out):
                out[at] ^= 1 << choices.number(8)
            case 1 if at < len(out):
                out[at] = choices.number(256)
            case 2:
                out[at:at] = choices.take(choices.number(32))
            case 3:
                del out[at : at + choices.number(64)]
            case 4:
                del out[at:]
            case 5:
                out[at:at] = out[at : at + choices.number(256)]
            case _:
                number = str(choices.integer()).encode()
                out[at : at + len(number)] = number
    return bytes(out)


# ------------------------------------------------------------------ right checksums


def sealed_line(data: bytes) -> bytes:
    """Close a line anew: with the checksum of what stands before the place of its own."""
    body = data[:-SEAL_BYTES]
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def sealed_shard(data: bytes) -> bytes:
    """Close the header line of a shard anew, over the payload that follows it."""
    line, _, payload = data.partition(b"\n")
    body = line[: 1 - SEAL_BYTES]
    crc32 = zlib.crc32(zlib.crc32(payload).to_bytes(4, "little"), zlib.crc32(body))
    return body + b',"crc32":"%08x"}\n' % crc32 + payload


def sealed_page(body: bytes, number: int = 0) -> bytes:
    """Close a page of a segment, or its trailer."""
    return body + struct.pack("<I", zlib.crc32(body, number))


# ------------------------------------------------------------------ one object


def shard(data: bytes) -> None:
    """A shard is its header and its payload, or Corrupt."""
    for candidate in (data, sealed_shard(data)):
        with suppress(Corrupt, UnsupportedFormat):
            header, payload, length, crc32 = open_shard(candidate, what="fuzz")
            assert candidate[length:] == payload
            assert (header.length, crc32) == (len(payload), zlib.crc32(payload))
            assert decode_header(candidate[:length], what="fuzz") == header
            assert header.kind in KINDS
            assert open_shard(encode_header(header, payload) + payload, what="fuzz")[:2] == (header, payload)
            record_of(1, header, payload)
    with suppress(Corrupt, UnsupportedFormat):
        decode_header(data, what="fuzz")


def manifest(data: bytes) -> None:
    """A manifest is a value that can be written again, whose segments cover 1..W, or Corrupt."""
    for candidate in (data, sealed_line(data)):
        with suppress(Corrupt, UnsupportedFormat):
            value = decode_manifest(candidate, what="fuzz")
            assert decode_manifest(encode_manifest(value), what="fuzz") == value
            reached = 0
            for segment in value.segments:
                assert segment.first == reached + 1 <= segment.last
                assert 0 <= segment.data < segment.size
                reached = segment.last
                name = parse_segment_name(segment_name(segment))
                if reached < 2**63:
                    assert name == (segment.first, segment.last, segment.base, segment.nonce)
            assert value.state == "deleted" or value.watermark == reached


def _segment_of(choices: Choices) -> SegmentRef:
    count = choices.number(3 * INDEX_ENTRIES) + 1
    first = choices.integer() % 2**62 + 1
    keys = choices.number(3 * KEY_PAIRS) + 1
    data = abs(choices.integer())
    return SegmentRef(first, first + count - 1, 0, "0" * 32, data, keys, data + 10**6)


def index_page(data: bytes) -> None:
    """An index page is ranges that lie in the segment's data one after another, or Corrupt."""
    choices = Choices(data)
    segment = _segment_of(choices)
    number = choices.number((segment.last - segment.first) // INDEX_ENTRIES + 1)
    page = choices.rest()
    length = max(index_page_range(segment, number)[1] - 4, 0)
    fitting = (page * (length // max(len(page), 1) + 1))[:length]
    for candidate in (page, sealed_page(page, number), sealed_page(fitting, number)):
        with suppress(Corrupt):
            entries = decode_index_page(segment, number, candidate, what="fuzz")
            position = entries[0][0]
            for entry in entries:
                assert span(entry)[0] == position
                position += span(entry)[1]
                with suppress(Corrupt):
                    assert kind_of(entry[4]) in KINDS
            assert position <= segment.data


def key_page(data: bytes) -> None:
    """A key page is pairs, as many as the segment says, or Corrupt."""
    choices = Choices(data)
    segment = _segment_of(choices)
    number = choices.number((segment.keys - 1) // KEY_PAIRS + 1)
    page = choices.rest()
    for candidate in (page, sealed_page(page, number)):
        with suppress(Corrupt):
            pairs = decode_key_page(segment, number, candidate, what="fuzz")
            assert len(pairs) == (len(candidate) - 4) // 16


def trailer(data: bytes) -> None:
    """A trailer is four numbers, and belongs to the very segment that has them, or Corrupt."""
    for candidate in (data, sealed_page(data), sealed_page(b"shardseg\x01\0\0\0" + data[:32].ljust(32, b"\0"))):
        with suppress(Corrupt, UnsupportedFormat):
            first, count, length, keys = decode_trailer(candidate, what="fuzz")
            assert min(first, count, length, keys) >= 0
            own = SegmentRef(first, first + count - 1, 0, "", length, keys, 0)
            check_trailer(own, candidate, what="fuzz")
            other = SegmentRef(first, first + count, 0, "", length, keys, 0)
            with pytest.raises(Corrupt):
                check_trailer(other, candidate, what="fuzz")


def names(data: bytes) -> None:
    """A file name parses to what builds that very name, or to None."""
    for name in (os.fsdecode(data), data.decode("utf-8", "replace"), data.decode("latin-1")):
        seq = parse_shard_name(name)
        assert seq is None or shard_name(seq) == name
        parsed = parse_segment_name(name)
        if parsed is not None:
            built = segment_name(SegmentRef(*parsed, 0, 0, 0))
            assert parse_segment_name(built) == parsed
        session_id = unquote_id(name)
        assert session_id is None or quote_id(session_id) == name
        with suppress(InvalidRequest):
            assert unquote_id(quote_id(name)) == name


def lines(data: bytes) -> None:
    """Any payload splits into lines that join to it; each is an entry, or InvalidRequest, or itself with `raw`."""
    pieces = split_lines(data)
    assert b"".join(pieces) == data
    for piece in pieces:
        decode_line(piece, 1, "raw")
        with suppress(InvalidRequest):
            decode_line(piece, 1)
    decoded = decode_payloads(pieces, single=False)
    assert decoded is None or len(decoded) <= len(pieces)


# ------------------------------------------------------------------ seeds


def _seed_shard() -> bytes:
    return control_shard("lost", "0" * 32, 1_700_000_000_000)


def _seed_segment() -> tuple[SegmentRef, list[bytes]]:
    index = SegmentIndex(1)
    for _ in range(130):
        index.add(*open_shard(_seed_shard(), what="seed"))
    index.add_pair(7, 1)
    return index.reference(1, "0" * 32), list(index.footer())


def _seed_manifest(*segments: SegmentRef) -> bytes:
    watermark = segments[-1].last if segments else 0
    return encode_manifest(Manifest(1, 3, "1" * 32, "2" * 32, 1, "sync", "open", False, watermark, segments))


def _seeds_of_shards() -> list[bytes]:
    newer = b'{"shardstore":2,"kind":"turn"'.ljust(60) + b"\npayload"
    return [_seed_shard(), _seed_shard().replace(b'"length":0', b'"length":8') + b'{"a":1}\n', newer]


def _seeds_of_manifests() -> list[bytes]:
    segment = _seed_segment()[0]
    return [_seed_manifest(), _seed_manifest(segment), _seed_manifest(segment).replace(b"open", b"deleted")]


def _seeds_of_names() -> list[bytes]:
    quoted = quote_id("telegram:42/Ä").encode()
    return [shard_name(17).encode(), segment_name(_seed_segment()[0]).encode(), quoted, b"%2Ehidden"]


def _seeds_of_lines() -> list[bytes]:
    return [b'{"a":[1,2.5,null,"\\ud800"]}\n', b"NaN\r\n\xef\xbb\xbf{}\n", b"[" * 2_000 + b"\n", b"1" * 5_000]


PURE: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "shard": (shard, _seeds_of_shards),
    "manifest": (manifest, _seeds_of_manifests),
    "index_page": (index_page, lambda: [bytes(20) + page for page in _seed_segment()[1]]),
    "key_page": (key_page, lambda: [bytes(20) + page for page in _seed_segment()[1]]),
    "trailer": (trailer, lambda: [_seed_segment()[1][-1], _seed_segment()[1][-1][:-4]]),
    "names": (names, _seeds_of_names),
    "lines": (lines, _seeds_of_lines),
}
