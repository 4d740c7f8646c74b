"""Two results beside each other: what changed, and whether it is more than noise.

Rule: a change is called significant only if the interval in which the ratio of the medians lies (bootstrap, 95 %) does
not hold 1; where a side has too few rounds for that, a factor of two either way stands for it. A check that was clean
and is not any more is worse than any slowness, and so is a subject that failed, or has no figure any more. Results of
different machines or filesystems say nothing about the code.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.results import RATE, Described, Figure, Result
from benchmarks.wording import heading, ratio_words, shown, verdict

__all__ = ["Change", "changes", "interval", "show", "strangers"]

SAME_FACTS = ("system", "processor", "memory", "filesystem")
ROUNDS_MIN = 3  # below which nothing is known of the noise
UNKNOWN = 2.0  # times: what single rounds have differed by with nothing changed
RESAMPLES = 1_000
OUTSIDE = 0.025  # of the resampled ratios, on either side of the interval
SHOWN_MAX = 40  # lines of what is only noise


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one figure of a subject in a case.

    `worse` is how many times worse it is now (below 1: better); `low` and `high` bound it, `is_rough` says by a guess.
    `broken` says what is wrong now that was right before; then there is no figure.
    """

    workload: str
    case: str
    subject: str
    figure: Figure | None
    before: float = math.nan
    now: float = math.nan
    worse: float = math.inf
    low: float = math.nan
    high: float = math.nan
    broken: str = ""
    is_rough: bool = False

    @property
    def is_significant(self) -> bool:
        """True if it is more than noise."""
        return bool(self.broken) or self.low > 1 or self.high < 1

    def is_regression(self, threshold: float) -> bool:
        """Say whether it is worse by more than a share, and that is no noise."""
        return self.is_significant and self.worse > 1 + threshold


def strangers(before: Result, now: Result) -> list[str]:
    """Return in words what differs between the machines and filesystems of two results."""
    facts = [(name, before.machine.get(name, "unknown"), now.machine.get(name, "unknown")) for name in SAME_FACTS]
    return [f"{name}: {old} / {new}" for name, old, new in facts if old != new]


def interval(before: Sequence[float], now: Sequence[float], *, more_is_better: bool) -> tuple[float, float]:
    """Return the bounds between which 95 % of the ratios of resampled medians lie, as times worse; always the same."""
    if min(len(before), len(now)) < ROUNDS_MIN:
        worse = _worse(statistics.median(before), statistics.median(now), more_is_better=more_is_better)
        return worse / UNKNOWN, worse * UNKNOWN
    rng = random.Random(0)
    found = sorted(
        _worse(_resampled(rng, before), _resampled(rng, now), more_is_better=more_is_better) for _ in range(RESAMPLES)
    )
    out = int(RESAMPLES * OUTSIDE)
    return found[out], found[-out - 1]


def _resampled(rng: random.Random, samples: Sequence[float]) -> float:
    some = sorted(rng.choices(samples, k=len(samples)))
    return (some[(len(some) - 1) // 2] + some[len(some) // 2]) / 2  # which statistics.median takes longer for


def _worse(before: float, now: float, *, more_is_better: bool) -> float:
    least, most = (now, before) if more_is_better else (before, now)
    if least == most:
        return 1.0
    return most / least if least else math.inf


def changes(before: Result, now: Result) -> list[Change]:
    """Return every figure that both results have, the significantly worse first, then the better, then noise."""
    found = [change for workload in now.workloads for change in _of_workload(before, now, workload)]
    return sorted(found, key=lambda one: (not one.is_significant, -one.worse))


def _of_workload(before: Result, now: Result, workload: Described) -> Iterator[Change]:
    for case, subject in _common(before, now, workload.name):
        who = (workload.name, case, subject)
        broken = _broken(before, now, *who)
        if broken:
            yield Change(*who, None, broken=broken)
        for figure in workload.figures:
            old, new = _samples(before, *who, figure.name), _samples(now, *who, figure.name)
            if old and new:
                medians, more = (statistics.median(old), statistics.median(new)), figure.better == "more"
                bounds = interval(old, new, more_is_better=more)
                rough = min(len(old), len(new)) < ROUNDS_MIN
                yield Change(*who, figure, *medians, _worse(*medians, more_is_better=more), *bounds, is_rough=rough)


def _broken(before: Result, now: Result, workload: str, case: str, subject: str) -> str:
    failed = next((row.failed for row in now.rows_of(workload, case, subject) if row.failed), "")
    if failed and not any(row.failed for row in before.rows_of(workload, case, subject)):
        return f"failed: {failed}"
    if any(row.figures for row in before.rows_of(workload, case, subject)):
        gone = [row.note for row in now.rows_of(workload, case, subject) if not row.figures]
        if gone:
            return f"no figure any more: {gone[0]}"
    old, new = before.check(workload, case, subject), now.check(workload, case, subject)
    return verdict(new) if old and old.is_clean and new and not new.is_clean else ""


def _samples(result: Result, workload: str, case: str, subject: str, figure: str) -> list[float]:
    return [row.figures[figure] for row in result.rows_of(workload, case, subject) if figure in row.figures]


def _keys(result: Result, workload: str) -> dict[tuple[str, str], None]:
    return {(row.case, row.subject): None for row in result.rows_of(workload)}


def _common(before: Result, now: Result, workload: str) -> list[tuple[str, str]]:
    old = _keys(before, workload)
    return [key for key in _keys(now, workload) if key in old]


def _alone(one: Result, other: Result) -> list[str]:
    """Return what only one of two results has, in words; a whole workload or subject counts once."""
    theirs = {(row.workload, row.case, row.subject) for row in other.rows}
    workloads, subjects = {row.workload for row in other.rows}, {row.subject for row in other.rows}
    words: dict[str, None] = {}
    for row in one.rows:
        if (row.workload, row.case, row.subject) not in theirs:
            whole = row.subject if row.subject not in subjects else f"{row.workload}, {row.case}, {row.subject}"
            words[row.workload if row.workload not in workloads else whole] = None
    return list(words)


# -------------------------------------------------------------- the table


def show(before: Result, now: Result, found: Sequence[Change], threshold: float, console: Console) -> None:
    """Print what changed, the worst first, and what is in one of the results only."""
    worse = [one for one in found if one.is_regression(threshold)]
    better = [one for one in found if one.is_significant and 1 / (1 + threshold) > one.worse]
    rest = [one for one in found if one not in worse and one not in better]
    for title, some, style in (
        ("worse", worse, "red"),
        ("better", better, "green"),
        ("within noise, as far as is known", rest, "dim"),
    ):
        if some:
            console.print()
            console.print(_table(f"{title} ({len(some):,})", some[:SHOWN_MAX] if some is rest else some, style))
    if len(rest) > SHOWN_MAX:
        console.print(f"and {len(rest) - SHOWN_MAX:,} more within noise", style="dim")
    for words, names in (("only before", _alone(before, now)), ("only now", _alone(now, before))):
        if names:
            console.print(f"{words}: {'; '.join(names)}", markup=False, highlight=False)
    for drift in _drift(found):
        console.print(drift, highlight=False)
    if before.command != now.command:
        console.print(f"measured by different commands: {before.command} / {now.command}", highlight=False)
    console.print(
        f"worse: by more than {threshold:.0%}, and beyond noise: the 95 % interval of the medians' ratio (bootstrap"
        f" over rounds; with fewer than {ROUNDS_MIN} of them, more than {UNKNOWN:g} x)",
        style="dim",
        highlight=False,
    )


def _drift(found: Sequence[Change]) -> Iterator[str]:
    """Tell what became of the bare system calls: what they lost or won, the machine did, and not the code."""
    rates = [one for one in found if one.subject.startswith("floor-") and one.figure and one.figure.name == RATE]
    words = [f"{one.subject} {ratio_words(one.now, one.before, one.figure)}" for one in rates if one.figure]
    if words:
        yield f"the machine itself, by its bare system calls: {'; '.join(words)}"


def _table(title: str, some: Sequence[Change], style: str) -> Table:
    table = Table(title=title, title_justify="left", title_style=f"bold {style}", box=None, header_style="dim")
    for at, column in enumerate(("workload", "subject", "figure", "before", "now", "change", "95 % interval")):
        table.add_column(column, justify="right" if at > 2 else "left", no_wrap=at > 0)
    for one in some:
        where = Text(f"{one.workload}, {one.case}")
        if one.figure is None:
            table.add_row(where, one.subject, Text(one.broken, style="red"))
            continue
        values = (shown(value, one.figure.unit) for value in (one.before, one.now))
        words = ratio_words(one.now, one.before, one.figure)
        table.add_row(where, one.subject, heading(one.figure), *values, Text(words, style=style), _bounds(one))
    return table


def _bounds(one: Change) -> str:
    return "few rounds" if one.is_rough else " – ".join(_signed(worse) for worse in (one.low, one.high))


def _signed(worse: float) -> str:
    """Return a ratio as a percentage worse (+) or better (-)."""
    return f"{(worse - 1) * 100:+.0f}%" if worse < 10 else f"+{worse:.0f}x" if math.isfinite(worse) else "+∞"
