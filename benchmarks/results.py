"""What a run yields, as a file: one row for each round of each subject in each case, and the machine's facts.

Rule: everything that is printed or drawn is computed from these rows, so a file says all that its run said.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from benchmarks.checking import Check

__all__ = ["FLOORED", "QUANTILES", "RATE", "Figure", "Result", "Row", "load", "quantiles", "save"]

VERSION = 1
FLOORED, RATE = "append", "appends_per_s"  # the workload in which floors take part, and what they are compared by
QUANTILES = 200  # steps between the smallest and the largest sample


class Figure(msgspec.Struct, frozen=True):
    """A measured quantity: its name, its unit, and whether more or less of it is better."""

    name: str
    unit: str
    better: Literal["more", "less"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One round of a subject in a case of a workload.

    `figures` by name; `quantiles_us` is the distribution of a single operation's time, from its least to its greatest
    in equal steps of share; `x` places the case on a curve. `failed` says why there is no figure.
    """

    workload: str
    case: str
    subject: str
    round: int
    x: float | None = None
    figures: dict[str, float] = {}
    quantiles_us: list[float] = []
    check: Check | None = None
    note: str = ""
    failed: str = ""


class Described(msgspec.Struct, frozen=True):
    """A workload or a subject as it was in the run: what it is called, and for a workload, its figures."""

    name: str
    label: str
    figures: list[Figure] = []
    is_durable: bool = False
    is_floor: bool = False


class Result(msgspec.Struct, kw_only=True):
    """A run."""

    version: int = VERSION
    command: str
    date: str
    machine: dict[str, str]
    workloads: list[Described]
    subjects: list[Described]
    missing: dict[str, str] = {}  # subjects, and what has to be installed
    cannot: dict[str, dict[str, str]] = {}  # by workload and subject: why there is no figure
    rows: list[Row] = []

    def rows_of(self, workload: str, case: str | None = None, subject: str | None = None) -> Iterator[Row]:
        """Yield the rows that fit."""
        for row in self.rows:
            if row.workload == workload and case in (None, row.case) and subject in (None, row.subject):
                yield row

    def cases(self, workload: str) -> list[str]:
        """Return the cases of a workload, in the order of the run."""
        return list(dict.fromkeys(row.case for row in self.rows_of(workload)))

    def median(self, workload: str, case: str, subject: str, figure: str) -> float | None:
        """Return the median of a figure over the rounds, None if there is none."""
        found = [row.figures[figure] for row in self.rows_of(workload, case, subject) if figure in row.figures]
        return statistics.median(found) if found else None

    def check(self, workload: str, case: str, subject: str) -> Check | None:
        """Return the sum of the checks over the rounds, None if there was none."""
        found = [row.check for row in self.rows_of(workload, case, subject) if row.check is not None]
        return sum(found, Check()) if found else None

    def times_floor(self, workload: str, case: str, subject: str, floor: str | None = None) -> float | None:
        """Return the time of an append as a multiple of the bare system calls' (of one process), None if unknown.

        Without the name of a floor it is the bare write to one file, of the subject's durability.
        """
        durable = any(one.is_durable for one in self.subjects if one.name == subject)
        floor = floor or ("floor-file" if durable else "floor-file-unsynced")
        same = case if workload == FLOORED else next(iter(self.cases(FLOORED)), "")
        least = self.median(FLOORED, same, floor, RATE)
        done = self.median(workload, case, subject, RATE)
        return least / done if least and done else None


def quantiles(samples: Sequence[float]) -> list[float]:
    """Return the distribution of samples: the least, and what 1/200, 2/200, … of them do not exceed."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return [round(ordered[round(last * step / QUANTILES)], 2) for step in range(QUANTILES + 1)] if ordered else []


def save(result: Result, path: str) -> None:
    """Write a result as JSON, and with it, for who reads it without this program, each `times_floor`."""
    known: dict[str, dict[str, dict[str, float]]] = {}
    for row in result.rows:
        times = result.times_floor(row.workload, row.case, row.subject)
        if times is not None:
            known.setdefault(row.workload, {}).setdefault(row.case, {})[row.subject] = round(times, 3)
    whole = {**msgspec.to_builtins(result), "times_floor": known}
    with open(path, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")


def load(path: str) -> Result:
    """Read a result. Raises OSError, ValueError for what is none."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        result = msgspec.json.decode(content, type=Result)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: no result of `python -m benchmarks run`: {error}") from error
    if result.version != VERSION:
        raise ValueError(f"{path}: version {result.version}; this program reads {VERSION}")
    return result
