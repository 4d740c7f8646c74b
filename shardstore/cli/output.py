"""What is printed: payload bytes, JSON, tables, errors, progress bars.

Three rules. Payload bytes pass through untouched. JSON is ASCII, so that neither a terminal nor a locale can change
its meaning. Anything else that a writer chose is shown with its control characters escaped: an id may hold an escape
sequence, and a terminal would obey it.

Tables are rendered to text first and written here, because rich would end the process by itself, with its own code,
when the reader of a pipe has gone away.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "Advance",
    "ReaderGone",
    "complain",
    "counted",
    "flush",
    "no_progress",
    "note",
    "progress_bar",
    "readable",
    "show_size",
    "show_table",
    "show_time",
    "visible",
    "write_bytes",
    "write_json",
    "write_line",
]

Advance: TypeAlias = Callable[[int, int | None], None]
PIPED_WIDTH_COLUMNS = 2_000  # a pipe has no width: never cut a cell short
UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_FACT = re.compile(
    rf"""\b(?P<name>\w+)=(?:\w+Path\((?P<path>{_QUOTED})\)|<class\ '(?P<type>[\w.]+)'>"""
    rf"""|(?P<value>b?{_QUOTED}|[(\[](?:[^()\[\]'"]|{_QUOTED})*[)\]]|None\b))"""
)
_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")


class ReaderGone(Exception):  # noqa: N818
    """Nobody reads stdout any more. Not an OSError: click would end the process on one, with a code of its own."""


def visible(text: str) -> str:
    """Return `text` with every character that a terminal might act on written as an escape."""
    return "".join(_escape(character) if _unsafe(character) else character for character in text)


def readable(message: str) -> str:
    """Return an error's message with its facts spelled for people: `path='/a b'` becomes `path="/a b"`.

    What it holds is not escaped any more afterwards: see `visible`.
    """
    return _FACT.sub(_spell_fact, _ERROR_NUMBER.sub("", message))


def _spell_fact(fact: re.Match[str]) -> str:
    if fact["type"] is not None:
        return f"{fact['name']}={fact['type']}"
    try:
        return f"{fact['name']}={_spell(ast.literal_eval(fact['path'] or fact['value']))}"
    except (ValueError, SyntaxError):  # it only looked like one
        return fact[0]


def _spell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_spell, value))
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if value is None:
        return "none"
    return text if text and not re.search(r"\s", text) else f'"{text}"'


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and what it counts, in the plural where it is not one."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _unsafe(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE_CATEGORIES


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def write_bytes(chunk: bytes) -> None:
    """Write payload bytes to stdout, untouched."""
    _write(chunk)


def write_line(text: str) -> None:
    """Write one line of our own words to stdout; what the locale can't encode is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    _write(text.encode(encoding, "backslashreplace") + b"\n")


def write_json(document: object) -> None:
    """Write one JSON document on a line of its own."""
    _write(json.dumps(document, ensure_ascii=True).encode("ascii") + b"\n")


def note(text: str) -> None:
    """Tell a person on stderr what stdout does not carry."""
    print(text, file=sys.stderr)


def complain(message: str) -> None:
    """Print an error as one line to stderr."""
    note(f"shardstore: {visible(readable(message))}")


def flush() -> None:
    """Hand everything written so far to the reader of stdout; raises as the write would have."""
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def _write(chunk: bytes) -> None:
    try:
        sys.stdout.buffer.write(chunk)
    except BrokenPipeError as error:
        raise ReaderGone from error


def show_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], *, shape: str = "") -> None:
    """Write a table and a blank line; `shape` has a letter a column: `r` right, `l` left, a blank: left, may be folded.

    What is folded where the terminal is too narrow is a name that somebody chose, and never a number or a date.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        letter = shape[place : place + 1].strip()
        table.add_column(column, justify="right" if letter == "r" else "left", no_wrap=bool(letter), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    on_terminal = sys.stdout.isatty()
    canvas = io.StringIO()
    width = None if on_terminal else PIPED_WIDTH_COLUMNS
    Console(file=canvas, force_terminal=on_terminal, width=width, highlight=False).print(table)
    lines = [line.rstrip() for line in canvas.getvalue().split("\n")]
    for line in filter(None, lines):
        write_line(line)
    write_line("")


def show_size(size_bytes: int) -> str:
    """Return a size as a person reads it; the exact number is in the JSON."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def show_time(at_ms: int | None, *, form: str = "%Y-%m-%d %H:%M:%SZ") -> str:
    """Return a moment in UTC to the second, or `-`; a time that no calendar has is shown as its number."""
    if at_ms is None:
        return "-"
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


def no_progress(done: int, total: int | None) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(what: str, *, total: int | None = None, is_bytes: bool = False) -> Iterator[Advance]:
    """Show a bar on stderr while the block runs, if stderr is a terminal; yields `advance(done, total)`."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    count = DownloadColumn(binary_units=True) if is_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(Text(visible(what)).markup, total=total)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
