"""What users do with a transcript store, each in a module by kind."""

from __future__ import annotations

from benchmarks.workloads import append, following, growth, many, reading, turns, upkeep
from benchmarks.workloads.base import Case, Outcome, Plan, Scale, Workload

__all__ = ["WORKLOADS", "Case", "Outcome", "Plan", "Scale", "Workload"]

WORKLOADS: dict[str, Workload] = {
    one.name: one
    for one in (
        append.APPEND,
        append.WRITERS,
        append.SPREAD,
        turns.TURNS,
        following.FOLLOW,
        upkeep.COMPACTION,
        upkeep.UPKEEP,
        reading.LOAD,
        reading.LAST,
        reading.READBACK,
        many.OPEN_LIST,
        many.IMPORT,
        growth.FOOTPRINT,
        growth.GROWTH,
    )
}
