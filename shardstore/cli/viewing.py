"""The command `view`: the sessions as plain files, for programs that know nothing of shardstore."""

from __future__ import annotations

import threading

import click

from shardstore.cli.app import EXIT_FAILED, Settings, open_store, pass_settings, stopping, words_of
from shardstore.cli.output import (
    complain,
    counted,
    flush,
    progress_bar,
    show_size,
    show_table,
    visible,
    write_json,
    write_line,
)
from shardstore.linear import Linear
from shardstore.shapes import Readable
from shardstore.views import DiskView, Outcome

__all__ = ["COMMANDS"]

STATUSES = ("made", "made again", "appended", "unchanged", "removed", "failed")


@click.command("view", short_help="Keep sessions as plain .jsonl files, for readers.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.argument("session_ids", metavar="[SESSION]...", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Keep the files up to date, until Ctrl-C.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Archived sessions too.")
@click.option("--linearize", is_flag=True, help="Show entries that were written at once one after the other.")
@click.option("--poll-ms", type=click.IntRange(10, 3_600_000), default=1000, show_default=True,
              help="How often to look where the system does not tell of changes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each session.")
@pass_settings
def view(
    settings: Settings,
    folder: str,
    session_ids: tuple[str, ...],
    follow: bool,
    show_all: bool,
    linearize: bool,
    poll_ms: int,
    as_json: bool,
) -> None:
    """Keep DIR/<session>.jsonl as plain, read-only files: all sessions, or those that are named.

    A file only grows, at its end, by whole lines; one that was touched or damaged is made again under its name, never
    written over. A second header line is left out, and so is an entry that was appended twice, byte for byte. Files of
    deleted and archived sessions are removed (a session that is named is shown, archived or not). DIR must be new,
    empty, or a view of this store. What can't be shown is named at the end, the rest is shown, and the exit code is 1.

    pi and OpenClaw take the last line for the leaf and walk back along `parentId`, so of two entries that answer the
    same one only the later stays in the model's context. With --linearize an entry whose writer could not know the one
    before it is shown as the answer to that; branches that were made on purpose stay.

    With --follow an append is in its file a moment later; Ctrl-C ends it with exit code 0, and what could not be shown
    is tried again. It prints what it did, and how many sessions it has still to look at.

    \b
    Examples:  shardstore view ~/transcripts
               shardstore view --follow ~/transcripts telegram:42
    """
    stop = threading.Event()
    shape = Linear if linearize else Readable
    with (
        open_store(settings) as store,
        DiskView(store, folder, sessions=session_ids, archived=show_all, new_shape=shape) as kept,
        stopping(stop),
    ):
        if follow:
            _follow(kept, stop, poll_ms, as_json=as_json)
            return
        outcomes = _refresh(kept, stop)
    if stop.is_set():
        raise KeyboardInterrupt
    _show_summary(outcomes, as_json=as_json)
    if any(outcome.error for outcome in outcomes):
        click.get_current_context().exit(EXIT_FAILED)


def _refresh(kept: DiskView, stop: threading.Event) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with progress_bar("sessions") as advance:
        for outcome in kept.refresh(stop=stop):
            outcomes.append(outcome)
            advance(len(outcomes), None)
    return outcomes


def _show_summary(outcomes: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        for outcome in outcomes:
            write_json(_document(outcome))
    else:
        rows = []
        for status in STATUSES:
            some = [outcome for outcome in outcomes if outcome.status == status]
            if some:
                lines, size = sum(item.lines for item in some), sum(item.written_bytes for item in some)
                rows.append([status, f"{len(some):,}", f"{lines:,}", show_size(size)])
        if rows:
            show_table(None, ["files", "number", "new lines", "written"], rows, shape="lrrr")
        else:
            write_line("no sessions")
    for outcome in outcomes:
        _complain(outcome)


def _follow(kept: DiskView, stop: threading.Event, poll_ms: int, *, as_json: bool) -> None:
    """Tell each state once, and what became of each session, until `stop` is set."""
    told: bool | None = None
    for turn in kept.follow(stop=stop, poll_ms=poll_ms):
        for outcome in turn.outcomes:
            _show_followed(outcome, turn.behind, as_json=as_json)
        if told is not (turn.behind == 0):
            told = turn.behind == 0
            _show_state(kept, turn.behind, as_json=as_json)
        flush()


def _show_state(kept: DiskView, behind: int, *, as_json: bool) -> None:
    if as_json:
        state = "catching up" if behind else "up to date"
        write_json({"state": state, "behind_sessions": behind, "files": kept.files, "notified": kept.notified})
    elif behind:
        write_line(f"catching up, {counted(behind, 'session')} behind")
    else:
        how = "told of changes by the system" if kept.notified else "polling"
        write_line(f"up to date, {counted(kept.files, 'file')}, {how}")


def _show_followed(outcome: Outcome, behind: int, *, as_json: bool) -> None:
    if as_json:
        write_json({**_document(outcome), "behind_sessions": behind})
    elif outcome.error is not None:
        _complain(outcome)
    else:
        added = f", {counted(outcome.lines, 'new line')}" if outcome.lines else ""
        waiting = f", {counted(behind, 'session')} behind" if behind else ""
        write_line(f"{visible(outcome.session)}: {outcome.status}{added}{waiting}")


def _complain(outcome: Outcome) -> None:
    if outcome.error is not None:
        complain(f"{outcome.session} is not shown: {words_of(outcome.error)}")


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "session": outcome.session,
        "status": outcome.status,
        "lines": outcome.lines,
        "written_bytes": outcome.written_bytes,
        "error": None if outcome.error is None else words_of(outcome.error),
    }


COMMANDS = [view]
