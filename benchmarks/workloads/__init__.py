"""What users do with a transcript store, each in a module by kind."""

from __future__ import annotations

from benchmarks.workloads import append
from benchmarks.workloads.base import Case, Outcome, Plan, Scale, Workload

__all__ = ["WORKLOADS", "Case", "Outcome", "Plan", "Scale", "Workload"]

WORKLOADS: dict[str, Workload] = {one.name: one for one in (append.APPEND, append.WRITERS, append.SPREAD)}
