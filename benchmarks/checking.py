"""What a subject holds after a workload, against what it acknowledged.

Rule: no figure without this. Every line that was acknowledged is there once, whole, and each writer's lines are in the
order in which he wrote them; a line that was refused may be there or not, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from benchmarks.lines import line_of
from benchmarks.subjects import subject as subject_of

__all__ = ["Check", "Written", "check", "check_session", "check_sessions"]

TELLING_MAX = 300  # characters of an error
COUNTS = ("acknowledged", "lost", "duplicated", "reordered", "torn", "refused")


class Check(msgspec.Struct, frozen=True):
    """How many acknowledged lines are lost, and how many lines are doubled, out of order or torn (or nobody's).

    `refused` were not taken, and the writer was told so; `error` says why the session could not be read.
    """

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    torn: int = 0
    refused: int = 0
    error: str = ""

    @property
    def is_clean(self) -> bool:
        """True if nothing that was acknowledged is missing, doubled, moved or damaged."""
        return not (self.lost or self.duplicated or self.reordered or self.torn or self.error)

    def __add__(self, other: Check) -> Check:
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Check(**counts, error=self.error or other.error)


class Written(msgspec.Struct, frozen=True):
    """What one writer tried: lines 0 to `count` - 1, of which those in `refused` were not acknowledged."""

    count: int
    refused: list[int] = []


def check(entries: Iterable[Any], mix: str, written: Mapping[int, Written]) -> Check:
    """Compare what a session holds with what its writers (by number) wrote."""
    seen: dict[int, set[int]] = {writer: set() for writer in written}
    newest = dict.fromkeys(written, -1)
    duplicated = reordered = torn = 0
    for entry in entries:
        place = _place(entry, mix)
        if place is None or place[0] not in written or place[1] >= written[place[0]].count:
            torn += 1
            continue
        writer, number = place
        duplicated += number in seen[writer]
        reordered += number < newest[writer]
        seen[writer].add(number)
        newest[writer] = max(newest[writer], number)
    acknowledged = {writer: set(range(one.count)) - set(one.refused) for writer, one in written.items()}
    return Check(
        acknowledged=sum(map(len, acknowledged.values())),
        lost=sum(len(numbers - seen[writer]) for writer, numbers in acknowledged.items()),
        duplicated=duplicated,
        reordered=reordered,
        torn=torn,
        refused=sum(len(one.refused) for one in written.values()),
    )


def _place(entry: Any, mix: str) -> tuple[int, int] | None:
    """Return (writer, number) of an entry that is as it was written, None of anything else."""
    try:
        writer, _, number = entry["id"].partition("-")
        place = int(writer), int(number)
    except (TypeError, KeyError, AttributeError, ValueError):
        return None
    return place if entry == orjson.loads(line_of(mix, *place)) else None


def check_session(subject: str, folder: str, session: str, mix: str, written: dict[str, Any]) -> dict[str, Any]:
    """Subject: read a session back and check it; `written` is by writer, as JSON has it."""
    known = {int(writer): msgspec.convert(one, Written) for writer, one in written.items()}
    handle = subject_of(subject).open(folder)
    try:
        found = check(handle.load(session), mix, known)
    except Exception as error:  # whatever a subject raises when it can't read what it holds
        total = sum(one.count - len(one.refused) for one in known.values())
        found = Check(acknowledged=total, error=f"{type(error).__name__}: {error}"[:TELLING_MAX])
    finally:
        handle.close()
    answer: dict[str, Any] = msgspec.to_builtins(found)
    return answer


def check_sessions(subject: str, folder: str, mix: str, written: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Subject: read several sessions back and check them; `written` is by session and writer."""
    found = (check_session(subject, folder, session, mix, one) for session, one in written.items())
    answer: dict[str, Any] = msgspec.to_builtins(sum((msgspec.convert(one, Check) for one in found), Check()))
    return answer
