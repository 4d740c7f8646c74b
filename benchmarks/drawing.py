"""How figures are drawn: one panel each, from plain numbers.

Rule: a subject's family has one colour wherever it appears (Okabe and Ito's, which the colour-blind tell apart), and
its name stands beside what is its own, so that no legend has to be looked up. shardstore is drawn thick and on top.
Strategy: curves where there is a curve, dots on a log scale elsewhere (bars would lie there), ranges for distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

__all__ = ["GREY", "Item", "Range", "Series", "colour", "curves", "dots", "ranges", "shares", "short"]

GREY = "#666666"
OURS = "#D55E00"
FAMILIES = (  # what a subject's name holds, its colour, its marker; the first that fits
    ("shardstore", OURS, "o"),
    ("floor", "#AAAAAA", "|"),
    ("filelock", "#999933", "v"),
    ("gateway-lock", "#AA3377", "<"),
    ("gateway", "#CC79A7", "^"),
    ("jsonl", "#222222", "s"),
    ("agents", "#332288", "P"),
    ("sqlite", "#0072B2", "D"),
    ("lmdb", "#009E73", "X"),
    ("maildir", "#E69F00", "p"),
    ("diskcache", "#56B4E9", "*"),
    ("strands", "#774411", "h"),
)
LOG_FROM = 15  # between the least and the most from which on a scale is logarithmic
LABEL_GAP = 0.055  # between two names, of the height of a panel


@dataclass(frozen=True, slots=True)
class Series:
    """A subject's curve; `is_clean` is False if it does not hold what it acknowledged."""

    name: str
    points: list[tuple[float, float]]
    is_clean: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """A subject's value, and how it is written; `before` is another one to start from."""

    name: str
    value: float
    text: str
    is_clean: bool = True
    before: float | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """A subject's distribution: p1, p10, p50, p90, p99, and the median as it is written."""

    name: str
    marks: tuple[float, float, float, float, float]
    text: str
    is_clean: bool = True


def short(name: str) -> str:
    """Return a subject's name without its durability, which the panel has."""
    return name.removesuffix("-unsynced").removesuffix("-normal").removesuffix("-full")


def colour(name: str) -> str:
    """Return the colour of a subject's family."""
    return next((colour for part, colour, _ in FAMILIES if part in name), "#999999")


def _marker(name: str) -> str:
    return next((marker for part, _, marker in FAMILIES if part in name), "d")


def _is_ours(name: str) -> bool:
    return name.startswith("shardstore")


def _label(name: str, is_clean: bool) -> str:
    return name + ("" if is_clean else " ✗")


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Move sorted values up or down until each is `gap` from the next, as little as possible."""
    groups: list[tuple[float, int]] = []  # (middle, how many)
    for value in values:
        groups.append((value, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (high, more), (low, less) = groups.pop(), groups.pop()
            groups.append(((low * less + high * more) / (less + more), less + more))
    return [middle + gap * (at - (count - 1) / 2) for middle, count in groups for at in range(count)]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color="#999999", labelcolor="#333333", labelsize=9)


def curves(axes: Axes, series: Sequence[Series], title: str, x_label: str, ticks: Any) -> None:
    """Draw curves on log scales, each with its name at its end; `ticks` formats a value of the y axis."""
    _plain(axes)
    axes.set_title(title, loc="left", fontsize=10, color="#333333")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for one in sorted(series, key=lambda one: _is_ours(one.name)):
        xs, ys = zip(*one.points, strict=True)
        axes.plot(
            xs, ys, color=colour(one.name), marker=_marker(one.name), linewidth=3 if _is_ours(one.name) else 1.5,
            markersize=7 if _is_ours(one.name) else 5, linestyle="-" if one.is_clean else ":",
            zorder=3 if _is_ours(one.name) else 2,
        )  # fmt: skip
    _ticks(axes, sorted({x for one in series for x, _ in one.points}), x_label, ticks)
    _names(axes, series)


def _ticks(axes: Axes, xs: Sequence[float], x_label: str, ticks: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.yaxis.set_major_locator(_log_locator(*axes.get_ylim()))

    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:g}" if x < 1000 else f"{x / 1000:g}k" if x < 1e6 else f"{x / 1e6:g}M")
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: ticks(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x_label, fontsize=9, color="#333333")
    axes.margins(x=0.04, y=0.08)


def _names(axes: Axes, series: Sequence[Series]) -> None:
    """Write each curve's name to the right of the panel, as near to its end as the others leave room."""
    axes.get_xlim(), axes.get_ylim()  # settles the scales
    ordered = sorted(series, key=lambda one: one.points[-1][1])
    to_panel = axes.transAxes.inverted()
    ends = [to_panel.transform(axes.transData.transform(one.points[-1])) for one in ordered]
    places = _apart([end[1] for end in ends], LABEL_GAP)
    above = max(0.0, places[-1] - 1) if places else 0.0
    for one, (x, y), at in zip(ordered, ends, [place - above for place in places], strict=True):
        axes.plot([x, 1.02], [y, at], transform=axes.transAxes, color=colour(one.name), linewidth=0.5, clip_on=False)
        axes.text(1.03, at, _label(short(one.name), one.is_clean), transform=axes.transAxes, color=colour(one.name),
                  va="center", fontsize=9.5, fontweight="bold" if _is_ours(one.name) else "normal")  # fmt: skip


def _rows(axes: Axes, items: Sequence[Item] | Sequence[Range], title: str) -> None:
    """Set a panel up with a row for each subject, the first at the top."""
    _plain(axes)
    axes.set_title(title, loc="left", fontsize=10, color="#333333")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(items)), [_label(one.name, one.is_clean) for one in items])
    axes.set_ylim(len(items) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=9.5, pad=8)
    for tick, name in zip(axes.get_yticklabels(), [one.name for one in items], strict=True):
        tick.set_color(colour(name))
        tick.set_fontweight("bold" if _is_ours(name) else "normal")


def _x_scale(axes: Axes, values: Sequence[float], ticks: Any, room: float) -> float:
    """Choose a scale, and return where its rows begin; `room` is left for what is written to the right, as a share."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1), max(positive, default=1)
    is_log = high / low > LOG_FROM and len(positive) == len(values)
    axes.set_xscale("log" if is_log else "linear")
    begin = low / 2 if is_log else 0.0
    axes.xaxis.set_major_locator(_log_locator(begin, high) if is_log else MaxNLocator(4))
    axes.set_xlim(begin, begin * (high / begin) ** (1 / (1 - room)) if is_log else high / (1 - room))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: ticks(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return begin


def _log_locator(low: float, high: float) -> Locator:
    """Return what places ticks on a log scale: on a short one at 1, 2 and 5, else at powers of ten."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5) if high / low < 30 else (1,), numticks=6)


def dots(axes: Axes, items: Sequence[Item], title: str, x_label: str, ticks: Any) -> None:
    """Draw a value a row, written beside its dot; with `before`, a hollow dot where it came from."""
    _rows(axes, items, title)
    axes.set_xlabel(x_label, fontsize=9, color="#333333")
    befores = [one.before for one in items if one.before is not None]
    begin = _x_scale(axes, [*(one.value for one in items), *befores], ticks, 0.3 if befores else 0.25)
    for at, one in enumerate(items):
        ours, right = _is_ours(one.name), max(one.value, one.before or one.value)
        axes.plot([begin, one.value], [at, at], color=colour(one.name), linewidth=5 if ours else 2.5, alpha=0.35,
                  solid_capstyle="butt", linestyle="-" if one.is_clean else ":")  # fmt: skip
        if one.before is not None:
            axes.plot(one.before, at, "o", color=colour(one.name), fillstyle="none", markersize=7)
        axes.plot(one.value, at, "o", color=colour(one.name), markersize=10 if ours else 7,
                  fillstyle="full" if one.is_clean else "none", clip_on=False)  # fmt: skip
        axes.annotate(one.text, (right, at), (9, 0), textcoords="offset points", va="center", fontsize=9,
                      color="#333333", fontweight="bold" if ours else "normal")  # fmt: skip


def ranges(axes: Axes, items: Sequence[Range], title: str, ticks: Any) -> None:
    """Draw a distribution a row: a thin line from p1 to p99, a thick one from p10 to p90, a dot at the median."""
    _rows(axes, items, title)
    _x_scale(axes, [mark for one in items for mark in one.marks], ticks, 0.02)
    for at, one in enumerate(items):
        p1, p10, p50, p90, p99 = one.marks
        width = 1.4 if _is_ours(one.name) else 1.0
        axes.plot([p1, p99], [at, at], color=colour(one.name), linewidth=1.5 * width)
        axes.plot([p99, p99], [at - 0.2, at + 0.2], color=colour(one.name), linewidth=1.5 * width)
        axes.plot([p10, p90], [at, at], color=colour(one.name), linewidth=6 * width, alpha=0.5, solid_capstyle="butt")
        axes.plot(p50, at, "o", color="white", markeredgecolor=colour(one.name), markersize=6 * width,
                  markeredgewidth=2, zorder=4)  # fmt: skip
        axes.annotate(one.text, (p50, at), (0, 8), textcoords="offset points", ha="center", fontsize=8, color="#333333")


def shares(axes: Axes, items: Sequence[Item], title: str) -> None:
    """Draw two shares in percent a row: from 0 to `before`, and on to `value`, lighter."""
    _rows(axes, items, title)
    most = max((one.value for one in items), default=0)
    axes.set_xlim(0, max(10 * math.ceil(most * 1.7 / 10), 10))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}%" if x <= 100 else "")
    for at, one in enumerate(items):
        first = one.before or 0.0
        axes.barh(at, first, color=colour(one.name), height=0.6)
        axes.barh(at, one.value - first, left=first, color=colour(one.name), height=0.6, alpha=0.4, hatch="////",
                  edgecolor="white")  # fmt: skip
        axes.annotate(one.text, (one.value, at), (6, 0), textcoords="offset points", va="center", fontsize=9,
                      color="#333333", fontweight="bold" if _is_ours(one.name) else "normal")  # fmt: skip
