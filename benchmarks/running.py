"""Running: every round of every subject in every case, one after the other.

Rule: subjects take turns within a round, each time in another order, so that drift of the machine hits all alike; each
in a folder of its own. A subject that fails costs its own figure and is told; what was measured is kept.
Strategy: a folder of few files is removed at once; one of many stays until the end, for ext4 slows down creation for
minutes where many files were deleted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.results import Row
from benchmarks.subjects import Subject
from benchmarks.workloads import Case, Scale, Workload

__all__ = ["Step", "perform", "steps"]

FILES_MAX = 100  # of a folder that is removed at once


@dataclass(frozen=True, slots=True)
class Step:
    """One round of a subject in a case."""

    workload: Workload
    case: Case
    subject: Subject
    round: int

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.workload.name}: {self.case.name}, {self.subject.name}"


def steps(workloads: Sequence[Workload], subjects: Sequence[Subject], scale: Scale) -> list[Step]:
    """Return what is to be done, in order."""
    found = []
    for workload in workloads:
        plan = workload.plan(scale)
        takers = [subject for subject in subjects if workload.why_not(subject) is None]
        for number in range(plan.rounds):
            turn = number % len(takers) if takers else 0
            order = takers[turn:] + takers[:turn]
            found += [Step(workload, case, subject, number) for case in plan.cases for subject in order]
    return found


def perform(todo: Sequence[Step], home: str, told: Callable[[Step], None]) -> Iterator[Row]:
    """Do each step in a folder below `home`, which is removed at the end; yield what it yielded."""
    with tempfile.TemporaryDirectory(prefix="shardstore-benchmarks-", dir=home) as path:
        for step in todo:
            told(step)
            folder = tempfile.mkdtemp(dir=path)
            yield _row(step, folder)
            if sum(len(files) for _, _, files in os.walk(folder)) <= FILES_MAX:
                shutil.rmtree(folder)


def _row(step: Step, folder: str) -> Row:
    names = {"workload": step.workload.name, "case": step.case.name, "subject": step.subject.name, "round": step.round}
    try:
        done = step.workload.run(step.subject, step.case, folder)
    except Exception as error:  # whatever a subject raises is told as its failure
        return Row(**names, x=step.case.x, failed=f"{type(error).__name__}: {error}")  # type: ignore[arg-type]
    return Row(
        **names, x=step.case.x, figures=done.figures, quantiles_us=done.quantiles_us, check=done.check, note=done.note  # type: ignore[arg-type]
    )  # fmt: skip
