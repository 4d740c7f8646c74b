"""How figures, their ratios and what a check found are put in words, for tables, comparisons and plots alike.

Rule: pure. A ratio says in words who is better, whatever the figure: "1.9x faster", never "0.53 x".
"""

from __future__ import annotations

import math

from benchmarks.checking import Check
from benchmarks.results import Figure

__all__ = ["heading", "is_better", "is_speed", "ratio_words", "shown", "verdict"]

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES = {"B": 1, "bytes": 1, "kB": 1e3, "KiB": 1 << 10, "MB": 1e6, "MiB": 1 << 20, "GB": 1e9, "GiB": 1 << 30}
SAME = 1.005  # what is printed as 1.00x is the same
_TAILS = ("_per_s", "_us", "_ms", "_s", "_bytes")


def _three(value: float) -> str:
    """Return a number with three digits, and no more than it needs."""
    value = float(f"{value:.3g}") if abs(value) < 1000 else float(f"{value:.12g}")
    if value == int(value):
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 3)}f}"


def _scaled(value: float, scales: tuple[tuple[float, str], ...]) -> str:
    size, name = next((scale for scale in scales if abs(value) >= scale[0] * 0.9995), scales[-1])
    return f"{_three(value / size)}{name}"


def shown(value: float | None, unit: str) -> str:
    """Return a value in a unit that fits its size (µs, ms, s, kB, MB, k/s …); a count alone; "" for None."""
    if value is None:
        return ""
    if unit in SECONDS:
        return _scaled(value * SECONDS[unit], ((1, " s"), (1e-3, " ms"), (1e-6, " µs")))
    rate = "/s" if unit.endswith("/s") else ""
    size = unit.removesuffix("/s")
    if size in BYTES:
        value *= BYTES[size]
        return _scaled(value, ((1e9, f" GB{rate}"), (1e6, f" MB{rate}"), (1e3, f" kB{rate}"), (1, f" B{rate}")))
    if rate:
        return _scaled(value, ((1e6, " M/s"), (1e3, " k/s"), (1, "/s")))
    return _three(value) + (unit if unit in ("%", "x") else "")


def heading(figure: Figure) -> str:
    """Return what a figure's column is called: its name without the unit, which the values have."""
    name = figure.name
    for tail in _TAILS:
        name = name.removesuffix(tail)
    return {"ms": "time", "us": "time", "s": "time", "MB": "speed"}.get(name, name.replace("_", " "))


def is_speed(figure: Figure) -> bool:
    """Say whether a figure is a time or a rate."""
    return figure.unit in SECONDS or figure.unit.endswith("/s")


def ratio_words(theirs: float | None, ours: float | None, figure: Figure) -> str:
    """Return how `theirs` compares with `ours`: "1.9x faster", "3x less"; "" where one is missing."""
    if theirs is None or ours is None:
        return ""
    if theirs == ours or (theirs and ours and max(theirs / ours, ours / theirs) < SAME):
        return "same"
    more = theirs > ours
    words = "more" if more else "less"
    if is_speed(figure):
        words = "faster" if more == (figure.better == "more") else "slower"
    if not theirs or not ours:
        return f"{words}: not none" if theirs else f"{words}: none"
    ratio = max(theirs / ours, ours / theirs)
    return f"{ratio:.2f}x {words}" if ratio < 10 else f"{ratio:,.0f}x {words}"


def is_better(theirs: float | None, ours: float | None, figure: Figure) -> bool | None:
    """Say whether `theirs` is better than `ours` by more than nothing; None if neither is, or one is missing."""
    if ratio_words(theirs, ours, figure) in ("", "same") or theirs is None or ours is None:
        return None
    return (theirs > ours) == (figure.better == "more")


def verdict(check: Check | None) -> str:
    """Return in words what a check found."""
    if check is None:
        return "unchecked"
    if check.error:
        return f"unreadable: {check.error}"
    found = {name: getattr(check, name) for name in ("lost", "duplicated", "reordered", "torn")}
    words = [f"{count:,} {name}" for name, count in found.items() if count] or ["clean"]
    return ", ".join(words + ([f"{check.refused:,} refused"] if check.refused else []))
