"""The group of commands: which store, which exit code, and what a user sees of an error.

Every command raises; only `run` prints errors and chooses codes. So a command is the same few straight lines whether
it is run, tested or interrupted. The codes are a promise, `shardstore --help` lists them, and there is one for each
next move of the caller, as there is one error class (see `shardstore.errors`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module

import click

import shardstore
from shardstore.cli.output import ReaderGone, complain, flush

__all__ = [
    "EXIT_FAILED",
    "Settings",
    "cli",
    "code_of",
    "open_store",
    "pass_settings",
    "run",
    "stopping",
    "words_of",
]

MIGRATE = "migrate"
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_UNAVAILABLE = 5
EXIT_OUTCOME_UNKNOWN = 6
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

HELP = """Transcripts of agents, one session a log: append-only, lock-free for writers, nothing finished is lost.

A store is a directory of sessions. A session is one ordered log of records; a record is what one append committed,
atomically: one JSONL line or several. Any number of processes may append, read and compact at the same time.

\b
  shardstore demo                                  see what it is for, in under a minute
  shardstore import ~/.pi/agent/sessions/a.jsonl   bring a transcript in
  shardstore append a '{"role":"user"}'            commit a record
  shardstore cat a                                 the transcript, byte for byte
  shardstore tail -f a                             watch it grow

\b
The store is the first of
  --store DIR, $SHARDSTORE_PATH, ~/.shardstore
`import`, `append` and `mount` make it where it is missing. No other does:
a mistyped path is an error.

With --json a command prints to stdout either one JSON document or one JSON document a line (its help says which),
always ASCII. Progress and errors go to stderr.

\b
Exit codes
    0  done
    1  damage was found or stands in the way, or you answered no
    2  the request was wrong: usage, not JSON, an invalid id
    3  no such store or session, or it was deleted
    4  conflict: it exists already, or a turn came between
    5  a disk, a permission or a limit stands in the way; nothing was committed
    6  the outcome is unknown: it may or may not have been committed
  130  interrupted (Ctrl-C)
  141  the reader of stdout went away
"""


@dataclass(frozen=True)
class Settings:
    """What the global options chose."""

    store_path: str


pass_settings = click.make_pass_decorator(Settings)


class _Interrupted(Exception):  # noqa: N818
    """Ctrl-C. Under this name click lets it pass; it would print an empty line for a KeyboardInterrupt."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, the migration's too."""
        return sorted([*super().list_commands(ctx), MIGRATE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; the migration's is imported only when it is asked for, for it takes long."""
        if cmd_name != MIGRATE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module("shardstore_migrate.cli").migrate
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


@click.group(
    cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 118}
)
@click.option(
    "--store",
    "store_path",
    metavar="DIR",
    envvar="SHARDSTORE_PATH",
    default="~/.shardstore",
    show_default=True,
    help="The store's directory (also $SHARDSTORE_PATH).",
)
@click.version_option(shardstore.__version__, prog_name="shardstore")
@click.pass_context
def cli(context: click.Context, store_path: str) -> None:
    if not store_path:
        raise shardstore.InvalidRequest("the store's path is empty")
    context.obj = Settings(store_path=os.path.expanduser(store_path))


def open_store(
    settings: Settings, *, create: bool = False, durability: shardstore.Durability = "sync"
) -> shardstore.Store:
    """Open the chosen store; only commands that write new sessions may make it."""
    return shardstore.open(settings.store_path, create=create, durability=durability)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code. Every error becomes one line on stderr, or none at all."""
    sys.stdin, sys.stdout, sys.stderr = (
        stream or open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - one that was closed before we began
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
    )
    _add_commands()
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        # What click returns is the code of `context.exit`, and None from a command that came to its end.
        code = cli.main(args=words, prog_name="shardstore", standalone_mode=False)
        flush()
    except (click.Abort, KeyboardInterrupt, _Interrupted):
        return EXIT_INTERRUPTED
    except (ReaderGone, SystemExit):  # click ends the process where nobody reads a help, and nowhere else
        _forget_stdout()
        return EXIT_PIPE_CLOSED
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(EXIT_USAGE, error.format_message() + hint)
    except click.ClickException as error:
        return _fail(EXIT_USAGE, error.format_message())
    except (shardstore.ShardstoreError, OSError) as error:
        return _fail(code_of(error), words_of(error))
    return code if isinstance(code, int) else EXIT_OK


def words_of(error: shardstore.ShardstoreError | OSError) -> str:
    """Return what an error says; the system's own without its number."""
    if isinstance(error, shardstore.ShardstoreError) or error.strerror is None:
        return str(error)
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
    return error.strerror.lower() + where


def code_of(error: shardstore.ShardstoreError | OSError) -> int:
    """Return the exit code of an error of the engine or of the system."""
    if not isinstance(error, shardstore.ShardstoreError):
        return EXIT_UNAVAILABLE
    codes: list[tuple[type[shardstore.ShardstoreError], int]] = [
        (shardstore.InvalidRequest, EXIT_USAGE),
        (shardstore.NotFound, EXIT_NOT_FOUND),
        (shardstore.Conflict, EXIT_CONFLICT),
        (shardstore.Unavailable, EXIT_UNAVAILABLE),
        (shardstore.OutcomeUnknown, EXIT_OUTCOME_UNKNOWN),
    ]
    return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILED)


def _fail(code: int, message: str) -> int:
    """Print one line to stderr and return `code`; what was printed so far goes first."""
    try:
        flush()
    except (OSError, ReaderGone):  # stdout is gone as well: the message below is all that can still be said
        _forget_stdout()
    with suppress(OSError):  # the code says enough
        complain(message)
    return code


def _forget_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain about it as it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _add_commands() -> None:
    """Import the commands and add them to `cli`."""
    from shardstore.cli import exporting, mounting, reading, trial, upkeep, viewing, writing

    for module in (writing, reading, exporting, viewing, mounting, upkeep, trial):
        for command in module.COMMANDS:
            cli.add_command(command)


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end after the piece at hand instead of breaking it off; the second one breaks it off."""

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    kept = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
