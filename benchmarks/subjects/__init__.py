"""The contenders: what a user would pick instead, each in a module by family."""

from __future__ import annotations

from benchmarks.subjects import agents, disk_cache, floor, gateway, lmdb_store, locked, maildir, ours, plain, sqlite
from benchmarks.subjects.base import Handle, Refused, Subject, TurnFailed

__all__ = ["SUBJECTS", "Handle", "Refused", "Subject", "TurnFailed", "subject"]

_FAMILIES = (ours, plain, locked, gateway, sqlite, lmdb_store, disk_cache, maildir, agents, floor)
SUBJECTS: dict[str, Subject] = {one.name: one for family in _FAMILIES for one in family.SUBJECTS}


def subject(name: str) -> Subject:
    """Return the contender of that name. Raises KeyError."""
    return SUBJECTS[name]
