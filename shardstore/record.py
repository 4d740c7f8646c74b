"""Records and their bytes: what one append commits, and how a shard spells it.

Rule: pure. Bytes in, values out; no files, no clock, no randomness. The only door to msgspec and orjson.

A shard is one header line of JSON and then the payload, byte for byte. The header ends with a CRC32 that covers the
rest of the header *and* the payload's CRC32, so any flipped bit and any torn tail is recognised; `tail -n +2` shows the
transcript. The same seal closes every other JSON line of the store (`seal`, `unseal`).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import msgspec
import orjson

from shardstore.errors import Corrupt, InvalidRequest, UnsupportedFormat, describe

__all__ = [
    "DELETE",
    "FORMAT",
    "HEADER_BYTES_MAX",
    "KEY_BYTES_MAX",
    "KINDS",
    "LOST",
    "SOURCE_BYTES_MAX",
    "Header",
    "Kind",
    "NewRecord",
    "Receipt",
    "Record",
    "control_shard",
    "counts_as_turn",
    "decode_header",
    "decode_line",
    "decode_payloads",
    "decode_shard",
    "encode_entries",
    "encode_header",
    "header_encoder",
    "open_header",
    "open_shard",
    "record_of",
    "seal",
    "split_lines",
    "unseal",
]

FORMAT = 1
HEADER_BYTES_MAX = 16_384
KEY_BYTES_MAX = 1_024
SOURCE_BYTES_MAX = 512
LOST = "lost"
DELETE = "delete"

Kind = Literal["turn", "event", "control"]
KINDS: tuple[Kind, ...] = ("turn", "event", "control")

_SEAL = b',"crc32":"%08x"}\n'
_SEAL_BYTES = 21
_T = TypeVar("_T")


class Header(msgspec.Struct, frozen=True, gc=False):
    """The first line of a shard. `length` counts payload bytes, `at_ms` milliseconds since 1970 UTC."""

    format: int = msgspec.field(name="shardstore")
    kind: Kind
    source: str
    at_ms: int = msgspec.field(name="at")
    base: int | None
    key: str | None
    nonce: str
    length: int


class NewRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A record on its way in by bulk import: the payload verbatim, and its own time if it has one (ms since 1970)."""

    payload: bytes
    kind: Kind = "turn"
    source: str = "main"
    at_ms: int | None = None
    key: str | None = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The answer to a committed append: the record lies at `seq` for good.

    `duplicate` says that its key had been committed before, at this seq, and that nothing was written now.
    """

    session: str
    seq: int
    nonce: str
    at_ms: int
    base: int | None
    duplicate: bool = False


class Record(msgspec.Struct, frozen=True, gc=False):
    """What one append committed, at `seq`. `payload` is exactly the bytes that were appended."""

    seq: int
    kind: Kind
    source: str
    at_ms: int
    base: int | None
    key: str | None
    nonce: str
    payload: bytes

    def lines(self) -> list[bytes]:
        """Return the payload's lines, split at LF bytes only, each with its own line ending."""
        return split_lines(self.payload)

    def entries(self, *, invalid: Literal["raise", "raw"] = "raise") -> list[Any]:
        """Return the payload's entries decoded; blank lines hold none. Integers beyond 64 bits come as floats.

        Raises InvalidRequest for a line that is no JSON, or returns it as bytes with `invalid="raw"`.
        """
        if self.payload.find(b"\n") == len(self.payload) - 1:  # one line, as almost always
            try:
                return [orjson.loads(self.payload)]
            except orjson.JSONDecodeError:
                pass  # it needs the care of `decode_line`
        return [decode_line(line, self.seq, invalid) for line in split_lines(self.payload) if line.strip()]


# ------------------------------------------------------------------ sealed JSON lines


def seal(value: object) -> bytes:
    """Encode `value` (an object with fields) as one JSON line that ends with its own CRC32."""
    body = msgspec.json.encode(value)[:-1]
    return body + _SEAL % zlib.crc32(body)


def unseal(line: bytes, of: type[_T], *, what: str) -> _T:
    """Decode a line that `seal` made. Raises Corrupt, or UnsupportedFormat if a newer version wrote it."""
    body = line[:-_SEAL_BYTES]
    if line[-_SEAL_BYTES:] != _SEAL % zlib.crc32(body) or b"\n" in body:
        raise Corrupt(describe("checksum of a sealed line does not match", what=what))
    return _decode(body + b"}", of, what)


def _decode(document: bytes, of: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(document, type=of)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unreadable(document, what, error) from error


def _unreadable(document: bytes, what: str, cause: Exception) -> Exception:
    try:
        version = msgspec.json.decode(document).get("shardstore")
    except (msgspec.DecodeError, RecursionError, AttributeError, UnicodeDecodeError):
        version = None
    if isinstance(version, int) and version > FORMAT:
        return UnsupportedFormat(describe("written by a newer shardstore; upgrade this one", what=what, format=version))
    return Corrupt(describe("sealed line is not what this format writes", what=what, reason=str(cause)))


# ------------------------------------------------------------------ shards

_encode_header = msgspec.json.Encoder().encode
_header_decoder = msgspec.json.Decoder(Header)


def encode_header(header: Header, payload: bytes) -> bytes:
    """Return the header line of a shard whose payload is `payload`."""
    body = _encode_header(header)[:-1]
    return body + _SEAL % _seal_of(body, zlib.crc32(payload))


@lru_cache(maxsize=1024)
def header_encoder(kind: Kind, source: str) -> Callable[[int, str, int, int], bytes]:
    """Return what makes the header lines of records without base and key.

    From (at_ms, nonce, payload bytes, payload CRC32) it makes what `encode_header` would, a few times faster.
    """
    sample = _encode_header(Header(FORMAT, kind, source, 0, None, None, "", 0))
    begin, end = sample.split(b'"at":0,"base":null,"key":null,"nonce":"",')
    assert end == b'"length":0}'
    begin += b'"at":'
    crc32, of_begin = zlib.crc32, zlib.crc32(begin)

    def encode(at_ms: int, nonce: str, length: int, payload_crc32: int) -> bytes:
        rest = f'{at_ms},"base":null,"key":null,"nonce":"{nonce}","length":{length}'.encode()
        sealed = crc32(payload_crc32.to_bytes(4, "little"), crc32(rest, of_begin))
        return b'%b%b,"crc32":"%08x"}\n' % (begin, rest, sealed)

    return encode


def _seal_of(body: bytes, payload_crc32: int) -> int:
    """Return the CRC32 of a header's fields and its payload's CRC32, so that one pass over the payload serves both."""
    return zlib.crc32(payload_crc32.to_bytes(4, "little"), zlib.crc32(body))


def decode_header(line: bytes, *, what: str) -> Header:
    """Decode a header line whose checksum was verified or is verified elsewhere. Raises Corrupt, UnsupportedFormat."""
    return _header_of(line[:-_SEAL_BYTES] + b"}", what)


def _header_of(document: bytes, what: str) -> Header:
    try:
        header = _header_decoder.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unreadable(document, what, error) from error
    if header.format != FORMAT:
        raise _unreadable(document, what, ValueError("format"))
    return header


def decode_shard(data: bytes, *, what: str) -> tuple[Header, bytes, int]:
    """Return header, payload and the header line's length in bytes; see `open_shard`."""
    return open_shard(data, what=what)[:3]


def open_shard(data: bytes, *, what: str) -> tuple[Header, bytes, int, int]:
    """Return header, payload, the header line's length in bytes, and the payload's CRC32.

    Any bytes decode to that, or raise Corrupt (torn, flipped, cut) or UnsupportedFormat.
    """
    end = data.find(b"\n", 0, HEADER_BYTES_MAX) + 1
    if end <= _SEAL_BYTES:
        raise Corrupt(describe("shard has no header line", what=what, bytes=len(data)))
    payload = data[end:]
    crc32 = zlib.crc32(payload)
    return open_header(data[:end], len(payload), crc32, what=what), payload, end, crc32


def open_header(line: bytes, length: int, payload_crc32: int, *, what: str) -> Header:
    """Decode the header line of a shard whose payload has these bytes and CRC32. Raises Corrupt, UnsupportedFormat."""
    body = line[:-_SEAL_BYTES]
    if line[-_SEAL_BYTES:] != _SEAL % _seal_of(body, payload_crc32):
        raise Corrupt(describe("checksum of a shard does not match", what=what, bytes=len(line) + length))
    header = _header_of(line, what)
    if header.length != length:
        raise Corrupt(describe("shard has the wrong length", what=what, expected=header.length, found=length))
    return header


def control_shard(operation: str, nonce: str, at_ms: int) -> bytes:
    """Return the shard of a control record: a header that says what it does, and no payload."""
    return encode_header(Header(FORMAT, "control", operation, at_ms, None, None, nonce, 0), b"")


def record_of(seq: int, header: Header, payload: bytes) -> Record:
    """Return the record that lies at `seq`."""
    return Record(seq, header.kind, header.source, header.at_ms, header.base, header.key, header.nonce, payload)


def counts_as_turn(kind: Kind, source: str) -> bool:
    """Say whether a record defeats `if_no_turn_since`: turns, and control records that change what a turn saw.

    `lost` and `delete` do not; any other control operation (pop, clear, redact, and those yet unknown) does.
    """
    return kind == "turn" or (kind == "control" and source not in (LOST, DELETE))


# ------------------------------------------------------------------ entries


def encode_entries(entries: object) -> bytes:
    """Return the payload of an append: raw lines verbatim, anything else as one JSON line an entry.

    `entries` is one dict, msgspec Struct or bytes, or an iterable of those. Raises InvalidRequest for nothing at all,
    for a str (is it text or a line?), for NaN and infinities (JSON has none), for what JSON can't carry exactly.
    """
    if isinstance(entries, (bytes, bytearray, memoryview)):
        payload = bytes(entries)
    elif isinstance(entries, (Mapping, msgspec.Struct)):
        payload = _encode_entry(entries)
    elif isinstance(entries, Iterable) and not isinstance(entries, str):
        payload = _join(list(entries))
    else:
        raise InvalidRequest(
            describe("entries must be dicts, structs or raw lines as bytes; encode text first", got=type(entries))
        )
    if not payload:
        raise InvalidRequest("an append needs at least one entry")
    return payload


def _join(entries: list[object]) -> bytes:
    lines = [_encode_entry(entry) for entry in entries]
    if not all(lines):
        raise InvalidRequest("an entry of zero bytes is no line")
    tail = lines[-1:]
    return b"".join([line if line.endswith(b"\n") else line + b"\n" for line in lines[:-1]] + tail)


def _encode_entry(entry: object) -> bytes:
    if isinstance(entry, (bytes, bytearray, memoryview)):
        return bytes(entry)
    if isinstance(entry, str):
        raise InvalidRequest(describe("an entry is a str; pass bytes for a raw line", entry=entry[:40]))
    try:
        line = orjson.dumps(entry, default=_struct, option=orjson.OPT_APPEND_NEWLINE)
        if b"null" in line:  # perhaps a NaN
            _require_exact(entry)
    except (TypeError, ValueError, RecursionError) as error:
        if "surrogates" not in str(error):
            raise InvalidRequest(describe("an entry can't be written as JSON", reason=str(error))) from error
    else:
        return line
    return _encode_surrogates(entry)


def _encode_surrogates(entry: object) -> bytes:
    """Spell lone surrogates as escapes, which orjson refuses to do."""
    try:
        _require_exact(entry)
        return json.dumps(entry, allow_nan=False, separators=(",", ":"), default=_struct).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(describe("an entry can't be written as JSON", reason=str(error))) from error


def _struct(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    raise TypeError(f"{type(value).__name__} has no JSON form; convert it first")


def _require_exact(value: object) -> None:
    """Raise ValueError for what JSON would change silently: NaN and infinities, keys that are no str, huge integers."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no number {value}; store null or a string instead")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("an integer exceeds 64 bits; store a string, or pass the raw line as bytes")
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key is no str")
        value = list(value.values())
    for item in value if isinstance(value, (list, tuple)) else ():
        _require_exact(item)


def split_lines(payload: bytes) -> list[bytes]:
    """Split at LF bytes only (never at U+2028, NEL or CR), keeping the line endings."""
    lines = payload.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def decode_payloads(payloads: list[bytes], *, single: bool) -> list[Any] | None:
    """Decode all entries of many payloads at once; None if any line needs `decode_line` and its care.

    `single` says that each payload is known to be one line.
    """
    out: list[Any] = []
    loads = orjson.loads
    try:
        if single:
            return list(map(loads, payloads))
        for payload in payloads:
            if payload.find(b"\n") == len(payload) - 1:
                out.append(loads(payload))
            else:
                out += [loads(line) for line in payload.split(b"\n") if line]
    except orjson.JSONDecodeError:
        return None
    return out


def decode_line(line: bytes, seq: int, invalid: Literal["raise", "raw"] = "raise") -> Any:
    """Decode one entry; lone surrogates, NaN and a BOM are read as Python's json reads them.

    Raises InvalidRequest if the line is no JSON, or returns the line itself with `invalid="raw"`.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if invalid == "raw":
            return line
        raise InvalidRequest(
            describe('a stored line is no JSON; read it with invalid="raw"', seq=seq, reason=str(error))
        ) from error
