"""A result as tables in the terminal: one for each workload and case, subjects beside each other.

Rule: a speed without a clean check is printed as such. Ratios are to shardstore of the same kind, durable or not.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.checking import Check
from benchmarks.results import Figure, Result

__all__ = ["show", "verdict"]


def verdict(check: Check | None) -> str:
    """Return in words what a check found."""
    if check is None:
        return ""
    if check.error:
        return f"unreadable: {check.error}"
    found = {name: getattr(check, name) for name in ("lost", "duplicated", "reordered", "torn")}
    words = [f"{count:,} {name}" for name, count in found.items() if count] or ["clean"]
    return ", ".join(words + ([f"{check.refused:,} refused"] if check.refused else []))


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def _ratio(result: Result, workload: str, case: str, subject: str, figure: Figure) -> str:
    durable = next(one.is_durable for one in result.subjects if one.name == subject)
    ours = result.median(workload, case, "shardstore" if durable else "shardstore-unsynced", figure.name)
    theirs = result.median(workload, case, subject, figure.name)
    return f"{theirs / ours:.2f} x" if ours and theirs is not None else ""


def show(result: Result, console: Console) -> None:
    """Print all tables."""
    for workload in result.workloads:
        for case in result.cases(workload.name):
            table = Table(title=f"{workload.label}: {case}", title_justify="left")
            table.add_column("subject")
            for figure in workload.figures:
                table.add_column(f"{figure.name}, {figure.unit}", justify="right")
            table.add_column(f"to shardstore's {workload.figures[0].name}", justify="right")
            table.add_column("check")
            for subject in result.subjects:
                rows = list(result.rows_of(workload.name, case, subject.name))
                if not rows:
                    continue
                failed = next((row.failed for row in rows if row.failed), "")
                cells = [_shown(result.median(workload.name, case, subject.name, one.name)) for one in workload.figures]
                ratio = _ratio(result, workload.name, case, subject.name, workload.figures[0])
                told = failed or verdict(result.check(workload.name, case, subject.name))
                table.add_row(subject.label, *cells, ratio, told)
            console.print(table)
    for name, reason in result.missing.items():
        console.print(f"{name}: missing {reason}")
    for name, reasons in result.cannot.items():
        for subject_name, reason in reasons.items():
            console.print(f"{name}, {subject_name}: {reason}")
