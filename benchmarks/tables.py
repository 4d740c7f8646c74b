"""A result as tables: in the terminal, or as Markdown; one for each workload and case, subjects below each other.

Rule: a speed without a clean check is printed as such: struck, marked and told below. Ratios are to shardstore of the
same kind, durable or not, and never between the two. What failed or is missing is told.
Strategy: tables are made as text first, and then shown in either way. Where a workload has a curve of cases, its
subjects' main figure and p99 stand side by side, a column a case, unless details are asked for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from benchmarks.results import FLOORED, Described, Figure, Result
from benchmarks.wording import heading, is_better, is_speed, ratio_words, shown, verdict

__all__ = ["markdown", "show"]

MARK = "✗"
CURVE_CASES = 3  # from which on a workload with places on a curve gets one table
LABEL_CHARACTERS = (36, 30, 24)  # of the column of subjects: the first with which a table fits
TOLD_CHARACTERS = 24  # of what a check found, within a table
SECTIONS = {True: "durable", False: "unsynced"}
X_FLOOR = (
    "x floor: the time of an append, over all processes, as a multiple of the bare system calls of one file by one"
)
_COLOURS = {None: "", True: "green", False: "red"}


@dataclass(frozen=True, slots=True)
class Line:
    """A subject's line of a table: its cells, of which some are struck for want of a clean check."""

    cells: list[str]
    is_durable: bool
    is_floor: bool = False
    colours: dict[int, str] = field(default_factory=dict)
    struck: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text."""

    title: str
    columns: list[str]
    lines: list[Line]
    footers: list[str]


def show(result: Result, console: Console, *, details: bool = False) -> None:
    """Print all tables."""
    for sheet in _sheets(result, details=details):
        for table in _fitting(sheet, console):
            console.print()
            console.print(table)
        for footer in sheet.footers:
            console.print(Text(footer, style="red" if footer.startswith(MARK) else "dim"))
    console.print()
    for told in _told(result):
        console.print(told, markup=False, highlight=False)


def _fitting(sheet: Sheet, console: Console) -> list[Table]:
    """Return a table that is not too wide, or if there is none, two with half the columns each."""
    wide = console.options.update(width=10 * console.width)  # or nothing would be found too wide
    for label in LABEL_CHARACTERS:
        table = _drawn(sheet, label)
        if console.measure(table, options=wide).minimum <= console.width:
            return [table]
    last, middle = len(sheet.columns) - 1, len(sheet.columns) // 2
    parts = ([*range(middle), last], [0, *range(middle, last)])
    return [_drawn(_part(sheet, kept), LABEL_CHARACTERS[0]) for kept in parts]


def _part(sheet: Sheet, kept: list[int]) -> Sheet:
    """Return a table with some of the columns."""
    lines = [
        replace(
            line,
            cells=[line.cells[at] for at in kept],
            colours={new: line.colours[at] for new, at in enumerate(kept) if at in line.colours},
            struck=frozenset(new for new, at in enumerate(kept) if at in line.struck),
        )
        for line in sheet.lines
    ]
    return replace(sheet, columns=[sheet.columns[at] for at in kept], lines=lines)


def markdown(result: Result, *, details: bool = False) -> str:
    """Return all tables as Markdown, with the machine's facts and the command."""
    blocks = [_facts(result)]
    for sheet in _sheets(result, details=details):
        sides = ["---" if column == "check" else "---:" for column in sheet.columns[1:]]
        rows = [sheet.columns, ["---", *sides]]
        for durable in (True, False):
            lines = [line for line in sheet.lines if line.is_durable == durable]
            if lines:
                rows.append([f"**{SECTIONS[durable]}**", *[""] * (len(sheet.columns) - 1)])
                rows += [_struck(line) for line in lines]
        blocks.append(f"**{sheet.title}**")
        blocks.append(
            "\n".join(
                "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in rows
            )
        )
        blocks += sheet.footers
    told = [f"- {one}" for one in _told(result)]
    return "\n\n".join([*blocks, "\n".join(told)] if told else blocks) + "\n"


def _struck(line: Line) -> list[str]:
    return [f"~~{cell}~~" if at in line.struck and cell else cell for at, cell in enumerate(line.cells)]


def _facts(result: Result) -> str:
    facts = result.machine
    system = ", ".join(facts[name] for name in ("processor", "memory", "filesystem", "system") if name in facts)
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "sqlite") if name in facts)
    return f"`{result.command}`, {result.date[:10]}: {system}; {versions}."


def _drawn(sheet: Sheet, label: int) -> Table:
    table = Table(
        title=sheet.title,
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for at, column in enumerate(sheet.columns):
        justify: JustifyMethod = "left" if at == 0 or column == "check" else "right"
        words = column.replace(" ", "\n")
        table.add_column(words, justify=justify, no_wrap=at > 0, vertical="top", min_width=0 if at else label)
    for durable in (True, False):
        lines = [line for line in sheet.lines if line.is_durable == durable]
        if lines:
            table.add_row(Text(SECTIONS[durable], style="italic cyan"))
        for line in lines:
            table.add_row(*(_cell(line, at, label) for at in range(len(line.cells))))
    return table


def _cell(line: Line, at: int, label: int) -> Text:
    cell = line.cells[at]
    if at in line.struck and cell:
        return Text(cell, style="strike red")
    style = line.colours.get(at, "")
    if at == 0:
        style = "dim" if line.is_floor else "bold" if cell.startswith("shardstore") else ""
        cell = textwrap.fill(cell, label, initial_indent="  ", subsequent_indent="    ")
    return Text(cell, style=style)


# -------------------------------------------------------------- what stands in them


def _sheets(result: Result, *, details: bool) -> Iterator[Sheet]:
    for workload in result.workloads:
        cases = result.cases(workload.name)
        is_curve = len(cases) >= CURVE_CASES and all(row.x is not None for row in result.rows_of(workload.name))
        if is_curve and is_speed(workload.figures[0]) and not details:
            tails = [one for one in workload.figures[1:] if one.name.endswith("p99")][:1]
            yield from (_curve(result, workload, figure, cases) for figure in (workload.figures[0], *tails))
            if _has_floor(result, workload.name, cases):
                yield _floor_curve(result, workload, cases)
        else:
            yield from (_case(result, workload, case) for case in cases)


def _title(result: Result, workload: Described, what: str, case: str | None = None) -> str:
    rounds = len({row.round for row in result.rows_of(workload.name, case)})
    return f"{workload.name} · {workload.label}: {what}" + (f" (median of {rounds} rounds)" if rounds > 1 else "")


def _has_floor(result: Result, workload: str, cases: Iterable[str]) -> bool:
    return any(result.times_floor(workload, case, one.name) for case in cases for one in result.subjects)


def _times(times: float | None) -> str:
    return "" if times is None else f"{times:,.2f}" if times < 100 else f"{times:,.0f}"


def _case(result: Result, workload: Described, case: str) -> Sheet:
    rows = list(result.rows_of(workload.name, case))
    main, *others = [
        one for one in workload.figures if any(one.name in row.figures for row in rows)
    ] or workload.figures
    has_floor = _has_floor(result, workload.name, [case])
    floor = ["x floor"] if has_floor else []
    columns = ["", heading(main), "than shardstore", *map(heading, others), *floor, "check"]
    lines = []
    for subject in _present(result, workload.name, [case]):
        who = (workload.name, case, subject.name)
        cells = [subject.label, _marked(result, *who, main), _ratio(result, *who, main)]
        cells += [shown(result.median(*who, one.name), one.unit) for one in others]
        cells += [_times(result.times_floor(*who))] if has_floor else []
        struck = frozenset() if _is_clean(result, *who) else frozenset(range(1, len(cells)))
        colour = _COLOURS[is_better(*_beside(result, *who, main), main)]
        lines.append(Line([*cells, _outcome(result, *who)], subject.is_durable, subject.is_floor, {2: colour}, struck))
    footers = [X_FLOOR, *_own_floor(result, workload.name, case)] if has_floor else []
    footers = [*_unclean(result, workload.name, [case]), *footers, *_notes(result, workload.name, [case])]
    return Sheet(_title(result, workload, case, case), columns, lines, footers)


def _curve(result: Result, workload: Described, figure: Figure, cases: list[str]) -> Sheet:
    lines = []
    for subject in _present(result, workload.name, cases):
        cells, struck = [subject.label], []
        for at, case in enumerate(cases, 1):
            who = (workload.name, case, subject.name)
            value, words = _marked(result, *who, figure), _ratio(result, *who, figure)
            cells.append(f"{value}\n{words}" if words else value)
            struck += [] if _is_clean(result, *who) else [at]
        lines.append(Line(cells, subject.is_durable, subject.is_floor, struck=frozenset(struck)))
    unclean = list(_unclean(result, workload.name, cases))
    footers = ["below each figure: than shardstore" + ("" if unclean else "; all checks clean"), *unclean]
    footers += _notes(result, workload.name, cases)
    return Sheet(_title(result, workload, heading(figure)), ["", *cases], lines, footers)


def _floor_curve(result: Result, workload: Described, cases: list[str]) -> Sheet:
    lines = []
    for subject in _present(result, workload.name, cases):
        times = [_times(result.times_floor(workload.name, case, subject.name)) for case in cases]
        lines.append(Line([subject.label, *times], subject.is_durable))
    return Sheet(_title(result, workload, "x floor"), ["", *cases], lines, [X_FLOOR])


def _present(result: Result, workload: str, cases: Iterable[str]) -> Iterator[Described]:
    for subject in result.subjects:
        if any(True for case in cases for _ in result.rows_of(workload, case, subject.name)):
            yield subject


def _ours(result: Result, subject: str) -> str:
    durable = next(one.is_durable for one in result.subjects if one.name == subject)
    return "shardstore" if durable else "shardstore-unsynced"


def _marked(result: Result, workload: str, case: str, subject: str, figure: Figure) -> str:
    """Return a median as it is shown, with a mark if its check was not clean."""
    value = shown(result.median(workload, case, subject, figure.name), figure.unit)
    return f"{value} {MARK}" if value and not _is_clean(result, workload, case, subject) else value


def _ratio(result: Result, workload: str, case: str, subject: str, figure: Figure) -> str:
    theirs, ours = _beside(result, workload, case, subject, figure)
    return ratio_words(theirs, ours, figure)


def _beside(
    result: Result, workload: str, case: str, subject: str, figure: Figure
) -> tuple[float | None, float | None]:
    """Return a subject's median and shardstore's of the same durability; of shardstore itself, nothing."""
    ours = _ours(result, subject)
    if ours == subject:
        return None, None
    return result.median(workload, case, subject, figure.name), result.median(workload, case, ours, figure.name)


def _own_floor(result: Result, workload: str, case: str) -> Iterator[str]:
    """Tell how far shardstore is from the bare system calls of its own way, which is a file for each record."""
    for end in ("", "-unsynced") if workload == FLOORED else ():
        times = result.times_floor(workload, case, f"shardstore{end}", floor=f"floor-record{end}")
        if times is not None:
            label = next(one.label for one in result.subjects if one.name == f"shardstore{end}")
            yield f"{label}: {times:.2f} x the time of its own bare system calls (a file a record)"


def _is_clean(result: Result, workload: str, case: str, subject: str) -> bool:
    check = result.check(workload, case, subject)
    return check is not None and check.is_clean


def _outcome(result: Result, workload: str, case: str, subject: str) -> str:
    rows = list(result.rows_of(workload, case, subject))
    failed = [row.failed for row in rows if row.failed]
    if len(failed) == len(rows) and failed:
        return "failed"
    if not any(row.figures for row in rows) and rows[0].note:
        return "no figure"
    words = verdict(result.check(workload, case, subject))[:TOLD_CHARACTERS]
    return f"{words}, {len(failed)} of {len(rows)} failed" if failed else words


def _unclean(result: Result, workload: str, cases: Iterable[str]) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for case in cases:
        for subject in _present(result, workload, [case]):
            who = (workload, case, subject.name)
            if any(row.figures for row in result.rows_of(*who)) and not _is_clean(result, *who):
                found.setdefault(subject.label, []).append(f"{case}: {verdict(result.check(*who))}")
    for label, words in found.items():
        yield f"{MARK} no valid speed, for it does not hold what it acknowledged: {label}; {'; '.join(words)}"


def _notes(result: Result, workload: str, cases: list[str]) -> Iterator[str]:
    """Tell what the rounds say of themselves, once for all subjects that say the same."""
    grouped: dict[str, dict[str, None]] = {}
    present = list(_present(result, workload, cases))
    for subject in present:
        for row in result.rows_of(workload, None, subject.name):
            if row.note and row.figures and row.case in cases:
                grouped.setdefault(row.note, {})[subject.label] = None
    for note, labels in grouped.items():
        yield note if len(labels) == len(present) else f"{'; '.join(labels)}: {note}"


def _told(result: Result) -> Iterator[str]:
    """Tell what failed, what is missing, and who takes no part in what."""
    labels = {one.name: one.label for one in result.subjects}
    failed = {(row.workload, row.case, row.subject): row.failed for row in result.rows if row.failed}
    for (workload, case, subject), reason in failed.items():
        yield f"failed: {workload}, {case}: {labels.get(subject, subject)}: {reason}"
    for row in result.rows:
        if row.note and not row.figures:
            yield f"no figure in {row.workload}, {row.case}: {labels.get(row.subject, row.subject)}: {row.note}"
    for name, reason in result.missing.items():
        yield f"missing: {labels.get(name, name)}: {reason}"
    grouped: dict[tuple[str, str], list[str]] = {}
    for workload, reasons in result.cannot.items():
        for name, reason in reasons.items():
            grouped.setdefault((workload, reason), []).append(labels.get(name, name))
    for (workload, reason), names in grouped.items():
        yield f"no part in {workload}: {'; '.join(names)}: {reason}"
