"""Generations: which records stand for a session that programs have rewritten.

Rule: the newest rewrite stands in the place of what its writer had seen; what others appended meanwhile follows it, and
then what came later. A reader that is in the midst of a generation goes on in it until a newer rewrite ends it.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardstore.record import Record
from shardstore.rewrite import decode_rewrite, is_rewrite
from shardstore.session import Session

__all__ = ["Rewritten", "newest_rewrite", "shown_records"]


class Rewritten(Exception):  # noqa: N818
    """A newer generation has begun."""


def newest_rewrite(session: Session, after: int, head: int) -> Record | None:
    """Return the last rewrite with a seq above `after`, up to `head`. Raises what `Session.records` does."""
    newest = None
    for record in session.records(after + 1, head, kind="control"):
        newest = record if is_rewrite(record) else newest
    return newest


def shown_records(session: Session, rewrite: Record | None, after: int, head: int) -> Iterator[Record]:
    """Yield what stands for the records above `after`, up to `head`, in the generation that `rewrite` began.

    From the beginning (`after` is 0) a rewrite's content comes first, as a turn at the seq that its writer had seen;
    records that it replaces follow without their payload. Raises Rewritten at a newer rewrite, Corrupt for one that
    can't be read, and what `Session.records` does.
    """
    said = None if rewrite is None else decode_rewrite(rewrite)
    if rewrite is not None and said is not None and not after:
        yield Record(said.seen, "turn", rewrite.source, rewrite.at_ms, None, None, rewrite.nonce, said.content)
        after = said.seen
    for record in session.records(after + 1, head):
        if is_rewrite(record) and (rewrite is None or record.seq > rewrite.seq):
            raise Rewritten
        if said is not None and said.replaces(record.seq):
            yield Record(record.seq, "control", record.source, record.at_ms, None, None, record.nonce, b"")
        else:
            yield record
