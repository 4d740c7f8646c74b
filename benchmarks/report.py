"""What a bar yields: rows that compare two sets of samples, and how they are printed.

Rule: a row's ratio says by itself which side is better: `<=` bounds compare times (ours / other), `>=` bounds compare
speeds (other's time / our time). A row without a bound is a report and can't be missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Row", "as_json", "missed", "quantile", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison: a sample of each side for every round, in `unit`; smaller is better for every unit used here."""

    bar: str
    what: str
    unit: str
    ours: Sequence[float]
    other: Sequence[float]
    bound: float | None = None
    rule: Literal["<=", ">=", "<"] = "<="
    by: Literal["median", "max"] = "median"
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours over the other's, or the reverse where speeds are compared.

        The two samples of a round met the same load, so the median is taken of the rounds' ratios.
        """
        if self.by == "max":
            pairs = [(max(self.ours), max(self.other))]
        else:
            pairs = list(zip(self.ours, self.other, strict=True))
        return statistics.median(other / ours if self.rule == ">=" else ours / other for ours, other in pairs)

    @property
    def verdict(self) -> str:
        """Return `ok`, `SHORT`, or nothing for a report."""
        if self.bound is None:
            return ""
        met = {"<=": self.ratio <= self.bound, "<": self.ratio < self.bound, ">=": self.ratio >= self.bound}
        return "ok" if met[self.rule] else "SHORT"


def quantile(samples: Sequence[float], share: float) -> float:
    """Return the sample that `share` of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def missed(rows: Sequence[Row]) -> bool:
    """Say whether any bar was missed."""
    return any(row.verdict == "SHORT" for row in rows)


def _shown(value: float) -> str:
    return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, one line each."""
    lines = [("bar", "ratio", "bound", "", "ours", "other", "unit", "what", "note")]
    for row in rows:
        middle = max if row.by == "max" else statistics.median
        bound = "" if row.bound is None else f"{row.rule} {row.bound:g}"
        ours, other = _shown(middle(row.ours)), _shown(middle(row.other))
        lines.append((row.bar, f"{row.ratio:.3f}", bound, row.verdict, ours, other, row.unit, row.what, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _side(samples: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(samples),
        "p90": quantile(samples, 0.9),
        "p99": quantile(samples, 0.99),
        "max": max(samples),
        "samples": list(samples),
    }


def as_json(row: Row) -> dict[str, Any]:
    """Return a row with everything that was measured."""
    facts = {"bar": row.bar, "what": row.what, "ratio": row.ratio, "rule": row.rule, "bound": row.bound, "by": row.by}
    sides = {"ours": _side(row.ours), "other": _side(row.other)}
    return {**facts, "verdict": row.verdict, "unit": row.unit, **sides, "note": row.note}
