"""The commands of `python -m benchmarks`: run, show, compare, plot, list."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import comparing, machine, tables
from benchmarks.results import Described, Result, load, save
from benchmarks.running import perform, steps
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.workloads import WORKLOADS, Scale, Workload

__all__ = ["main"]

VOLATILE = ("tmpfs", "ramfs")
QUICK_WORKLOADS = ("append", "writers", "turns", "follow", "load", "last", "readback", "footprint", "growth")
QUICK_SUBJECTS = ("shardstore", "shardstore-unsynced", "jsonl", "jsonl-unsynced", "gateway-fence", "sqlite-full",
                  "sqlite-normal", "lmdb", *(one.name for one in SUBJECTS.values() if one.is_floor))  # fmt: skip
WIDTH = 100  # characters of a table where nobody says how many there are


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure shardstore beside what a user would pick instead."""


def _some(known: Sequence[str], wanted: tuple[str, ...], what: str) -> list[str]:
    for name in wanted:
        if name not in known:
            raise click.UsageError(f"no {what} is called {name}; there are: {', '.join(known)}")
    return [name for name in known if name in wanted or not wanted]


@main.command("run")
@click.option("--quick", "scale", flag_value="quick", help="Under 90 seconds: rough, and not everything.")
@click.option("--usual", "scale", flag_value="usual", default="usual", help="The default.")
@click.option("--full", "scale", flag_value="full", help="About 20 minutes: everything.")
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
    quick = scale == "quick"
    chosen = [WORKLOADS[name] for name in _some(list(WORKLOADS), workloads or QUICK_WORKLOADS * quick, "workload")]
    wanted = [SUBJECTS[name] for name in _some(list(SUBJECTS), subjects or QUICK_SUBJECTS * quick, "subject")]
    missing = {one.name: reason for one in wanted if (reason := one.missing(folder))}
    with _told():
        if out:
            open(out, "ab").close()
    result = _result(chosen, wanted, missing, folder)
    todo = steps(chosen, [one for one in wanted if one.name not in missing], scale)
    with _told():
        _perform(result, todo, folder)
    tables.show(result, _console())
    if out:
        save(result, out)
    if quick and not (workloads and subjects):
        click.echo("--quick leaves workloads and subjects out; see `list`, and name them with -w and -s", err=True)
    if any(row.failed for row in result.rows):
        sys.exit(1)


@contextmanager
def _told() -> Iterator[None]:
    """Tell of a file or a folder that can't be used."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _result(chosen: list[Workload], wanted: list[Subject], missing: dict[str, str], folder: str) -> Result:
    return Result(
        command=" ".join(["python -m benchmarks", *_words()]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine.facts(folder),
        workloads=[Described(one.name, one.label, figures=list(one.figures)) for one in chosen],
        subjects=[Described(one.name, one.label, is_durable=one.durable, is_floor=one.is_floor) for one in wanted],
        missing=missing,
        cannot={
            one.name: {who.name: why for who in wanted if not who.is_floor and (why := one.why_not(who))}
            for one in chosen
        },
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


def _loaded(path: str) -> Result:
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@main.command("show")
@click.argument("result", type=click.Path(dir_okay=False))
@click.option("--markdown", is_flag=True, help="As Markdown, for a README.")
@click.option("--details", is_flag=True, help="All figures of each case, also where a workload has a curve of them.")
@click.option("--workload", "-w", "workloads", multiple=True, metavar="NAME", help="Only this; may be repeated.")
def show(result: str, markdown: bool, details: bool, workloads: tuple[str, ...]) -> None:
    """Print a saved result."""
    found = _loaded(result)
    names = _some([one.name for one in found.workloads], workloads, "workload")
    found.workloads = [one for one in found.workloads if one.name in names]
    if markdown:
        click.echo(tables.markdown(found, details=details), nl=False)
    else:
        tables.show(found, _console(), details=details)


@main.command("compare")
@click.argument("before", type=click.Path(dir_okay=False))
@click.argument("now", type=click.Path(dir_okay=False))
@click.option("--threshold", default=10.0, show_default=True, type=click.FloatRange(min=0), metavar="PERCENT",
              help="How much worse is bad; then the exit status is 1.")  # fmt: skip
@click.option("--subject", "-s", "subjects", multiple=True, metavar="NAME", help="Only this; may be repeated.")
@click.option("--anyway", is_flag=True, help="Compare results of different machines or filesystems, too.")
def compare(before: str, now: str, threshold: float, subjects: tuple[str, ...], anyway: bool) -> None:
    """Tell what changed from one saved result to another, what got worse first."""
    old, new = _loaded(before), _loaded(now)
    differing = comparing.strangers(old, new)
    if differing and not anyway:
        facts = "\n  ".join(differing)
        raise click.UsageError(f"the results are of different machines (--anyway compares them):\n  {facts}")
    _some([one.name for one in new.subjects], subjects, "subject")
    for one in (old, new):
        one.rows = [row for row in one.rows if not subjects or row.subject in subjects]
    found = comparing.changes(old, new)
    comparing.show(old, new, found, threshold / 100, _console())
    if any(one.is_regression(threshold / 100) for one in found):
        sys.exit(1)


@main.command("plot")
@click.argument("result", type=click.Path(dir_okay=False))
@click.option("--out", "folder", required=True, type=click.Path(file_okay=False), help="Where the files go.")
def plot(result: str, folder: str) -> None:
    """Draw a saved result as SVG and PNG."""
    from benchmarks import plots

    try:
        with _told():
            drawn = plots.draw(_loaded(result), folder)
    except plots.MatplotlibMissingError as error:
        raise click.ClickException(str(error)) from error
    for path in drawn:
        click.echo(path)


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
