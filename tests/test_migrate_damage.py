"""Damage is counted as a slow and obviously right reader counts it; what is whole can be cut out of damaged lines."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shardstore_migrate import damage, salvage
from shardstore_migrate.damage import KINDS, Inspector
from shardstore_migrate.salvage import rescued, rescued_file

COSTLY = {"torn-last-line", "glued", "fragment", "nul-bytes", "invalid-json", "invalid-utf8", "bom", "utf-16"}
COSTLY |= {"compressed", "nan", "deep-nesting"}
BOM = b"\xef\xbb\xbf"


def lines_of(raw: bytes) -> list[bytes]:
    """Return the lines of a file, newlines included, split at nothing else."""
    return [line + b"\n" for line in raw.split(b"\n")[:-1]] + [line for line in raw.split(b"\n")[-1:] if line]


def inspected(raw: bytes) -> tuple[dict[str, int], list[bool]]:
    inspector = Inspector()
    costly = [inspector.line(line) for line in lines_of(raw)]
    return inspector.finish(), costly


class Reference:
    """Counts the same kinds by the json module alone, one plain question after another.

    `least` and `most` differ only in keys and integers below the top level, which need not be looked at.
    """

    def __init__(self, raw: bytes) -> None:
        self.most: dict[str, int] = {}
        self.least: dict[str, int] = {}
        self.broken = 0  # lines that are a fragment or invalid JSON
        self.costly: list[bool] = []
        self.ids: set[tuple[str, str]] = set()
        self.lines = lines_of(raw)
        self.headers = 0
        for line in self.lines:
            self.line(line)
        header_only = {"header-only"} if len(self.lines) == 1 and self.headers else set()
        kinds = header_only if self.lines else {"empty-file"}
        self.count(kinds, kinds)

    def count(self, most: set[str], least: set[str]) -> None:
        for counts, kinds in ((self.most, most), (self.least, least)):
            counts.update({kind: counts.get(kind, 0) + 1 for kind in kinds})

    def line(self, line: bytes) -> None:
        text = line.decode(errors="surrogateescape")
        shown = {
            "invalid-utf8": any("\udc80" <= character <= "\udcff" for character in text),
            "raw-u2028": bool(set(text) & set("\u2028\u2029\x85")),
            "crlf": text.endswith("\r\n"),
            "bom": text.startswith("\ufeff"),
            "nul-bytes": "\0" in text,
        }
        kinds = {kind for kind, is_shown in shown.items() if is_shown}
        content = text.removeprefix("\ufeff").replace("\0", "").strip(" \t\r\n")
        ended = text.endswith("\n")
        least: set[str] = set()
        broken = False
        if not content:
            kinds |= set() if kinds & {"bom", "nul-bytes"} else {"blank-line"}
        else:
            try:
                json.loads(content)
            except ValueError:
                broken = self.no_json(content, ended, kinds)
            else:
                kinds |= set() if ended else {"no-final-newline"}
                least = self.values(content, kinds)
        self.broken += broken
        self.count(kinds, kinds - least)
        self.costly.append(broken or not COSTLY.isdisjoint(kinds))

    def no_json(self, content: str, ended: bool, kinds: set[str]) -> bool:
        count = 0
        while content.startswith("{"):
            try:
                _, end = json.JSONDecoder().raw_decode(content)
            except ValueError:
                break
            content, count = content[end:].lstrip(" \t\r\n"), count + 1
        if count and (not content or content.startswith("{")):
            kinds.add("glued")
        if not content:
            kinds |= set() if ended else {"no-final-newline"}
            return False
        kinds |= set() if ended else {"torn-last-line"}
        return ended

    def values(self, content: str, kinds: set[str]) -> set[str]:
        """Add the kinds that a JSON value shows; return those of them that are shown below the top level only."""
        objects: list[list[tuple[str, object]]] = []
        texts: list[object] = []
        integers: list[str] = []
        constants: list[str] = []
        value = json.loads(content, object_pairs_hook=lambda pairs: objects.append(pairs) or dict(pairs))
        json.loads(content, parse_int=integers.append, parse_constant=constants.append)
        plain = content.encode(errors="surrogateescape").decode(errors="replace")
        walk(json.loads(plain, object_pairs_hook=lambda pairs: [list(pair) for pair in pairs]), texts)
        shown = {
            "duplicate-key": any(len(dict(pairs)) < len(pairs) for pairs in objects),
            "huge-integer": any(abs(int(digits)) > 2**53 for digits in integers),
            "lone-surrogate": any("\ud800" <= one <= "\udfff" for text in texts for one in str(text)),
            "nan": bool(constants),
        }
        kinds |= {kind for kind, is_shown in shown.items() if is_shown}
        deep: set[str] = set()
        if not isinstance(value, dict):
            kinds.add("not-an-object")
            return kinds & {"duplicate-key", "huge-integer"}
        top = objects[-1]
        if len(dict(top)) == len(top):
            deep.add("duplicate-key")
        if not any(type(field) is int and abs(field) > 2**53 for field in value.values()):
            deep.add("huge-integer")
        self.headers += value.get("type") in ("session", "session_meta")
        names = {(name, value[name]) for name in ("id", "uuid") if isinstance(value.get(name), str)}
        if names & self.ids and value.get("type") not in ("session", "session_meta"):
            kinds.add("duplicate-id")
        self.ids |= names
        return deep


def walk(value: object, strings: list[object]) -> None:
    """Collect the texts of nested lists."""
    if isinstance(value, str):
        strings.append(value)
    for part in value if isinstance(value, list) else ():
        walk(part, strings)


TEXTS = st.text(st.sampled_from('ab{}[]:,"\\\n 0\x7f\u00e9\x85\u2028\u4e2d\ud800\udc00\U0001f600'), max_size=8)
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.integers(2**53 - 2, 2**53 + 2),
    st.integers(-(2**53) - 2, -(2**53) + 2),
    st.sampled_from([0.1, 1e300, -0.0, 0.30000000000000004, math.nan, math.inf, -math.inf]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.one_of(st.sampled_from(["id", "uuid", "type", "a", "b", "data"]), TEXTS)
NAMES = st.sampled_from(["x", "y", "\u00e9\n", "{", "session", "session_meta"])
FIELDS = st.lists(st.one_of(st.tuples(KEYS, VALUES), st.tuples(KEYS, NAMES)), max_size=4)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Draw the text of an object: any spacing, any escaping, a field twice perhaps."""
    pairs = draw(FIELDS)
    escape = draw(st.booleans())
    comma, colon = draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": "), (" ,", " :\t")]))

    def text_of(value: object) -> str:
        text = json.dumps(value, ensure_ascii=escape, separators=(comma, colon))
        return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)

    return ("{" + comma.join(f"{text_of(key)}{colon}{text_of(value)}" for key, value in pairs) + "}").encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a line's content: whole, or cut, glued, overwritten, padded."""
    line = draw(objects())
    for _ in range(draw(st.integers(0, 2))):
        at, past = sorted((draw(st.integers(0, len(line))), draw(st.integers(0, len(line)))))
        head, tail, other = line[:at], line[at:], draw(objects())
        junk = draw(st.sampled_from([b"\r", b" ", b"\xff", b'"', b"}", b"\\u12", b"NaN"])) + draw(st.binary(max_size=2))
        choices = [head, tail, head + line[past:], head + other, line + other, BOM + line, b"[" + line + b"]"]
        line = draw(st.sampled_from([*choices, head + bytes(past - at) + tail, head + junk + tail]))
    return line


ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\n"])
FILES = st.lists(st.tuples(st.one_of(objects(), damaged(), VALUES.map(lambda v: json.dumps(v).encode())), ENDS))


@settings(max_examples=400, deadline=None)
@given(FILES, st.booleans())
def test_the_counts_are_those_of_the_reference(parts: list[tuple[bytes, bytes]], ended: bool) -> None:
    """Every kind agrees with the json module, line by line; so does what costs a reader content."""
    raw = b"".join(line + end for line, end in parts)
    raw = raw if ended else raw.rstrip(b"\n")
    counts, costly = inspected(raw)
    if counts.keys() & {"utf-16", "compressed"}:
        return
    expected = Reference(raw)
    assert counts.pop("fragment", 0) + counts.pop("invalid-json", 0) == expected.broken
    assert costly == expected.costly
    for kind in ("duplicate-key", "huge-integer"):
        count = counts.pop(kind, 0)
        assert expected.least.pop(kind, 0) <= count <= expected.most.pop(kind, 0)
    assert counts == expected.most


SAMPLES: dict[str, tuple[bytes, dict[str, int]]] = {
    "healthy": (b'{"type":"a","id":"1"}\n{"type":"b","id":"2","n":9007199254740992}\n', {}),
    "torn": (b'{"a":1}\n{"a":', {"torn-last-line": 1}),
    "torn, but whole so far": (b'{"a":1}\n{"a":1}', {"no-final-newline": 1}),
    "glued": (b'{"a":1}{"b":2}\n', {"glued": 1}),
    "glued, the second cut": (b'{"a":1}{"b":\n', {"glued": 1, "fragment": 1}),
    "glued, the second torn": (b'{"a":1}{"b":', {"glued": 1, "torn-last-line": 1}),
    "glued at the end": (b'{"a":1} {"b":2}', {"glued": 1, "no-final-newline": 1}),
    "very many glued": (b'{"a":1}' * 1500 + b"\n", {"glued": 1}),
    "fragment": (b'{"a":1,"b":"some te\n', {"fragment": 1}),
    "fragment and record": (b'{"a":1,"b":"some te{"a":1,"b":"some text"}\n', {"fragment": 1}),
    "end of a record": (b'xt"}\n', {"invalid-json": 1}),
    "redacted": (b'{"a":2[REDACTED],"b":1}\n', {"invalid-json": 1}),
    "garbage behind": (b'{"a":1}}\n{"a":1},\n', {"invalid-json": 2}),
    "not JSON though Python's decoders of JSON differ": (b'{"a":01}\n{"a":"\x01"}\n{"a":"\\x"}\n', {"invalid-json": 3}),
    "NULs": (bytes(50) + b'\n{"a":1}' + bytes(9) + b'\n{"b":"\0c"}\n', {"nul-bytes": 3}),
    "NULs in a fragment": (b'{"a":' + bytes(9) + b"\n", {"nul-bytes": 1, "fragment": 1}),
    "no objects": (b'[]\n1\n"x"\nnull\n[{"id":"x"}]\n', {"not-an-object": 5}),
    "invalid UTF-8": (b'{"a":"\xff"}\n{"\xff":1}\n{"a":"\xed\xa0\x80"}\n', {"invalid-utf8": 3}),
    "BOM": (BOM + b'{"a":1}\n' + BOM + b'{"a":2}\n', {"bom": 2}),
    "BOM alone": (BOM, {"bom": 1}),
    "UTF-16": ('{"a":1}\n{"b":2}\n'.encode("utf-16"), {"utf-16": 3}),
    "UTF-16 without a mark": ('{"a":1}\n'.encode("utf-16-be"), {"utf-16": 1}),
    "gzip": (gzip.compress(b"", mtime=0) + b"\n\n", {"compressed": 2}),
    "zstd": (b"\x28\xb5\x2f\xfd\x24\0", {"compressed": 1}),
    "CRLF": (b'{"a":1}\r\n[]\r\n\r\n', {"crlf": 3, "not-an-object": 1, "blank-line": 1}),
    "CR only": (b'{"a":1}\r{"b":1}\r', {"glued": 1, "no-final-newline": 1}),
    "blank": (b"\n \t \n  ", {"blank-line": 3}),
    "separators": ('{"a":"\u2028"}\n{"a":"\u2029"}\n{"a":"\x85"}\n{"a":"\u2027"}\n'.encode(), {"raw-u2028": 3}),
    "surrogates": (b'{"a":"\\ud800"}\n{"\\uDC00":1}\n{"a":"\\ud83d\\ude00\\\\ud800"}\n', {"lone-surrogate": 2}),
    "ids": (b'{"id":"a"}\n{"uuid":"a"}\n{"id":"\\u0061"}\n{"id":null}\n{"id":null}\n{"id":1}\n', {"duplicate-id": 1}),
    "a number again": (b'{"id":1}\n{"id":1}\n', {}),
    "id and uuid": (b'{"id":"a","uuid":"b"}\n{"id":"a","uuid":"b"}\n', {"duplicate-id": 1}),
    "keys": (b'{"a":1,"a":1}\n{"a" : 1 , "b":2, "\\u0061":1}\n{"a":12,"a":1}\n', {"duplicate-key": 3}),
    "spaced keys": (b'{"a": 1, "b": [1, 2]}\n{ }\n{}\n{"\\u0061":1}\n', {}),
    "integers": (b'{"a":9007199254740993}\n{"a":-%s}\n{"a":%s.5}\n' % (b"9" * 5000, b"9" * 20), {"huge-integer": 2}),
    "NaN": (b'{"a":NaN}\n{"a":[-Infinity]}\n{"a":"NaN"}\n', {"nan": 2}),
    "NaN and more": (
        b'{"a":NaN,"b":{"c":%s,"c":1}}\n' % (b"9" * 5000),
        {"nan": 1, "huge-integer": 1, "duplicate-key": 1},
    ),
    "deep": (b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}\n", {"deep-nesting": 1}),
    "wide": (b'{"a":[' + b"[]," * 3000 + b"0]}\n", {}),
    "empty": (b"", {"empty-file": 1}),
    "header only": (b'{"type":"session","id":"a"}\n', {"header-only": 1}),
    "spaced header with a mark": (
        BOM + b'{"type": "session_meta"}',
        {"bom": 1, "no-final-newline": 1, "header-only": 1},
    ),
    "repeated header": (b'{"type":"session","id":"a"}\n' * 2, {}),
    "one entry": (b'{"type":"message"}\n', {}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_each_kind(name: str) -> None:
    """Small files show exactly the damage that they were made with, and cost content where that does."""
    raw, expected = SAMPLES[name]
    counts, costly = inspected(raw)
    assert counts == expected
    assert any(costly) == bool(COSTLY & expected.keys())
    assert list(counts) == [kind for kind in KINDS if kind in counts]


def test_every_kind_has_a_sample_and_a_sentence() -> None:
    """No kind is left untested or unexplained."""
    sampled = {kind for _, expected in SAMPLES.values() for kind in expected}
    assert KINDS.keys() - sampled == {"ids-not-checked", "huge-line", "torn-stream"}
    assert all(len(sentence) > 10 for sentence in KINDS.values())


def test_long_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line too long to be taken apart is judged by its shape; one above the bound is counted as huge."""
    monkeypatch.setattr(damage, "SLOW_BYTES_MAX", 1000)
    monkeypatch.setattr(salvage, "SLOW_BYTES_MAX", 1000)
    text = b'"' + "\u00e9\u2028".encode() * 300 + b'"'
    whole = b'{"a":' + text + b',"n":9007199254740993,"a":1}\n'
    shown = {"raw-u2028": 1, "duplicate-key": 1, "huge-integer": 1}
    assert inspected(whole)[0] == shown
    assert inspected(whole.replace(b"\xa9", b"", 1))[0] == shown | {"invalid-utf8": 1}
    long = b"x" * 2000
    assert inspected(b'{"a":"%s"}{"b":1}\n' % long)[0] == {"glued": 1}
    assert inspected(b'{"a":"%s\n' % long)[0] == {"fragment": 1}
    assert inspected(b'{"a":"\\ud800%s"}\n' % long)[0] == {"lone-surrogate": 1}
    monkeypatch.setattr(damage, "LINE_BYTES_MAX", 1500)
    monkeypatch.setattr(damage, "_PLAIN_BYTES_MAX", 1498)
    small = b'{"a":1}\n'
    assert inspected(small + b'{"a":"%s"}\n' % long + small)[0] == {"huge-line": 1}
    assert inspected(small + b'{"a":"%s\n' % long + small)[0] == {"huge-line": 1, "invalid-json": 1}
    assert inspected(small + b'{"a":"%s"}\n' % long[:1490])[0] == {}


def test_ids_with_escapes() -> None:
    """An id is the text that it stands for, however it is written, and on whatever line."""
    broken = b'{"\\ud800":0,"id":"\\\\"}\n'  # lone surrogate: read by another decoder
    assert inspected(b'{"id":"\\\\"}\n' + broken)[0] == {"lone-surrogate": 1, "duplicate-id": 1}
    assert inspected(b'{"id":"\\u0061"}\n{"id":"a"}\n')[0] == {"duplicate-id": 1}


def test_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound new ids are no longer remembered, which is said; the remembered ones are still known."""
    monkeypatch.setattr(damage, "IDS_MAX", 3000)
    raw = b"".join(b'{"id":"%d"}\n' % number for number in range(3010))
    raw += b"".join(b'{"id":"%d"}\n' % number for number in range(3000))
    assert inspected(raw)[0] == {"ids-not-checked": 10, "duplicate-id": 3000}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(objects(), st.integers(0, 5)), min_size=1, max_size=8), st.integers(0, 3), st.booleans())
def test_glued_objects_come_back(parts: list[tuple[bytes, int]], front: int, marked: bool) -> None:
    """Any objects, with any NULs between them, come back as exactly these, in order."""
    line = BOM * marked + bytes(front) + b"".join(one + bytes(count) for one, count in parts) + b"\n"
    assert rescued(line) == [one + b"\n" for one, _ in parts]


ENTRIES = st.fixed_dictionaries(
    {"type": st.just("message"), "id": st.text("abc", max_size=3), "text": st.text('ab"\\\u00e9\n ,:', max_size=20)},
    optional={"content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "n": st.integers()}), max_size=3)},
).map(lambda value: json.dumps(value, separators=(",", ":")).encode())


@settings(max_examples=200, deadline=None)
@given(ENTRIES, ENTRIES, st.lists(ENTRIES, max_size=2), st.data())
def test_a_cut_entry_is_a_fragment_and_the_whole_one_is_rescued(
    cut: bytes, whole: bytes, more: list[bytes], data: st.DataObject
) -> None:
    """Wherever an entry is cut, it counts as a fragment, and what was written behind it comes back."""
    stub = cut[: data.draw(st.integers(1, len(cut) - 1))]
    assert inspected(stub + b"\n")[0] == {"fragment": 1}
    assert inspected(stub)[0] == {"torn-last-line": 1}
    line = stub + whole + b"".join(more) + b"\n"
    assert inspected(line)[0] == {"fragment": 1}
    found = [one[:-1] for one in rescued(line)]
    count = 1 + len(more)
    assert found[-count:] == [whole, *more]
    assert not found[:-count] or (len(found) == count + 1 and stub.endswith(found[0]))  # whole inside of the stub


@settings(max_examples=300, deadline=None)
@given(damaged())
def test_nothing_is_invented(line: bytes) -> None:
    """Whatever a line holds, what is cut out of it are JSON objects, lies in it, and lies in it in that order."""
    left = line.replace(b"\0", b"")
    for one in rescued(line + b"\n"):
        assert isinstance(json.loads(one.decode(errors="surrogateescape")), dict)
        assert one.endswith(b"\n")
        _, found, left = left.partition(one[:-1])
        assert found


def test_rescued_samples() -> None:
    """What is whole is returned as it lies there, and what is not whole is left."""
    assert rescued(b'{"a":"\xff"}\n') == [b'{"a":"\xff"}\n']
    assert rescued(b'{"a":1} junk {"b":{"c":2}}\r\n') == [b'{"a":1}\n', b'{"b":{"c":2}}\n']
    assert rescued(b'{"a":"cut{"b":2}{"c":"cut{"d":4}\n') == [b'{"b":2}\n', b'{"d":4}\n']
    assert rescued(b'{"a":{"b":1},"c":\n') == []
    assert rescued(b'{"a":2[REDACTED],"b":{"c":1}}\n') == []
    assert rescued(b'[{"a":1},{"b":2}]\n') == []
    assert rescued(b'{"a":"cut\\{"b":2}\n') == [b'{"b":2}\n']
    assert rescued(b"") == rescued(bytes(100)) == rescued(b"\n") == []
    assert len(rescued(b'{"a":1}' * 1500)) == 1000


def test_rescue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines made to be slow, or to fill the memory, end all the same; a line above the bound is not searched."""
    nested = b'{"a":1' * 3000 + b'{"b":1}}{"c":1}' * 3000
    assert rescued(nested)[-1:] in ([], [b'{"c":1}\n'])
    assert rescued(b"{" * 200_000) == rescued(b'{"a":[' * 100_000) == rescued(b'"' * 100_000) == []
    monkeypatch.setattr(salvage, "LINE_BYTES_MAX", 10)
    assert rescued(b'{"a":1}\n') == [b'{"a":1}\n']
    assert rescued(b'{"a":123456}\n') == []


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf16_is_rescued_as_a_whole(codec: str) -> None:
    """Its objects come back as UTF-8; of a line by itself nothing does, since its bytes would mean something else."""
    text = '{"a":"\u4e2d\U0001f600"}\n{"b":2}{"c":3}\n{"d":'
    assert rescued_file(text.encode(codec)) == ['{"a":"\u4e2d\U0001f600"}\n'.encode(), b'{"b":2}\n', b'{"c":3}\n']
    assert [one for line in lines_of(text.encode(codec)) for one in rescued(line)] == []
    assert rescued_file(text.encode()) == rescued_file("\ufeff{}".encode("utf-16-le") + b"\x00\xd8\x00\x00") == []
