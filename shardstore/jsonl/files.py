"""The builtin `open`, for sessions.

Rule: the builtin judges its own arguments, so that what is wrong with them is told in its words; what is left to
decide is what a mode means for a log that only grows.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from typing import IO, Any

from shardstore.errors import Deleted, InvalidRequest, NotFound, describe
from shardstore.ingest import check_fields
from shardstore.jsonl.places import Name, Place, locate
from shardstore.jsonl.reading import ViewFile
from shardstore.jsonl.writing import Appender, AppendReader, Recorder
from shardstore.record import Kind
from shardstore.session import Session
from shardstore.store import Store

__all__ = ["open"]


def open(  # noqa: A001
    file: Session | Name,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    store: Store | str | os.PathLike[str] | None = None,
    kind: Kind = "turn",
    source: str | None = None,
) -> IO[Any]:
    """Open a session as a file; arguments, results and exceptions are those of the builtin `open`.

    `file` is a Session, or a path `DIR/name.jsonl`: it belongs to the nearest folder at or above DIR that holds a
    store `.shardstore`; where there is none, the first one who writes makes it in DIR. With a `store` (or its path),
    `file` is the session's id, with or without `.jsonl`. `kind` and `source` (by default `main`) are those of the
    records that are written.

    Every complete line is committed when the `write` that completes it returns, all lines of one `write` as one
    record; what has no newline yet waits for it, or for `close`. A write, flush or close that raises keeps the bytes:
    the next one commits them once, so don't write them again. Only InvalidRequest (too large) takes none of them.
    Whatever the mode, each write goes to the end, and `buffering` has no say in it. Threads may share a handle.
    The base of what is written is the last record that this process has read of the session through files (or through
    the Session that was passed); 0 where it has read nothing.

    There is no `fileno`, and no need to sync: what is committed is as durable as the session.
    Refused, since records never change: `r+`, truncate, `w` for a session that has content, in `w` and `x` a write
    anywhere but at the end. Raises what `open` raises, FileExistsError where a plain file with content lies at the
    path, InvalidRequest (a ValueError), Deleted, Corrupt, Unavailable (an OSError).
    """
    if encoding is None and isinstance(mode, str) and "b" not in mode:
        encoding = io.text_encoding(None)
    raw_mode = _judged(mode, buffering, encoding, errors, newline)
    source = "main" if source is None else source
    check_fields(kind, source, None, 0, bytes_max=1)
    text = "b" not in mode
    if text and "r" not in mode:
        _check_line_ends(encoding, newline)
    place = locate(file, store, create="r" not in mode)
    _prepare(place, mode)
    if "r" in mode:
        view = ViewFile(place.session, place.name, raw_mode)
        if buffering == 0:
            return view  # type: ignore[return-value]
        buffer: Any = io.BufferedReader(view, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
    else:
        recorder = Recorder(place.session, kind, source)
        recorder.last = place.session.head()
        buffer = (AppendReader if "+" in mode else Appender)(recorder, place.name, raw_mode, anywhere="a" in mode)
    if not text:
        return buffer  # type: ignore[no-any-return]
    buffer.opening = True
    wrapper: Any = io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1, write_through=True)
    buffer.opening = False
    wrapper.mode = mode
    return wrapper  # type: ignore[no-any-return]


def _judged(mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> str:
    """Raise what the builtin `open` has to say about its arguments; return the mode that its raw file shows."""

    def null(*_: object) -> int:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    with builtins.open(os.devnull, mode, buffering, encoding, errors, newline, opener=null) as probe:
        shown: str = getattr(probe, "buffer", probe).mode
        return shown


def _check_line_ends(encoding: str | None, newline: str | None) -> None:
    sample = io.BytesIO()
    with io.TextIOWrapper(sample, encoding, newline=newline) as text:
        text.write("{}\n")
        text.flush()
        if sample.getvalue().endswith((b"{}\n", b"{}\r\n")):
            return
    what = "such lines don't end with a byte LF; use utf-8, and no newline=CR"
    raise InvalidRequest(describe(what, encoding=encoding, newline=newline))


def _prepare(place: Place, mode: str) -> None:
    """Make the session where the mode makes a file, or raise what `open` raises where it doesn't."""
    session = place.session
    if "r" in mode:
        try:
            session.head()
        except NotFound as error:
            raise place.missing() from error
        if "+" in mode:
            raise io.UnsupportedOperation(f"records never change: append with 'a' instead of mode {mode!r}")
        return
    try:
        born = session.create()
    except Deleted:
        raise
    except NotFound as error:
        raise place.missing() from error
    if not born and "x" in mode:
        raise place.exists(os.strerror(errno.EEXIST))
    if not born and "w" in mode and any(session.iter_jsonl()):
        raise place.exists("The session has content, and records never change: append with 'a', or choose another name")
