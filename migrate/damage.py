"""Damage: what is wrong with a transcript, counted line by line. Nothing is refused, and nothing is changed.

Rule: a kind counts the lines that show it, each once; a line may show several. What the bytes show (NULs, a BOM, CRLF,
invalid UTF-8) is judged by itself. Whether a line is JSON is judged without its BOM and its NULs, and invalid UTF-8
does not make it no JSON, so that each cause is named once. What an entry holds (keys, integers, ids) is judged where
the line is one JSON value. A file in UTF-16 or compressed has no lines to judge: each counts as just that.

Strategy: speed on healthy lines, which are nearly all. One msgspec decode into the raw fields checks the syntax, with
escapes, surrogates and control characters; it does not check UTF-8 inside of values, nor keys that repeat. A line in
the compact form that JavaScript writes is as long as its distinct fields and their punctuation together, so a length
that fits proves that no key repeats, and tells where each value begins. Only what does not fit is looked at closely.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re

import msgspec

from .salvage import BOM, LINE_BYTES_MAX, OBJECTS_MAX, SLOW_BYTES_MAX, Pieces, end_of, is_deeper, pieces, wide

__all__ = ["KINDS", "Inspector"]

LEVELS_MAX = 1_000  # where decoders give up: between 64 and 1,024 levels, some at the end of their stack
IDS_MAX = 500_000  # remembered for each file and name, in 60 MiB at most
ID_BYTES_MAX = 64  # a longer one is remembered as its digest
EXACT_MAX = 2**53  # beyond it a double, which is all that JavaScript has, rounds integers
CHUNK_BYTES = 1 << 20

KINDS: dict[str, str] = {
    "torn-last-line": "the last line has no newline and is no JSON: a write was cut short, or is still under way",
    "no-final-newline": "the last line is whole, but has no newline: whatever is appended next is glued to it",
    "glued": "two or more JSON objects lie on one line, or a file has carriage returns instead of newlines",
    "fragment": "a line begins like an entry and is cut, or another record was written behind the cut",
    "nul-bytes": "a line holds NUL bytes, as a power loss or a write past the end leaves them",
    "invalid-json": "a line is no JSON and nothing that was only cut: text, the end of an entry, a redactor's traces",
    "not-an-object": "a line is JSON, but a list, a text, a number or null instead of an object",
    "invalid-utf8": "a line holds bytes that are no UTF-8",
    "bom": "a line begins with a byte order mark, which many JSON readers refuse",
    "utf-16": "the file is in UTF-16 instead of UTF-8",
    "compressed": "the file is compressed (gzip, zstd, xz, bzip2, lz4 or zip), whatever its name says",
    "torn-stream": "the file is compressed, and not all of it can be expanded: cut, damaged, or beyond all measure",
    "crlf": "a line ends with carriage return and newline",
    "blank-line": "a line holds nothing but blanks",
    "raw-u2028": "a line holds U+2028, U+2029 or U+0085 unescaped, at which some readers split it",
    "lone-surrogate": "a text holds half of an escaped surrogate pair, which is no character",
    "duplicate-id": "an entry has the same id or uuid as an earlier one of its file",
    "ids-not-checked": "an entry came after the first half million ids, which are all that is remembered of a file",
    "duplicate-key": "an entry has the same field twice, of which readers keep one",
    "huge-integer": "an entry has an integer beyond 2**53, which JavaScript rounds",
    "nan": "an entry has NaN or an Infinity, which JSON does not have",
    "deep-nesting": f"a line is nested about {LEVELS_MAX:,} levels deep or deeper, more than many readers take",
    "huge-line": f"a line is longer than {LINE_BYTES_MAX >> 20} MiB",
    "empty-file": "the file is empty",
    "header-only": "the file has a header and no entry",
}

_COSTLY = frozenset(KINDS) - {
    *("no-final-newline", "not-an-object", "crlf", "blank-line", "raw-u2028", "lone-surrogate", "duplicate-id"),
    *("ids-not-checked", "duplicate-key", "huge-integer", "huge-line", "empty-file", "header-only"),
}
_MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh", b"\x04\x22\x4d\x18", b"PK\x03\x04")
_HEADERS = ("session", "session_meta")
_RAW_HEADERS = tuple(f'"{name}"'.encode() for name in _HEADERS)
_SEPARATORS = "\u2028\u2029\x85"
_QUOTE, _OPEN, _CLOSE = b'"{}'
_SPACE = re.compile(rb"[ \t\r\n]*+")
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_NEXT = re.compile(rb"[ \t\r\n]*+,[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_INTEGER = re.compile(rb"-?[0-9]{16,}+")
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]|(u[dD][89a-fA-F])|.)", re.DOTALL)
_Fields = dict[str, msgspec.Raw]
_decode = msgspec.json.Decoder(_Fields).decode


def _plain_bytes() -> int:
    """Return how long a line can be and certainly not be too deep, nor huge.

    Decoders that give up at about LEVELS_MAX themselves (before Python 3.12) spare us from counting.
    """
    try:
        _decode(b'{"a":' + b"[" * LEVELS_MAX + b"]" * LEVELS_MAX + b"}")
    except RecursionError:
        return LINE_BYTES_MAX - 2
    return 2 * LEVELS_MAX


_PLAIN_BYTES_MAX = _plain_bytes()


class Inspector:
    """Counts the damage of one file, line by line in order."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(KINDS, 0)
        self._lines = 0
        self._binary = ""  # the kind of all lines of a file that has none
        self._header = False  # the first line is one
        self._plain_bytes_max = -1  # of a compact line that needs no closer look; the first one does
        self._ids, self._uuids = _Ids(), _Ids()

    def line(self, line: bytes) -> bool:
        """Count the damage of the next line, its ending included; only the last may have none. Never raises.

        Returns True if the damage costs a reader content (`salvage.rescued` may help): False for what only differs
        from the usual, like CRLF or an id that comes twice.
        """
        self._lines += 1
        try:
            fields = _decode(line)
        except (ValueError, RecursionError):
            return self._refused(line)
        at, integer = 0, False
        for key, raw in fields.items():
            length = len(raw)
            at += len(key) + 4  # where the value begins, if the line is compact
            if length > 15 and 44 < line[at] < 58:  # '-' or a digit
                integer = True
            at += length
        compact = at + 2 == len(line) and line[-1] == 10
        costly = False
        if not compact or integer or at > self._plain_bytes_max:
            costly = self._look(line, fields, compact)
        if not line.isascii():
            costly |= self._count_text(line)
        answer = _NEW
        if "id" in fields:
            answer = self._ids.add(bytes(fields["id"]))
        if "uuid" in fields:
            answer |= self._uuids.add(bytes(fields["uuid"]))
        if answer:
            self._count_answer(answer, fields.get("type"))
        return costly

    def finish(self) -> dict[str, int]:
        """Return how many lines show each kind, in the order of KINDS, without those that none shows."""
        counts = dict(self._counts)
        counts["empty-file"] = int(not self._lines)
        counts["header-only"] = int(self._lines == 1 and self._header)
        return {kind: count for kind, count in counts.items() if count}

    def _count(self, *kinds: str) -> bool:
        for kind in kinds:
            self._counts[kind] += 1
        return not _COSTLY.isdisjoint(kinds)

    def _look(self, line: bytes, fields: _Fields, compact: bool) -> bool:
        """Count what the shape of a line that is an object shows where it is not plainly healthy."""
        kinds = ["huge-line"] if len(line) > LINE_BYTES_MAX else []
        if not compact:
            kinds += ["crlf"] if line.endswith(b"\r\n") else []
            kinds += ["no-final-newline"] if not line.endswith(b"\n") else []
        return self._count(*kinds, *self._of_object(line, fields, compact))

    def _refused(self, line: bytes) -> bool:
        """Count the damage of a line that is no plain JSON object."""
        if self._lines == 1:
            self._binary = _binary_kind(line)
        kinds = ["huge-line"] if len(line) > LINE_BYTES_MAX else []
        if self._binary:
            return self._count(self._binary, *kinds)
        costly = not line.isascii() and self._count_text(line)
        kinds += ["crlf"] if line.endswith(b"\r\n") else []
        marks = ["bom"] * line.startswith(BOM) + ["nul-bytes"] * (b"\0" in line)
        data = line.removeprefix(BOM)
        if len(line) <= LINE_BYTES_MAX:
            data = data.replace(b"\0", b"")
        if _SPACE.fullmatch(data):
            kinds += [] if marks else ["blank-line"]
        else:
            kinds += self._of_content(data, line.endswith(b"\n"))
        return self._count(*kinds, *marks) or costly

    def _of_content(self, data: bytes, ended: bool) -> list[str]:
        """Return the kinds of what a line holds besides blanks, its BOM and its NULs."""
        whole = [] if ended else ["no-final-newline"]
        try:
            fields = _decode(data)
        except (ValueError, RecursionError):
            if is_deeper(data, LEVELS_MAX):
                return ["deep-nesting"]
        else:
            self._count_answer(self._add_ids(fields.get("id"), fields.get("uuid")), fields.get("type"))
            return whole + self._of_object(data, fields, compact=False)
        if len(data) > SLOW_BYTES_MAX:
            return ["lone-surrogate"] if _has_lone_surrogate(data) else _of_no_json(data, ended)
        read = _Read(data)
        if not read.is_json:
            return read.kinds or _of_no_json(data, ended)
        if not isinstance(read.value, dict):
            return [*whole, *read.kinds, "not-an-object"]
        self._header |= self._lines == 1 and read.value.get("type") in _HEADERS
        raw_id, raw_uuid, raw_type = (_quoted(read.value.get(name)) for name in ("id", "uuid", "type"))
        self._count_answer(self._add_ids(raw_id, raw_uuid, escaped=False), raw_type)
        return whole + read.kinds

    def _of_object(self, data: bytes, fields: _Fields, compact: bool) -> list[str]:
        """Return the kinds of an object whose raw fields are known."""
        kinds = [] if compact or not _repeats_a_key(data, fields) else ["duplicate-key"]
        if any(len(raw) > 15 and _is_huge(raw) for raw in fields.values()):
            kinds.append("huge-integer")
        if is_deeper(data, LEVELS_MAX):
            kinds.append("deep-nesting")
        if self._lines == 1 and "type" in fields:
            self._header = bytes(fields["type"]) in _RAW_HEADERS
        self._plain_bytes_max = _PLAIN_BYTES_MAX
        return kinds

    def _count_text(self, line: bytes) -> bool:
        """Count what only a line with bytes beyond ASCII can show."""
        if len(line) > SLOW_BYTES_MAX:
            separated, valid = any(mark.encode() in line for mark in _SEPARATORS), _is_utf8(line)
        else:
            try:
                text, valid = line.decode(), True
            except UnicodeDecodeError:
                text, valid = line.decode(errors="replace"), False
            separated = "\u2028" in text or "\u2029" in text or "\x85" in text
        if separated:
            self._counts["raw-u2028"] += 1
        return not valid and self._count("invalid-utf8")

    def _add_ids(
        self, raw_id: msgspec.Raw | bytes | None, raw_uuid: msgspec.Raw | bytes | None, *, escaped: bool = True
    ) -> int:
        answer = _NEW if raw_id is None else self._ids.add(bytes(raw_id), escaped=escaped)
        return answer if raw_uuid is None else answer | self._uuids.add(bytes(raw_uuid), escaped=escaped)

    def _count_answer(self, answer: int, raw_type: msgspec.Raw | bytes | None) -> None:
        if raw_type is None or bytes(raw_type) not in _RAW_HEADERS:  # a header may come again
            self._counts["duplicate-id"] += answer & _KNOWN
        self._counts["ids-not-checked"] += answer // _FULL


_NEW, _KNOWN, _FULL = 0, 1, 2


class _Ids:
    """The ids of a file, as they lie in its lines; long ones as digests."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def add(self, raw: bytes, *, escaped: bool = True) -> int:
        """Remember a text as it lies in a line, perhaps with escapes; say whether it is new, known, or can't be told
        since there are too many. What is no text names no entry (null, the numbers of requests) and is always new.
        """
        if raw[0] != _QUOTE:
            return _NEW
        if escaped and b"\\" in raw:
            raw = _quoted(json.loads(raw.decode("utf-8", "surrogateescape"))) or raw
        if len(raw) > ID_BYTES_MAX:
            raw = hashlib.sha256(raw).digest()
        known = self._known
        if raw in known:
            return _KNOWN
        if len(known) >= IDS_MAX:
            return _FULL
        known.add(raw)
        return _NEW


class _Read:
    """What a lenient reader makes of a text: whether it is JSON, its value (of objects, only the texts that name them),
    and the kinds that it shows, those of objects inside included.
    """

    def __init__(self, data: bytes) -> None:
        self.is_json, self.value, self.kinds = True, None, list[str]()
        try:
            self.value = json.loads(
                data.decode("utf-8", "surrogateescape"),
                object_pairs_hook=self._object,
                parse_int=self._integer,
                parse_constant=lambda _: self._note("nan"),
            )
        except RecursionError:
            self.is_json, self.kinds = False, ["deep-nesting"]
        except ValueError:
            self.is_json, self.kinds = False, []
        else:
            self.kinds += ["lone-surrogate"] * _has_lone_surrogate(data)

    def _note(self, kind: str) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            self._note("duplicate-key")
        return {name: fields[name] for name in ("id", "uuid", "type") if isinstance(fields.get(name), str)}

    def _integer(self, digits: str) -> None:
        if len(digits) > 15 and _is_huge(digits.encode()):
            self._note("huge-integer")


def _of_no_json(data: bytes, ended: bool) -> list[str]:
    """Return the kinds of a text that is no JSON value: what of it is whole, and how the rest begins."""
    if len(data) > LINE_BYTES_MAX:
        return ["invalid-json"] if ended else ["torn-last-line"]
    found = pieces(data)
    at, count = _rest_of(data, found)
    if count and at == len(data):
        return ["glued"] + ([] if ended else ["no-final-newline"])
    begins = data[at] == _OPEN
    kinds = ["glued"] if count and begins else []
    if count == OBJECTS_MAX:
        return kinds
    if not ended:
        return [*kinds, "torn-last-line"]
    followed = bool(found.objects) and _SPACE.fullmatch(data, found.objects[-1][1]) is not None
    return [*kinds, "fragment" if begins and (at not in found.closed or followed) else "invalid-json"]


def _rest_of(data: bytes, found: Pieces) -> tuple[int, int]:
    """Return where what follows the whole objects at the front begins, and how many these are."""
    at, count = found.start, 0
    for start, end in found.objects:
        if start != at:
            break
        at, count = end_of(_SPACE, data, end), count + 1
    return at, count


def _repeats_a_key(data: bytes, fields: _Fields) -> bool:
    """Say whether an object has a field twice: then its text departs from its fields, which are in the order of their
    first appearance and have the value of their last.
    """
    at = end_of(_SPACE, data, data.index(b"{") + 1)
    left = len(fields)
    for key, raw in fields.items():
        token = _STRING.match(data, at)
        assert token is not None  # it was decoded
        if token[0][1:-1] != key.encode() and json.loads(token[0]) != key:
            return True
        at = end_of(_COLON, data, token.end())
        if memoryview(data)[at : at + len(raw)] != memoryview(raw):
            return True
        left -= 1
        more = _NEXT.match(data, at + len(raw))
        if (more is None) == (left > 0):
            return True
        at = more.end() if more else at + len(raw)
    return data[end_of(_SPACE, data, at)] != _CLOSE


def _is_huge(raw: msgspec.Raw | bytes) -> bool:
    if _INTEGER.fullmatch(raw) is None:
        return False
    return len(raw) > 20 or abs(int(bytes(raw))) > EXACT_MAX


def _has_lone_surrogate(data: bytes) -> bool:
    return any(match[1] for match in _ESCAPE.finditer(data))


def _is_utf8(line: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(line), CHUNK_BYTES):
            decoder.decode(line[at : at + CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _quoted(value: object) -> bytes | None:
    """Return the text of a field as it lies in a line when nothing in it is escaped; None for what is no text."""
    if not isinstance(value, str):
        return None
    try:
        return b'"' + value.encode("utf-8", "surrogateescape") + b'"'
    except UnicodeEncodeError:
        return b'"' + value.encode("utf-8", "surrogatepass") + b'"'


def _binary_kind(head: bytes) -> str:
    return "compressed" if head.startswith(_MAGIC) else "utf-16" if wide(head) else ""
