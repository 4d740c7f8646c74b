"""The contenders: what a user would pick instead, each in a module by family."""

from __future__ import annotations

from benchmarks.subjects import ours, plain
from benchmarks.subjects.base import Handle, Refused, Subject, TurnFailed

__all__ = ["SUBJECTS", "Handle", "Refused", "Subject", "TurnFailed", "subject"]

SUBJECTS: dict[str, Subject] = {one.name: one for one in (*ours.SUBJECTS, *plain.SUBJECTS)}


def subject(name: str) -> Subject:
    """Return the contender of that name. Raises KeyError."""
    return SUBJECTS[name]
