"""One state machine drives the memory backend, the local backend and a plain list side by side; they must agree.

The model is a list of dicts. Every step is made on each session and on the model; every answer is compared at once,
so that what hypothesis shrinks is a short script of calls.
"""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import orjson
import pytest
from helpers import OPTIONS, raw_session
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardstore import Conflict, Deleted, InvalidRequest, NotFound, Record, Session
from shardstore.backends.base import Backend
from shardstore.backends.local import LocalBackend, make_root
from shardstore.backends.memory import MemoryBackend
from shardstore.session import Options

KINDS = st.sampled_from(["turn", "event"])
SOURCES = st.sampled_from(["main", "heartbeat", "cron:a"])
KEYS = st.sampled_from(["k1", "k2", "k3", "ключ"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.dictionaries(st.text(max_size=6), JSON, max_size=3)
RAW = st.binary(min_size=1, max_size=20) | st.sampled_from(
    [b"{}", b"{}\n", b"{}\r\n", b"\n", b"no json\n", b"\xff\xfe\n"]
)
ENTRIES = ENTRY | RAW | st.lists(ENTRY | RAW, min_size=1, max_size=3)
Model = list[dict[str, Any]]


def payload_of(entries: Any) -> bytes:
    """What an append of `entries` must store: raw bytes verbatim, a newline between what lacks one."""
    if isinstance(entries, bytes):
        return entries
    if isinstance(entries, dict):
        return orjson.dumps(entries) + b"\n"
    lines = [payload_of(entry) for entry in entries]
    return b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines[:-1]) + lines[-1]


def view_of(model: Model) -> bytes:
    """The view: payloads one after another, with a newline before a record where the one before lacks it."""
    out = b""
    for record in model:
        out += b"\n" if out and not out.endswith(b"\n") else b""
        out += record["payload"]
    return out


def plain(record: Record) -> dict[str, Any]:
    fields = ("seq", "kind", "source", "key", "payload")
    return {name: getattr(record, name) for name in fields}


class Sessions(RuleBasedStateMachine):
    """Two sessions and a model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        make_root(self.folder)
        self.backends: list[Backend] = [MemoryBackend(), LocalBackend(self.folder)]
        self.options = Options(
            durability="none", record_bytes_max=OPTIONS.record_bytes_max, compact_shards=OPTIONS.compact_shards
        )
        self.model: Model = []
        self.born = self.deleted = self.archived = False
        self.reopen()

    def teardown(self) -> None:
        """Check each session once more with fresh eyes, and clean up."""
        if self.born and not self.deleted:
            self.reopen()
            self.whole_log()
            for session in self.sessions:
                assert session.verify() == [] or all(f.severity == "note" for f in session.verify())
        shutil.rmtree(self.folder)

    def each(self, call: Any) -> list[Any]:
        """Make a call on each session; return the answers, an error being an answer too."""
        answers = []
        for session in self.sessions:
            try:
                answers.append(call(session))
            except (Conflict, InvalidRequest, NotFound) as error:
                answers.append(error)
        return answers

    def agree(self, call: Any, expected: Any) -> None:
        """Every session must answer as the model says; with the session gone or unborn, the right error instead."""
        if self.deleted:
            expected = Deleted
        elif not self.born:
            expected = NotFound
        for answer in self.each(call):
            if isinstance(expected, type):
                assert type(answer) is expected, answer
            else:
                assert answer == expected

    # -------------------------------------------------------------- handles

    @initialize(create=st.booleans())
    def birth(self, create: bool) -> None:
        """Begin with an empty session, or with none."""
        if create:
            self.append({"first": 1}, "turn", "main")

    @rule()
    def reopen(self) -> None:
        """Go on with fresh handles, and for the local one with a fresh backend."""
        self.backends[1] = LocalBackend(self.folder)
        self.sessions: list[Session] = [raw_session(backend, options=self.options) for backend in self.backends]

    # -------------------------------------------------------------- appends

    @rule(entries=ENTRIES, kind=KINDS, source=SOURCES)
    def append(self, entries: Any, kind: str, source: str) -> None:
        """A plain append takes the next seq."""
        self.born = True
        if self.deleted:
            self.agree(lambda session: session.append(entries), None)
            return
        self._commit(entries, kind, source, None)
        options = {"kind": kind, "source": source, "at_ms": 7}
        self.agree(lambda s: self._receipt(s.append(entries, **options)), (len(self.model), 7, False))

    @rule(entry=ENTRY, source=SOURCES)
    def event(self, entry: Any, source: str) -> None:
        """`event` is an append of that kind."""
        self.born = True
        if not self.deleted:
            self._commit(entry, "event", source, None)
        self.agree(lambda s: s.event(entry, source=source).seq, len(self.model))

    @rule(entries=ENTRIES, kind=KINDS, back=st.integers(-2, 6))
    @precondition(lambda self: self.born)
    def append_if(self, entries: Any, kind: str, back: int) -> None:
        """A condition refuses what is beyond the head, loses to turns, and ignores events."""
        since = max(0, len(self.model) - back)
        turns = tuple(r["seq"] for r in self.model if r["seq"] > since and r["kind"] == "turn")
        call = lambda s: s.append(entries, kind=kind, if_no_turn_since=since).seq  # noqa: E731
        if self.deleted or since > len(self.model):
            self.agree(call, InvalidRequest)
        elif turns:
            for answer in self.each(call):
                assert isinstance(answer, Conflict)
                assert answer.seqs == turns
        else:
            self._commit(entries, kind, "main", None)
            self.agree(call, len(self.model))

    @rule(entry=st.sampled_from([{"a": 1}, {"a": 2}]), key=KEYS, back=st.none() | st.integers(0, 3))
    def append_keyed(self, entry: Any, key: str, back: int | None) -> None:
        """A key is committed once; with the same payload its seq is the answer, with another one a Conflict."""
        self.born = True
        since = None if back is None else max(0, len(self.model) - back)
        known = next((record for record in self.model if record["key"] == key), None)
        call = lambda s: self._receipt(s.append(entry, key=key, if_no_turn_since=since, at_ms=7))  # noqa: E731
        turns = [r for r in self.model if since is not None and r["seq"] > since and r["kind"] == "turn"]
        if self.deleted:
            self.agree(call, None)
        elif known is not None and known["payload"] == payload_of(entry):
            self.agree(call, (known["seq"], 7, True))
        elif known is not None or turns:
            for answer in self.each(call):
                assert isinstance(answer, Conflict)
                assert answer.existing == (known["seq"] if known else None)
        else:
            self._commit(entry, "turn", "main", key)
            self.agree(call, (len(self.model), 7, False))

    def _commit(self, entries: Any, kind: str, source: str, key: str | None) -> None:
        seq = len(self.model) + 1
        self.model.append({"seq": seq, "kind": kind, "source": source, "key": key, "payload": payload_of(entries)})

    @staticmethod
    def _receipt(receipt: Any) -> tuple[int, int, bool]:
        return receipt.seq, receipt.at_ms, receipt.duplicate

    # -------------------------------------------------------------- reads

    @rule(first=st.integers(1, 30), last=st.none() | st.integers(0, 30), reverse=st.booleans())
    def read_range(self, first: int, last: int | None, reverse: bool) -> None:
        """Any range, forwards and backwards."""
        expected = self.model[first - 1 : last][:: -1 if reverse else 1]
        self.agree(lambda s: [plain(r) for r in s.records(first, last, reverse=reverse)], expected)

    @rule(kind=st.none() | KINDS | st.just(("turn", "event")), source=st.none() | SOURCES | st.just({"main", "x"}))
    def read_selected(self, kind: Any, source: Any) -> None:
        """By kind and by source, each one or several."""
        expected = self._select(kind, source)
        self.agree(lambda s: [plain(r) for r in s.records(kind=kind, source=source)], expected)
        self.agree(lambda s: s.read_jsonl(kind=kind, source=source), view_of(expected))
        raw = [line for record in expected for line in record["payload"].split(b"\n") if line.strip()]
        self.agree(lambda s: len(list(s.entries(kind=kind, source=source, invalid="raw"))), len(raw))

    @rule(k=st.integers(1, 12), kind=st.none() | KINDS, source=st.none() | SOURCES)
    def read_last(self, k: int, kind: Any, source: Any) -> None:
        """The last k, of some kind or source."""
        self.agree(lambda s: [plain(r) for r in s.last(k, kind=kind, source=source)], self._select(kind, source)[-k:])

    def _select(self, kind: Any, source: Any) -> Model:
        kinds = {kind} if isinstance(kind, str) else kind
        sources = {source} if isinstance(source, str) else source
        return [r for r in self.model if (not kinds or r["kind"] in kinds) and (not sources or r["source"] in sources)]

    @rule(first=st.integers(1, 30), last=st.none() | st.integers(0, 30), without=SOURCES)
    def view(self, first: int, last: int | None, without: str) -> None:
        """The view's bytes of a range, with and without a source."""
        part = self.model[first - 1 : last]
        self.agree(lambda s: s.read_jsonl(first, last), view_of(part))
        kept = [record for record in part if record["source"] != without]
        self.agree(lambda s: b"".join(s.iter_jsonl(first, last, exclude_source=without)), view_of(kept))

    @invariant()
    def whole_log(self) -> None:
        """The whole log, its head and its view agree after every step; the nonces of all records differ."""
        self.agree(lambda s: [plain(r) for r in s.records()], self.model)
        self.agree(lambda s: s.head(), len(self.model))
        self.agree(lambda s: len({r.nonce for r in s.records()}), len(self.model))

    # -------------------------------------------------------------- maintenance

    @rule()
    def compact(self) -> None:
        """Compaction changes nothing that can be read."""
        if self.born and not self.deleted:
            self.agree(lambda s: (s.compact().watermark, s.info().watermark), (len(self.model),) * 2)

    @rule(flag=st.booleans())
    def archive(self, flag: bool) -> None:
        """Archiving is a flag and nothing else."""
        self.agree(lambda s: (s.archive if flag else s.unarchive)(), None)
        if self.born and not self.deleted:
            self.archived = flag

    @rule()
    def facts(self) -> None:
        """The facts agree with the model."""
        if self.born and not self.deleted:
            self.agree(
                lambda s: (s.info().head, s.info().state, s.info().archived), (len(self.model), "open", self.archived)
            )
            self.agree(lambda s: s.describe().records, len(self.model))

    @rule(sure=st.integers(0, 9))
    @precondition(lambda self: self.born)
    def delete(self, sure: int) -> None:
        """Now and then: the session is gone for good, and deleting it again is no error."""
        if sure == 0 or self.deleted:
            self.deleted = True
            assert [session.delete() for session in self.sessions] == [None, None]


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_model_itself() -> None:
    """The model's own idea of a view, on the cases where it is easy to get wrong."""
    model = [{"payload": payload} for payload in (b"a", b"b\n", b"\n", b"c\r\n", b"d")]
    assert view_of(model) == b"a\nb\n\nc\r\nd"
    assert payload_of([b"a", {"b": 1}, b"c"]) == b'a\n{"b":1}\nc'
    with pytest.raises(InvalidRequest):
        raw_session(MemoryBackend()).append([])
