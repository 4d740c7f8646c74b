"""A result as pictures: what a person sees at a glance, as SVG and PNG.

Rule: everything is drawn from the result's rows; what the result lacks is left out. Durable and unsynced subjects are
never in one panel. A subject that does not hold what it acknowledged is marked ✗ and told below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.drawing import GREY, Item, Range, Series, curves, dots, ranges, shares, short
from benchmarks.results import Described, Figure, Result
from benchmarks.wording import heading, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

__all__ = ["MatplotlibMissingError", "draw"]

KINDS = {True: "durable", False: "unsynced"}
WIDTH, PANEL, ROW = 12.0, 4.0, 0.32  # inches, as all of these: a picture, a panel's height, a row
HEAD, FOOT, ABOVE, BELOW = 0.6, 0.5, 0.4, 0.55  # room around the panels, and around each one's axes
SIDES = {True: (2.05, 0.3), False: (0.85, 1.5)}  # beside a panel with rows, or with curves
DPI = 150
Panel = Callable[["Axes"], None]
EITHER = ("load", "last", "open-list", "turns", "footprint")  # for which the durability of a write does not matter much


class MatplotlibMissingError(Exception):
    """matplotlib is not installed."""


def draw(result: Result, folder: str) -> list[str]:
    """Write all pictures that a result has the figures for; return their paths. Raises MatplotlibMissingError."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise MatplotlibMissingError("plots need matplotlib: pip install 'shardstore[bench]'") from error
    os.makedirs(folder, exist_ok=True)
    pictures = {
        "overview": (_overview, ("writers", "turns", "load", "growth")),
        "latency": (_latency, ("append", "writers")),
        "growth": (_growth, ("growth", "load", "last")),
        "turns": (_turns, ("turns",)),
        "footprint": (_footprint, ("footprint",)),
    }
    paths = []
    for name, (make, workloads) in pictures.items():
        paths += _saved(result, os.path.join(folder, name), workloads, *make(result))
    for workload in result.workloads:
        if workload.name not in pictures:
            paths += _saved(result, os.path.join(folder, workload.name), (workload.name,), *_plain(result, workload))
    return paths


def _saved(
    result: Result, path: str, workloads: Sequence[str], title: str, panels: Sequence[tuple[int, Panel]]
) -> list[str]:
    """Lay out panels (each with its rows), two beside each other, and write the picture of some workloads."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    if not panels:
        return []
    lines = [panels[at : at + 2] for at in range(0, len(panels), 2)]
    heights = [max(PANEL if not rows else ABOVE + BELOW + ROW * rows for rows, _ in line) for line in lines]
    height = sum(heights) + HEAD + FOOT
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "DejaVu Sans"}):
        picture = Picture(figsize=(WIDTH, height))
        for number, line in enumerate(lines):
            bottom = height - HEAD - sum(heights[: number + 1])
            for column, (rows, panel) in enumerate(line):
                before, after = SIDES[bool(rows)]
                tall = ABOVE + BELOW + ROW * rows if rows else PANEL
                low, left = bottom + heights[number] - tall + BELOW, column * WIDTH / 2 + before
                box = (
                    left / WIDTH,
                    low / height,
                    (WIDTH / 2 - before - after) / WIDTH,
                    (tall - ABOVE - BELOW) / height,
                )
                panel(picture.add_axes(box))
        _told(result, workloads, picture, title, height)
        paths = [f"{path}.{kind}" for kind in ("svg", "png")]
        for one in paths:
            picture.savefig(one, dpi=DPI, facecolor="white", metadata={"Date": None} if one.endswith("svg") else None)
    return paths


def _told(result: Result, workloads: Sequence[str], picture: Picture, title: str, height: float) -> None:
    """Write the title above, and below where and how it was measured."""
    facts = result.machine
    where = ", ".join(facts[name] for name in ("processor", "memory", "filesystem") if name in facts)
    picture.text(0.012, 1 - 0.32 / height, title, fontsize=min(14, 1260 / len(title)), fontweight="bold", va="center")
    below = f"{where} · {result.date[:10]} · {result.command}"
    rows = [row for name in workloads for row in result.rows_of(name)]
    unclean = {row.subject for row in rows if row.check is not None and not row.check.is_clean}
    if unclean:
        below = f"✗ did not hold what it acknowledged: {', '.join(sorted(unclean))}\n{below}"
    picture.text(0.012, 0.08 / height, below, fontsize=7.5, color=GREY, va="bottom")


# -------------------------------------------------------------- what is drawn


def _by_kind(result: Result, workload: str) -> list[tuple[str, list[Described]]]:
    """Return (durability, subjects that have figures); where it does not matter, ("", one of each)."""
    here = {row.subject for row in result.rows_of(workload) if row.figures}
    subjects = [one for one in result.subjects if one.name in here]
    if workload in EITHER:
        durable = {short(one.name) for one in subjects if one.is_durable}
        found = [("", [one for one in subjects if one.is_durable or short(one.name) not in durable])]
    else:
        found = [(kind, [one for one in subjects if one.is_durable == durable]) for durable, kind in KINDS.items()]
    return [(kind, some) for kind, some in found if some]


def _last_case(result: Result, workload: str) -> str:
    return [row.case for row in result.rows_of(workload) if row.figures][-1]


def _described(result: Result, workload: str) -> Described | None:
    return next((one for one in result.workloads if one.name == workload), None)


def _ticks(figure: Figure) -> Callable[[float], str]:
    return lambda value: _tick(value, figure.unit)


def _tick(value: float, unit: str) -> str:
    return re.sub(r"\.0+(?!\d)|(?<=\.\d)0+(?!\d)", "", shown(value, unit))


def _is_clean(result: Result, workload: str, case: str, subject: str) -> bool:
    check = result.check(workload, case, subject)
    return check is None or check.is_clean


def _better(figure: Figure) -> str:
    if figure.better == "more":
        return "higher is better"
    return "lower is better"


def _curve(result: Result, workload: Described, figure: Figure, kind: str, subjects: list[Described], x: str) -> Panel:
    series = []
    for subject in subjects:
        places = {row.case: row.x for row in result.rows_of(workload.name, None, subject.name) if row.x is not None}
        values = {case: result.median(workload.name, case, subject.name, figure.name) for case in places}
        points = sorted((places[case] or 0, value) for case, value in values.items() if value)
        clean = all(_is_clean(result, workload.name, case, subject.name) for case in places)
        if points:
            series.append(Series(subject.name, points, clean))
    return lambda axes: curves(axes, series, kind, x, _ticks(figure))


def _dots(
    result: Result,
    workload: Described,
    figure: Figure,
    title: str,
    case: str,
    subjects: list[Described],
) -> tuple[int, Panel]:
    items = []
    for subject in subjects:
        value = result.median(workload.name, case, subject.name, figure.name)
        if value is not None:
            clean = _is_clean(result, workload.name, case, subject.name)
            items.append(Item(short(subject.name), value, shown(value, figure.unit), clean))
    items.sort(key=lambda one: one.value, reverse=figure.better == "more")
    return len(items), lambda axes: dots(axes, items, title, case, _ticks(figure))


def _has_curve(result: Result, workload: str, figure: str) -> bool:
    rows = [row for row in result.rows_of(workload) if figure in row.figures]
    return len({row.x for row in rows if row.x is not None}) > 1


def _panels(result: Result, name: str, figure_name: str, title: str, x: str) -> list[tuple[int, Panel]]:
    """Return a panel of a workload for each durability: curves where there are any, else dots of its last case."""
    workload = _described(result, name)
    figure = next((one for one in workload.figures if one.name == figure_name), None) if workload else None
    if workload is None or figure is None:
        return []
    made: list[tuple[int, Panel]] = []
    for kind, subjects in _by_kind(result, name):
        told = f"{title}, {kind}" if kind else title
        if _has_curve(result, name, figure.name):
            made.append((0, _curve(result, workload, figure, f"{told}: {_better(figure)}", subjects, x)))
        else:
            case = _last_case(result, name)
            told = f"{told}: {'more' if figure.better == 'more' else 'less'} is better"
            made.append(_dots(result, workload, figure, told, case, subjects))
    return made


def _plain(result: Result, workload: Described) -> tuple[str, list[tuple[int, Panel]]]:
    x = "processes" if workload.name in ("writers", "spread") else "entries"
    main = workload.figures[0]
    what = "median time" if main.name == "p50" else heading(main)
    return _begun(workload.label), _panels(result, workload.name, main.name, _begun(what), x)


def _begun(words: str) -> str:
    return words[0].upper() + words[1:]


def _overview(result: Result) -> tuple[str, list[tuple[int, Panel]]]:
    panels = [
        *_panels(result, "writers", "appends_per_s", "Appends to one session", "processes")[:1],
        *_turns(result, next(iter(result.cases("turns")), ""))[1][:1],
        *_panels(result, "load", "entries_per_s", "Load a session whole, entries", "entries")[:1],
        *_panels(result, "growth", "p50", "Time of an append, by length", "entries already there")[-1:],
    ]
    return "A transcript store for agents, side by side", panels


def _latency(result: Result) -> tuple[str, list[tuple[int, Panel]]]:
    """Return distributions of an append: alone, and with the most writers."""
    panels: list[tuple[int, Panel]] = []
    for name in ("append", "writers"):
        for kind, subjects in _by_kind(result, name):
            case = result.cases(name)[0] if name == "append" else _last_case(result, name)
            found = [one for subject in subjects if (one := _range(result, name, case, subject.name))]
            found.sort(key=lambda one: one.marks[2])
            title = f"{'One process' if name == 'append' else f'{case}, one session'}, {kind}"
            panels.append((int(len(found) * 1.2) + 1, _range_panel(found, title)))
    return "Time of one append: dot median, band p10 – p90, line p1 – p99; further left is better", panels


def _range_panel(found: list[Range], title: str) -> Panel:
    return lambda axes: ranges(axes, found, title, lambda value: _tick(value, "us"))


def _range(result: Result, workload: str, case: str, subject: str) -> Range | None:
    """Return the medians over the rounds of a distribution's marks."""
    found = [row.quantiles_us for row in result.rows_of(workload, case, subject) if row.quantiles_us]
    if not found:
        return None
    middle = [sorted(column)[len(column) // 2] for column in zip(*found, strict=True)]
    last = len(middle) - 1
    p1, p10, p50, p90, p99 = (middle[round(last * share)] for share in (0.01, 0.1, 0.5, 0.9, 0.99))
    return Range(short(subject), (p1, p10, p50, p90, p99), shown(p50, "us"), _is_clean(result, workload, case, subject))


def _growth(result: Result) -> tuple[str, list[tuple[int, Panel]]]:
    panels = [
        *_panels(result, "growth", "p50", "Time of an append", "entries already there"),
        *_panels(result, "load", "entries_per_s", "Load it whole, entries", "entries"),
        *_panels(result, "last", "open_p50", "Time to read the last entries", "entries"),
    ]
    return "What a session costs as it grows", panels


def _turns(result: Result, case: str = "") -> tuple[str, list[tuple[int, Panel]]]:
    """Return turns not kept, tokens of their replies, and the time waited, of a case (by default the busiest)."""
    workload = _described(result, "turns")
    everybody = [one for _, some in _by_kind(result, "turns") for one in some]
    if workload is None or not everybody:
        return "", []
    case = case or _last_case(result, "turns")
    subjects = [one for one in everybody if result.median("turns", case, one.name, "turns_kept") is not None]
    items = sorted((_not_kept(result, case, subject.name) for subject in subjects), key=lambda one: one.value)
    tables = {one.name: one for one in workload.figures}
    made: list[tuple[int, Panel]] = [
        (len(items), lambda axes: shares(axes, items, f"Turns lost (solid), failed (hatched): less is better\n{case}"))
    ]
    for name, words in (("tokens_wasted", "Tokens of replies thrown away"), ("waited_p99", "Time waited, p99")):
        if name in tables:
            made.append(_dots(result, workload, tables[name], f"{words}: less is better", case, subjects))
    return f"Turns in a session that others write to: {case}", made


def _not_kept(result: Result, case: str, subject: str) -> Item:
    kept, lost, failed = (
        result.median("turns", case, subject, name) or 0 for name in ("turns_kept", "turns_lost", "turns_failed")
    )
    gone = lost + failed
    words = ", ".join(f"{count:g} {word}" for count, word in ((lost, "lost"), (failed, "failed")) if count)
    share = (100 - kept) / gone if gone else 0.0
    return Item(short(subject), gone * share, words or "none", _is_clean(result, "turns", case, subject), lost * share)


def _footprint(result: Result) -> tuple[str, list[tuple[int, Panel]]]:
    workload = _described(result, "footprint")
    if workload is None or not any(row.figures for row in result.rows_of("footprint")):
        return "", []
    figures = {one.name: one for one in workload.figures}
    case = _last_case(result, "footprint")
    subjects = [one for _, some in _by_kind(result, "footprint") for one in some]
    made = []
    for name, words in (
        ("disk", "Room on the disk, times what was appended: less is better"),
        ("inodes", "Files and folders: less is better"),
    ):
        items = []
        for subject in subjects:
            before, after = (result.median("footprint", case, subject.name, one) for one in (name, f"{name}_after"))
            if before is not None and after is not None:
                clean = _is_clean(result, "footprint", case, subject.name)
                items.append(Item(short(subject.name), after, _from_to(before, after, figures[name]), clean, before))
        made.append((len(items), _item_panel(sorted(items, key=lambda one: one.value), words, figures[name])))
    return f"Footprint of {case}", made


def _from_to(before: float, after: float, figure: Figure) -> str:
    words = [shown(value, figure.unit) for value in (before, after)]
    return words[1] if words[0] == words[1] else f"{words[0]} → {words[1]}"


def _item_panel(items: list[Item], title: str, figure: Figure) -> Panel:
    return lambda axes: dots(axes, items, title, "before the subject's upkeep (hollow) → after it", _ticks(figure))
