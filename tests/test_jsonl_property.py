"""Random programs: a plain file and a session opened as one give equal results, exceptions and bytes."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import jsonl

EXAMPLES = int(os.environ.get("SHARDSTORE_JSONL_EXAMPLES", "150"))
PIECES = st.lists(
    st.sampled_from(["", "a", "é", "€\u2028", "😀", "\n", "\r", "\r\n", "{}\n", "x" * 9000, "\ufeff"]), max_size=5
)
TEXT = PIECES.map("".join)
SIZE = st.integers(-1, 9)
CALLS = st.one_of(
    st.tuples(st.just("write"), TEXT),
    st.tuples(st.just("writelines"), st.lists(TEXT, max_size=3)),
    st.tuples(st.just("write"), st.sampled_from([None, 3, ["a"]])),
    st.tuples(st.sampled_from(["read", "readline"]), SIZE),
    st.tuples(st.just("seek"), st.integers(0, 30), st.integers(0, 2)),
    st.tuples(st.just("seek told"), st.integers(0, 3)),
    st.tuples(st.just("flush and tell")),
    st.tuples(st.sampled_from(["next", "readlines", "close"])),
    st.tuples(st.just("open"), st.sampled_from(["r", "a", "a+"])),
)
FORMS = st.sampled_from(
    [("b", {})]
    + [
        ("", {"encoding": encoding, "newline": newline})
        for encoding in ("utf-8", "utf-8-sig", "latin-1")
        for newline in (None, "", "\n", "\r\n")
    ]
)


class Program:
    """Runs calls on files of one kind. After each write it is flushed, as a reader of the same handle must."""

    def __init__(self, opener: Callable[..., Any], form: tuple[str, dict[str, Any]]) -> None:
        self._open = opener
        self._suffix, self._options = form
        self._file: Any = None
        self._told = [0]
        self.run(("open", "a"))

    def _as_data(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._as_data(item) for item in value]
        return value.encode() if self._suffix and isinstance(value, str) else value

    def run(self, call: tuple[Any, ...]) -> Any:
        """Return what a call returned, or the type of what it raised."""
        try:
            return self._run(*call)
        except (ValueError, OSError, TypeError, StopIteration) as error:
            return type(error)

    def _run(self, name: str, *arguments: Any) -> Any:
        file = self._file
        if name == "open":
            self._finish()
            self._file = self._open(arguments[0] + self._suffix, **self._options)
            return self._file.tell()
        if name in ("write", "writelines"):
            try:
                return getattr(file, name)(*map(self._as_data, arguments))
            finally:
                file.flush()
        if name == "flush and tell":
            file.flush()
            self._told.append(file.tell())
            return self._told[-1]
        if name == "seek told":
            return file.seek(self._told[-1 - arguments[0] % len(self._told)])
        if name == "close":
            return self._finish()
        if name == "next":
            return next(file)
        return getattr(file, name)(*arguments)

    def _finish(self) -> None:
        """Close the file, its last line completed: without that the view would complete it, and a plain file not."""
        if self._file is None:
            return
        if not self._file.closed and self._file.writable():
            self._file.write(self._as_data("\n"))
        self._file.close()
        self._told = [0]

    def stop(self) -> None:
        """Close the file as it is."""
        self._file.close()


@pytest.fixture(scope="module")
def names() -> Iterator[Callable[[], tuple[Callable[..., Any], Callable[..., Any], str]]]:
    """Yield what makes a new pair of openers, of a plain file and of a session, and the plain file's path."""
    with tempfile.TemporaryDirectory() as folder:
        store = shardstore.open(os.path.join(folder, "store"), durability="none", compact_shards=None)
        numbers = itertools.count()

        def pair() -> tuple[Callable[..., Any], Callable[..., Any], str]:
            number = next(numbers)
            path = os.path.join(folder, str(number))
            session = store.session(str(number))
            return (
                lambda *arguments, **options: open(path, *arguments, **options),
                lambda *arguments, **options: jsonl.open(session, *arguments, **options),
                path,
            )

        yield pair
        store.close()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(form=FORMS, calls=st.lists(CALLS, max_size=25))
def test_any_program(names: Any, form: tuple[str, dict[str, Any]], calls: list[tuple[Any, ...]]) -> None:
    """Whatever is called in whatever order, results, exceptions and the bytes in the end are those of a plain file."""
    plain_open, our_open, path = names()
    plain, ours = Program(plain_open, form), Program(our_open, form)
    try:
        for call in calls:
            assert ours.run(call) == plain.run(call), call
    finally:
        plain.stop()
        ours.stop()
    with our_open("rb") as file, open(path, "rb") as expected:
        assert file.read() == expected.read()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(payloads=st.lists(st.binary(max_size=40), max_size=30), places=st.lists(st.tuples(st.integers(0, 900), SIZE)))
def test_any_records(names: Any, payloads: list[bytes], places: list[tuple[int, int]]) -> None:
    """Records of any bytes, written by whomever, are read as one file: the view's bytes, from any offset."""
    session = our_session(names)
    with jsonl.open(session, "rb") as follower:
        followed = b""
        for payload in filter(None, payloads):
            session.append(payload)
            followed += follower.read(10)
        followed += follower.read()
    view = session.read_jsonl()
    assert followed == view
    with jsonl.open(session, "rb", 16) as file:
        for place, size in places:
            assert file.seek(place) == place
            assert file.read(size) == (view[place:] if size < 0 else view[place : place + size])
        assert file.seek(0, 2) == len(view)


def our_session(names: Any) -> shardstore.Session:
    """Return a session of its own."""
    with names()[1]("a") as file:
        session: shardstore.Session = file.buffer._recorder.session
    return session
