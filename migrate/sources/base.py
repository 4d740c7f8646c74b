"""What a transcript format has to tell: where its files lie, and what each line of them is.

Rule: a format only describes. It never opens a file for writing, never changes a byte of a line, and never refuses
one: what it doesn't know gets the kind `event` and the lane of its file. One rule decides the kind in every format: a
**turn** is what the model gets to see (messages, tool calls and results, summaries that stand for them), an **event**
is all else: headers, settings, titles, progress, a co-tenant's own exchange.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

__all__ = [
    "EVENT",
    "FILE",
    "MAIN",
    "TURN",
    "Format",
    "Found",
    "Label",
    "Labeller",
    "Report",
    "beginning",
    "listing",
    "pass_over",
    "walk",
]

TURN: Literal["turn"] = "turn"
EVENT: Literal["event"] = "event"
MAIN = "main"
FILE = "file"  # the lane of files that are no transcripts, whatever their lines look like
DEPTH_MAX = 32  # folders below a root; symlinked ones are not entered
EXPECTED = re.compile(r".*\.(?:json|jsonl|ndjson)(?:\..*)?", re.DOTALL)  # who sees such a name expects its lines

Report = Callable[[OSError], None]


def pass_over(error: OSError) -> None:
    """Leave out what can't be read: for callers to whom only the rest matters."""


class Label(NamedTuple):
    """What one line is: its kind, the lane that wrote it, its own time in ms since 1970 UTC (None if it has none)."""

    kind: Literal["turn", "event"]
    source: str
    at_ms: int | None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript file (or a file that belongs to transcripts), and what its place alone tells of it.

    `name` is the path below the folder that was searched, with `/`; `session` the id that it gets in a store (a
    proposal: the caller shortens it where it is too long); `agent` names the program and, where there are several, its
    agent (`openclaw/main`); `lane` is the source of its lines unless a line says otherwise: `main`, `cron:daily`,
    `subagent:afbbf75`; `inner` that of the lines in a compressed file, "" where its place does not tell.
    """

    path: str
    name: str
    format: str
    agent: str
    session: str
    lane: str = MAIN
    inner: str = ""


class Labeller(Protocol):
    """Labels the lines of one file, in order. `lane` is all that it remembers between lines, so that one made with the
    same lane goes on where another stopped.
    """

    lane: str

    def label(self, line: bytes) -> Label:
        """Say what `line` is: its bytes as they lie in the file, line ending included. Never raises."""


class Format(Protocol):
    """One transcript format."""

    name: str

    def homes(self, home: str, environ: dict[str, str]) -> Sequence[str]:
        """Return the folders where the files of a user with this home lie, whether or not they exist."""

    def find(self, folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[Found]:
        """Yield the files of this format in one of its homes (or in a copy of one), in the order of their names.

        With `within`, a file or a folder below `folder` (a path that begins with it), only what lies there is looked
        at; what is yielded of it is the same. Raises OSError for a `folder` that can't be read; what can't be looked at
        below it is told to `on_error`, and the rest goes on.
        """

    def recognises(self, head: bytes) -> bool:
        """Say whether a file whose first bytes (up to 64 KiB, perhaps cut in a line) are `head` is of this format."""

    def labeller(self, lane: str) -> Labeller:
        """Return a labeller for a file of this format whose lane is `lane`."""


def walk(folder: str, on_error: Report = pass_over, within: str = "") -> Iterator[str]:
    """Yield the paths of all regular files below `folder`, or at and below `within`, sorted; no symlink is followed.

    Raises OSError for a folder to begin with that can't be read. Told to `on_error`: folders below it that can't be
    read or lie too deep, symlinks that hide files, and pipes, sockets and devices with names of transcripts.
    """
    here = within or folder
    if within and stat.S_ISREG(os.lstat(within).st_mode):
        yield within
        return
    folders = [(here, 0)]
    while folders:
        here, depth = folders.pop()
        try:
            below, files = listing(here, on_error)
        except OSError as error:
            if depth == 0:
                raise
            on_error(error)
            continue
        for name in files:
            yield os.path.join(here, name)
        for path in [os.path.join(here, name) for name in reversed(below)]:
            if depth < DEPTH_MAX:
                folders.append((path, depth + 1))
            else:
                on_error(OSError(errno.ELOOP, f"more than {DEPTH_MAX} folders deep: not looked into", path))


def listing(folder: str, on_error: Report = pass_over) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the regular files in `folder`, sorted; symlinks are neither.

    Raises OSError for a folder that can't be read. What hides files from the caller is told to `on_error`.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                try:
                    if entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif (reason := _hides(entry)) is not None:
                        on_error(OSError(errno.EINVAL, reason, entry.path))
                except OSError as error:
                    error.filename = entry.path
                    on_error(error)
    except OSError as error:
        error.filename = folder
        raise
    return sorted(folders), sorted(files)


def _hides(entry: os.DirEntry[str]) -> str | None:
    """Say why an entry that is no file and no folder is passed over, if somebody would expect transcripts there."""
    if entry.is_symlink():
        expected = EXPECTED.fullmatch(entry.name) or entry.is_dir()
        return "a symbolic link: not followed" if expected else None
    return "not a regular file" if EXPECTED.fullmatch(entry.name) else None


def beginning(path: str, size_bytes: int) -> bytes:
    """Return the first bytes of a regular file. Raises OSError for anything else; never waits, whatever lies there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _read(descriptor, path, size_bytes)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: str, size_bytes: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    parts = []
    while size_bytes > 0 and (part := os.read(descriptor, size_bytes)):
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
