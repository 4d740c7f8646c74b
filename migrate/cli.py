"""The commands of `shardstore migrate` (also `shardstore-migrate`): plan, run, follow, list, check, export, undo.

Each is a few straight lines over a module of its own; errors rise to the runner of `shardstore`, which chooses codes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

import click

import shardstore
from shardstore.cli.app import Settings, run, stopping
from shardstore.cli.output import (
    complain,
    counted,
    flush,
    progress_bar,
    show_size,
    show_table,
    show_time,
    visible,
    write_json,
    write_line,
)

from . import back
from .catalog import Catalog, Entry, text_of
from .damage import KINDS
from .expanding import is_due
from .finding import Problem, find
from .following import Mirror
from .importing import Outcome
from .planning import FileFacts, Tally, inspect, tallied
from .running import import_files
from .sources import Found
from .words import document_of, end, json_option, open_store, paths_argument, reason_of

__all__ = ["main", "migrate"]

REPORT_HEAD = b'{\n "files": ['
NOTHING = "no transcripts found; name a file or a folder: shardstore migrate plan PATH"
LISTED_MAX = 20  # problems that are shown one by one without --json


@click.group("migrate", short_help="Bring transcripts of agents in, and back out.", invoke_without_command=True)
@click.option("--store", "store_path", metavar="DIR", help="The store's directory, as in `shardstore --store DIR`.")
@click.pass_context
def migrate(context: click.Context, store_path: str | None) -> None:
    """Bring in the transcripts that agents have written, byte for byte, while they go on writing; and take them back.

    Each file becomes a session, each of its lines a record with its kind (turn or event), its source (main,
    heartbeat, cron:…, hook:…, subagent:…) and its own time. Nothing is ever written to a source.

    \b
      shardstore migrate                  what there is, and what would happen; changes nothing
      shardstore migrate run              bring it in; run it again for what is new
      shardstore migrate follow           go on mirroring what the agents write, until Ctrl-C
      shardstore migrate check            compare store and files, line by line
      shardstore migrate export DIR       the files as they were: bytes, names, times
      shardstore migrate undo             remove imports that nobody has appended to

    OpenClaw, pi, Claude Code, Codex, Copilot CLI, Gemini CLI, Qwen Code and Factory are looked for where they keep
    their transcripts; any other file or folder of JSONL can be named.

    \b
    Example:  shardstore migrate && shardstore migrate run
    """
    if store_path is not None:
        context.obj = Settings(store_path=os.path.expanduser(store_path))
    if context.invoked_subcommand is None:
        context.invoke(plan, paths=())


def main() -> int:
    """Run `shardstore-migrate`."""
    return run(["migrate", *sys.argv[1:]])


def _find(paths: Sequence[str]) -> tuple[list[Found], list[Problem]]:
    return find(paths, home=os.path.expanduser("~"), environ=dict(os.environ))


# ------------------------------------------------------------------ plan


@migrate.command("plan")
@paths_argument
@click.option("--quick", is_flag=True, help="Do not read the files: no lines, no damage.")
@json_option
@click.pass_obj
def plan(settings: Settings, paths: tuple[str, ...], quick: bool = False, as_json: bool = False) -> None:
    """Show what there is to bring in, by agent, and what is damaged in it; change nothing.

    \b
    Examples:  shardstore migrate
               shardstore migrate plan ~/backup/openclaw
    """
    files, problems = _find(paths)
    known = _known(settings)
    with progress_bar("reading", total=sum(map(_size, files)), is_bytes=True) as advance:
        done = 0
        facts: list[FileFacts] = []
        for found in files:
            facts.append(inspect(found, known, quick=quick))
            done += facts[-1].size
            advance(done, None)
    if as_json:
        write_json({"files": [fact.document() for fact in facts], "problems": list(map(_document_of, problems))})
        return
    if not files:
        write_line(NOTHING)
    else:
        _show_tallies(tallied(facts), quick=quick)
        new = [fact for fact in facts if fact.status != "unchanged"]
        write_line(
            f"{len(new):,} of {counted(len(facts), 'file')} to bring in, "
            f"{show_size(sum(fact.size for fact in new))}. `shardstore migrate run` does it."
        )
    _show_problems(problems)


def _document_of(problem: Problem) -> dict[str, str]:
    return {"path": text_of(problem.path), "reason": problem.reason}


def _known(settings: Settings) -> dict[str, Entry]:
    try:
        with open_store(settings, create=False) as store:
            catalog = Catalog(store)
            catalog.refresh()
            return catalog.current()
    except shardstore.Deleted:
        raise
    except shardstore.NotFound:
        return {}


def _size(found: Found) -> int:
    try:
        return os.stat(found.path).st_size
    except OSError:
        return 0


def _show_tallies(tallies: Sequence[Tally], *, quick: bool) -> None:
    rows = [
        [
            tally.agent,
            f"{tally.sessions:,}",
            f"{tally.files:,}",
            f"{tally.new:,}",
            show_size(tally.size),
            "-" if quick else f"{tally.lines:,}",
            "-" if tally.turns is None else f"{tally.turns:,}",
            show_time(tally.newest_ms),
        ]
        for tally in tallies
    ]
    show_table(
        None, ["agent", "sessions", "files", "to bring in", "size", "lines", "turns", "newest"], rows, shape="lrrrrrrl"
    )
    _show_damage({kind: sum(tally.damage.get(kind, 0) for tally in tallies) for kind in KINDS})


def _show_damage(damage: dict[str, int]) -> None:
    rows = [[kind, f"{count:,}", KINDS[kind]] for kind, count in damage.items() if count]
    if rows:
        write_line("oddities, all of which are kept as they are:")
        show_table(None, ["what", "lines", "which is"], rows, shape="lr ")


def _show_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:LISTED_MAX]:
        complain(f"{problem.path}: {problem.reason}")
    if len(problems) > LISTED_MAX:
        complain(f"and {len(problems) - LISTED_MAX} more; --json lists all")


# ------------------------------------------------------------------ run, follow


@migrate.command("run")
@paths_argument
@click.option("--salvage", is_flag=True, help="Also rescue whole entries from damaged lines, into <session>.salvaged.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Processes to use [default: by the number of processors].")
@click.option("--report", "report_path", type=click.Path(dir_okay=False), help="A file for what became of each, JSON.")
@json_option
@click.pass_obj
def run_(
    settings: Settings, paths: tuple[str, ...], salvage: bool, jobs: int | None, report_path: str | None, as_json: bool
) -> None:
    """Bring in what is new. Run it again, also after it was interrupted: nothing comes twice, nothing is missing.

    A file counts as imported only when its session, read back from the store, is the file byte for byte. The lines of a
    compressed one (.jsonl.zst) become a session beside that, if `pip install 'shardstore[zstd]'` was run. A report
    replaces an earlier one, and no other file.

    \b
    Examples:  shardstore migrate run
               shardstore migrate run ~/.claude/projects --report report.json
    """
    files, problems = _find(paths)
    if report_path is not None:
        _make_place(report_path, files)
    total = sum(map(_size, files))
    with open_store(settings, create=True) as store, progress_bar("importing", total=total, is_bytes=True) as advance:
        outcomes = list(
            import_files(store, files, jobs=jobs, salvage=salvage, advance=lambda done: advance(done, total))
        )
    unexpanded = [outcome.path for outcome in outcomes if is_due(outcome) and outcome.error is None]
    document = {
        "files": list(map(document_of, outcomes)),
        "problems": list(map(_document_of, problems)),
        "unexpanded": list(map(text_of, unexpanded)),
    }
    if as_json:
        write_json(document)
    else:
        if files:
            _show_outcomes(outcomes)
        else:
            write_line(NOTHING)
        _show_unexpanded(unexpanded)
        _show_problems([*problems, *(Problem(o.path, reason_of(o.error)) for o in outcomes if o.error is not None)])
    if report_path is not None:
        _write_report(report_path, document)
    end(failed=any(outcome.error is not None for outcome in outcomes) or bool(problems))


def _make_place(path: str, files: Sequence[Found]) -> None:
    """Make the file of a report. Raises UsageError where anything but a report lies, OSError where none can be made."""
    real = os.path.realpath(path)
    if os.path.isfile(real):
        with open(real, "rb") as file:
            head = file.read(len(REPORT_HEAD))
        if head not in (b"", REPORT_HEAD) or any(found.path == real for found in files):
            raise click.UsageError(f"--report: this file is no report, and stays; name another: {visible(path)}")
    if os.path.isfile(real) or not os.path.exists(real):  # a pipe is opened once, when there is something to say
        open(real, "ab").close()


def _write_report(path: str, document: object) -> None:
    import json

    with open(path, "w", encoding="ascii") as file:
        json.dump(document, file, indent=1)
        file.write("\n")


def _show_unexpanded(paths: Sequence[str]) -> None:
    if paths:
        _show_problems([Problem(path, "imported, but not expanded") for path in paths])
        many = counted(len(paths), "compressed file")
        complain(f"to make readable sessions of {many}: pip install 'shardstore[zstd]', and run again")


def _show_outcomes(outcomes: Sequence[Outcome]) -> None:
    rows = []
    for status in ("imported", "grown", "moved", "unchanged", "failed"):
        some = [outcome for outcome in outcomes if outcome.status == status]
        if some:
            size, lines = sum(item.bytes_new for item in some), sum(item.lines_new for item in some)
            rows.append([status, f"{len(some):,}", show_size(size), f"{lines:,}"])
    show_table(None, ["files", "number", "new bytes", "new lines"], rows, shape="lrrr")
    damage = {kind: sum(o.entry.damage.get(kind, 0) for o in outcomes if o.entry and o.bytes_new) for kind in KINDS}
    _show_damage(damage)


@migrate.command("follow")
@paths_argument
@click.option("--poll-ms", type=click.IntRange(10, 3_600_000), default=1000, show_default=True,
              help="How often to look where the system does not tell of changes.")  # fmt: skip
@click.option("--once", is_flag=True, help="Mirror what there is and end.")
@json_option
@click.pass_obj
def follow(settings: Settings, paths: tuple[str, ...], poll_ms: int, once: bool, as_json: bool) -> None:
    """Go on mirroring files while agents write them, until Ctrl-C; it goes on where it stopped.

    Whole lines only: one without its newline yet waits for it. A file that is truncated or replaced begins a new
    session (`<id>~2`), one that is renamed keeps its session. Ctrl-C ends it when the file at hand is done, with exit
    code 0; a second one at once. With --once the exit code is 1 if anything failed. `sessions.json` is left to `run`.
    """
    stop = threading.Event()
    failed = False
    with open_store(settings, create=True) as store, stopping(stop):
        mirror = Mirror(store, Catalog(store), paths, home=os.path.expanduser("~"), environ=dict(os.environ))
        try:
            for turn in mirror.rounds(stop=stop, poll_ms=poll_ms):
                for outcome in turn.outcomes:
                    _show_followed(outcome, turn.behind_bytes, as_json=as_json)
                _show_problems(turn.problems)
                failed = bool(turn.problems) or any(outcome.status == "failed" for outcome in turn.outcomes)
                flush()
                if once:
                    break
        finally:
            mirror.close()
    end(failed=once and failed)


def _show_followed(outcome: Outcome, behind_bytes: int, *, as_json: bool) -> None:
    if as_json:
        write_json({**document_of(outcome), "behind_bytes": behind_bytes})
        return
    behind = f", {show_size(behind_bytes)} behind" if behind_bytes else ""
    words = f"{outcome.status}, {counted(outcome.lines_new, 'new line')}{behind}"
    reason = f": {reason_of(outcome.error)}" if outcome.error is not None else ""
    write_line(f"{visible(outcome.path)}: {words}{reason}")


for command in back.COMMANDS:
    migrate.add_command(command)
