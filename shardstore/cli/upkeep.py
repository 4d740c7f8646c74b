"""Commands that look after a store: compact, verify, backup. All of them run beside writers and readers."""

from __future__ import annotations

import time

import click

import shardstore
from shardstore.cli.app import EXIT_FAILED, Settings, open_store, pass_settings
from shardstore.cli.documents import of_compaction, of_finding
from shardstore.cli.findings import show_findings, verdict
from shardstore.cli.output import (
    complain,
    counted,
    flush,
    note,
    progress_bar,
    show_size,
    visible,
    write_json,
    write_line,
)

__all__ = ["COMMANDS"]


@click.command("compact", short_help="Gather loose records into segments.")
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option("--watch", is_flag=True, help="Go on for ever, every --interval seconds, until Ctrl-C.")
@click.option("--interval", "interval_s", type=click.FloatRange(min=0.1, max=86_400), default=5.0, show_default=True,
              metavar="SECONDS", help="How long --watch rests between two rounds.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each session compacted.")
@pass_settings
def compact(settings: Settings, session_id: str | None, watch: bool, interval_s: float, as_json: bool) -> None:
    """Gather loose records into segments, so that long sessions load fast.

    Nobody waits for it: writers append and readers read meanwhile, and killing it at any moment leaves a correct
    store. A session that another process is compacting is passed over. Long-lived writers compact by themselves;
    --watch is for those who would rather have a process for it. Without SESSION: every session; one that can't be
    compacted is told at the end, with exit code 1; --watch tells it and goes on.

    \b
    Examples:  shardstore compact
               shardstore compact --watch --interval 30
    """
    with open_store(settings) as store:
        while True:
            with progress_bar("compacting") as advance:
                if session_id is None:
                    reports = store.compact(on_progress=advance)
                else:
                    reports = [store.session(session_id, create=False).compact(on_progress=advance)]
            _print_compactions(reports, quiet=watch, as_json=as_json)
            if not watch:
                click.get_current_context().exit(EXIT_FAILED if any(report.error for report in reports) else 0)
            flush()
            time.sleep(interval_s)


def _print_compactions(reports: list[shardstore.CompactReport], *, quiet: bool, as_json: bool) -> None:
    """Print what was done; a watcher stays silent about sessions in which there was nothing to do."""
    for report in reports:
        if quiet and not report.records and not report.swept and not report.error:
            continue
        if as_json:
            write_json(of_compaction(report))
        elif report.error:
            complain(f"{report.session}: {report.error}")
        elif report.skipped:
            write_line(f"{visible(report.session)}: passed over, another process is compacting it")
        elif not report.records and not report.swept:
            write_line(f"{visible(report.session)}: nothing to compact")
        else:
            work = f"{counted(report.records, 'record')}, {show_size(report.bytes)}, {_removed(report.swept)}"
            write_line(f"{visible(report.session)}: compacted up to record {report.watermark:,} ({work})")
    if not reports and not quiet and not as_json:
        write_line("no sessions")


def _removed(swept: int) -> str:
    return f"{counted(swept, 'file')} removed"


@click.command("verify", short_help="Read every byte and name every damage.")
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option("--repair", is_flag=True, help="Mend what can be mended, then verify again. Stop the writers first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@pass_settings
def verify(settings: Settings, session_id: str | None, repair: bool, as_json: bool) -> None:
    """Read every byte of the store, or of one session, and name every damage.

    Exit code 0: every record that was acknowledged is there and is what was written, or was marked `lost` by an earlier
    --repair. Exit code 1: damage remains. Notes are no damage: records marked `lost`, which stay so, and files that the
    next compaction removes. --repair never removes a record that can still be read; where one can't, it puts a `lost`
    record in its place (`cat --records` shows them) and keeps the damaged file in the session's folder `damaged`.

    \b
    Example:  shardstore verify && shardstore backup /mnt/backup/today
    """
    with _open_damaged(settings) if repair else open_store(settings) as store:
        if session_id is not None and session_id not in store.ids():
            raise shardstore.NotFound(f"no such session session={session_id!r}")
        target = store if session_id is None else store.session(session_id, create=False)
        done = target.repair() if repair else []
        with progress_bar("verifying") as advance:
            found = store.verify(on_progress=advance) if session_id is None else target.verify()
    damages = [finding for finding in found if finding.severity == "damage"]
    if as_json:
        document = {"ok": not damages, "findings": [of_finding(finding) for finding in found]}
        write_json({**document, "repairs": [of_finding(finding) for finding in done]})
    else:
        show_findings(finding for finding in done if finding.repaired)
        show_findings(found)
        write_line(verdict(found))
    if damages:
        click.get_current_context().exit(EXIT_FAILED)


def _open_damaged(settings: Settings) -> shardstore.Store:
    """Open a store that is to be repaired; its store.json is made again if that is what is damaged."""
    try:
        return open_store(settings)
    except shardstore.Corrupt:
        if shardstore.repair_store(settings.store_path):
            note("store.json was missing or damaged and has been made again")
        return open_store(settings)


@click.command("backup", short_help="Copy the store while it is in use.")
@click.argument("target", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@pass_settings
def backup(settings: Settings, target: str, as_json: bool) -> None:
    """Copy the store into TARGET (absent or an empty folder) while it is in use.

    The copy is a correct store: each session in it is a prefix of the original that holds everything acknowledged
    before its copying began. A plain `cp -r` does not promise that: it may catch an old manifest and files that are
    newer.

    \b
    Example:  shardstore backup /mnt/backup/2026-01-31
    """
    with open_store(settings) as store, progress_bar("copying") as advance:
        sessions = store.backup(target, on_progress=advance)
    if as_json:
        write_json({"target": target, "sessions": sessions})
    else:
        write_line(f"{counted(sessions, 'session')} copied to {visible(target)}")


COMMANDS = [compact, verify, backup]
