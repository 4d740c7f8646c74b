"""The commands of `python -m benchmarks`: run, compare, plot, list."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, tables
from benchmarks.results import Described, Result, save
from benchmarks.running import perform, steps
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.workloads import WORKLOADS, Scale, Workload

__all__ = ["main"]

VOLATILE = ("tmpfs", "ramfs")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure shardstore beside what a user would pick instead."""


def _some(known: Sequence[str], wanted: tuple[str, ...], what: str) -> list[str]:
    for name in wanted:
        if name not in known:
            raise click.UsageError(f"no {what} is called {name}; there are: {', '.join(known)}")
    return [name for name in known if name in wanted or not wanted]


@main.command("run")
@click.option("--quick", "scale", flag_value="quick", help="Under 90 seconds: rough.")
@click.option("--usual", "scale", flag_value="usual", default="usual", help="The default.")
@click.option("--full", "scale", flag_value="full", help="Under 20 minutes: everything, with steady medians.")
@click.option("--workload", "-w", "workloads", multiple=True, metavar="NAME", help="Only this; may be repeated.")
@click.option("--subject", "-s", "subjects", multiple=True, metavar="NAME", help="Only this; may be repeated.")
@click.option("--dir", "folder", default=".", type=click.Path(exists=True, file_okay=False),
              help="Where to work: on the disk that is to be measured.  [default: here]")  # fmt: skip
@click.option("--out", "-o", type=click.Path(dir_okay=False), help="Write everything that was measured as JSON.")
def run(scale: Scale, workloads: tuple[str, ...], subjects: tuple[str, ...], folder: str, out: str | None) -> None:
    """Measure, check, and print a table."""
    kind = machine.filesystem(folder)
    if kind in VOLATILE:
        raise click.UsageError(f"{folder} lies on {kind}, where a flush costs nothing; choose one on a disk with --dir")
    chosen = [WORKLOADS[name] for name in _some(list(WORKLOADS), workloads, "workload")]
    wanted = [SUBJECTS[name] for name in _some(list(SUBJECTS), subjects, "subject")]
    missing = {one.name: reason for one in wanted if (reason := one.missing())}
    result = _result(chosen, wanted, missing, folder)
    todo = steps(chosen, [one for one in wanted if one.name not in missing], scale)
    _perform(result, todo, folder)
    if out:
        save(result, out)
    tables.show(result, Console())
    if any(row.failed for row in result.rows):
        sys.exit(1)


def _result(chosen: list[Workload], wanted: list[Subject], missing: dict[str, str], folder: str) -> Result:
    return Result(
        command=" ".join(["python -m benchmarks", *_words()]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine.facts(folder),
        workloads=[Described(one.name, one.label, figures=list(one.figures)) for one in chosen],
        subjects=[Described(one.name, one.label, is_durable=one.durable) for one in wanted],
        missing=missing,
        cannot={one.name: {who.name: why for who in wanted if (why := one.why_not(who))} for one in chosen},
    )


def _words() -> list[str]:
    """Return the command line without folder and file, which are of no use elsewhere."""
    words = sys.argv[1:]
    for option in ("--dir", "--out", "-o"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return words


def _perform(result: Result, todo: Sequence[object], folder: str) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(todo))
        for row in perform(todo, os.path.abspath(folder), lambda step: progress.update(task, description=step.label)):  # type: ignore[arg-type]
            result.rows.append(row)
            progress.advance(task)


@main.command("list")
def list_() -> None:
    """List workloads and subjects, and what is missing here."""
    console = Console()
    for workload in WORKLOADS.values():
        console.print(f"[bold]{workload.name}[/]  {workload.label}")
    console.print()
    for subject in SUBJECTS.values():
        missing = subject.missing()
        console.print(f"[bold]{subject.name}[/]  {subject.label}" + (f"  (missing: {missing})" if missing else ""))
