"""The command `demo`: runs `shardstore.demo` and tells what happened while it happens, then what was lost."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict

import click

from shardstore.cli.app import EXIT_FAILED
from shardstore.cli.documents import of_files, of_finding
from shardstore.cli.findings import show_findings, verdict
from shardstore.cli.output import (
    Advance,
    counted,
    flush,
    progress_bar,
    show_size,
    show_table,
    visible,
    write_json,
    write_line,
)
from shardstore.demo import Event, Options, Outcome, Report, Schedule, Timing, Watcher, run_demo

__all__ = ["COMMANDS"]


@click.command("demo", short_help="See a fence lose turns, and shardstore keep them.")
@click.argument("transcript", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False), help="Work in this empty folder, not in a new temporary one."
)
@click.option(
    "--turns", type=click.IntRange(1, 50), default=6, show_default=True, help="How many turns to live through."
)
@click.option("--call", "call_s", type=click.FloatRange(0.05, 60), default=1.5, show_default=True, metavar="SECONDS",
              help="How long a model call takes.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="For the transcript made without TRANSCRIPT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, when all is over.")
def demo(transcript: str | None, folder: str | None, turns: int, call_s: float, seed: int, as_json: bool) -> None:
    """Live through one schedule twice, at the same time: on a fenced .jsonl, and on shardstore.

    Slow model calls answer a transcript's turns, while a heartbeat, a cron job, a hook, a delivery mirror and a second
    message land in the same session. One side is a plain file with a lock and a fingerprint, as agent gateways have
    it; the other is a shardstore session, with a compactor at work. Every lane is a process. What was lost is counted
    by reading what lies there at the end. TRANSCRIPT is only read; without one, a transcript is made.

    The files stay where the last lines say. Exit code 1: shardstore lost something, or its files are damaged.

    \b
    Examples:  shardstore demo
               shardstore demo ~/.claude/projects/x/session.jsonl --dir /tmp/look
    """
    timing = Timing(turns=turns, call_s=call_s)
    options = Options(transcript=transcript, folder=folder, seed=seed, timing=timing)
    if as_json:
        with progress_bar("seconds") as advance:
            report = run_demo(options, watcher=_Clock(advance))
        write_json(_document(report))
    else:
        report = run_demo(options, watcher=_Teller())
        _show_report(report)
    ours = report.shardstore
    whole = ours.turns_lost == 0 and ours.history_intact and ours.acknowledged_missing == 0
    if (
        not whole
        or any(tenant.kept < tenant.written for tenant in ours.tenants)
        or any(finding.severity == "damage" for finding in report.findings)
    ):
        click.get_current_context().exit(EXIT_FAILED)


class _Teller(Watcher):
    """Tells what happens as it happens, a line for each thing that a lane did."""

    def on_start(self, schedule: Schedule) -> None:
        """Say what will be lived through."""
        turns = sum(len(lane.turns) for lane in schedule.lanes)
        timing = schedule.timing
        write_line(
            f"{counted(turns, 'turn')} on {counted(len(schedule.history), 'line')} of history, model calls of "
            f"{timing.call_s:g} s, about {schedule.end_s:.0f} s in all; "
            f"{len(schedule.lanes)} processes a side, and a compactor"
        )
        flush()

    def on_event(self, event: Event) -> None:
        """Say what a lane did; how often the compactor was at work is in the table."""
        if event.what != "compacted":
            write_line(_tell(event))
            flush()


class _Clock(Watcher):
    """Moves a progress bar."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._end_s = 0

    def on_start(self, schedule: Schedule) -> None:
        """Learn how long it will take."""
        self._end_s = round(schedule.end_s)

    def on_tick(self, elapsed_s: float) -> None:
        """Move the bar."""
        self._advance(min(round(elapsed_s), self._end_s), self._end_s)


def _tell(event: Event) -> str:
    """Return one line about a message, a reply or an entry."""
    where = f"{event.at_s:5.1f} s  {event.side:<10}  {visible(event.source):<18}"
    what = {"message": f"message {event.turn + 1}", "reply": f"reply {event.turn + 1}.{event.call + 1}"}
    name = what.get(event.what, "entry")
    if not event.refused:
        return f"{where}  {name} written"
    cost = f", {event.tokens:,} tokens" if event.tokens is not None else ""
    reason = visible((event.error or "").partition(":")[0])
    return f"{where}  {name} REFUSED ({event.refused} of {len(event.lines)} writes{cost}): {reason}"


def _show_report(report: Report) -> None:
    """Print what was lost and kept, whether the store is sound, and where to look."""
    write_line("")
    fence, ours = report.fence, report.shardstore
    theirs, mine = _facts(fence), _facts(ours)
    rows = [[name, theirs.get(name, "-"), fact] for name, fact in mine.items()]
    show_table("what each side kept", ["", "lock and fingerprint", "shardstore"], rows, shape=" rr")
    for error, count in fence.errors.items():
        write_line(f"lock and fingerprint, {counted(count, 'time')}: {visible(error)}")
    for error, count in ours.errors.items():
        write_line(f"shardstore, {counted(count, 'time')}: {visible(error)}")
    _show_where(report)


def _facts(outcome: Outcome) -> dict[str, str]:
    """Return one side's column."""
    tokens = "not known"
    if outcome.tokens_lost is not None:
        tokens = f"{outcome.tokens_lost:,} of {outcome.tokens_finished:,}"
    return {
        "turns whole": f"{outcome.turns_kept} of {outcome.turns}",
        "turns lost": str(outcome.turns_lost),
        "model calls finished": f"{outcome.replies_finished} of {outcome.replies}",
        "finished replies lost": str(outcome.replies_lost),
        "output tokens lost": tokens,
        "model time lost": f"{outcome.model_lost_s:.1f} s of {outcome.model_s:.1f} s",
        "writes refused": str(outcome.refused_writes),
        "acknowledged, yet missing": str(outcome.acknowledged_missing),
        "history untouched": "yes" if outcome.history_intact else "NO",
        "slowest write": f"{outcome.slowest_write_ms:.1f} ms",
        "compactions meanwhile": str(outcome.compactions),
        "time": f"{outcome.elapsed_s:.1f} s",
        **{f"{tenant.source} entries": f"{tenant.kept} of {tenant.written}" for tenant in outcome.tenants},
    }


def _show_where(report: Report) -> None:
    """Print the verdict on the store, its files, and commands to look at them with."""
    show_findings(report.findings)
    damaged = any(finding.severity == "damage" for finding in report.findings)
    write_line(f"verify: {verdict(report.findings)}" + ("" if damaged else ", every byte was read"))
    write_line(f"files, under {visible(report.store_path)}")
    for path, size_bytes in report.files:
        write_line(f"  {show_size(size_bytes):>10}  {visible(path)}")
    store = f"shardstore --store {shlex.quote(report.store_path)}"
    write_line("look at them")
    write_line(f"  {store} show {report.session}")
    write_line(f"  {store} cat {report.session} --exclude-source heartbeat")
    shards = [path for path, _ in report.files if path.endswith(".shard")]
    if shards:
        write_line(f"  tail -n +2 {shlex.quote(os.path.join(report.store_path, shards[-1]))}")
    write_line(f"  tail -n 5 {shlex.quote(report.fence_file)}")
    write_line(f"  rm -r {shlex.quote(report.folder)}    when done")


def _document(report: Report) -> dict[str, object]:
    """The JSON document."""
    sides = {
        name: {**asdict(outcome), "turns_lost": outcome.turns_lost, "replies_lost": outcome.replies_lost}
        for name, outcome in (("fence", report.fence), ("shardstore", report.shardstore))
    }
    return {
        **sides,
        "verify": [of_finding(finding) for finding in report.findings],
        "folder": report.folder,
        "fence_file": report.fence_file,
        "store": report.store_path,
        "session": report.session,
        "history_lines": report.history_lines,
        "files": of_files(report.files),
    }


COMMANDS = [demo]
