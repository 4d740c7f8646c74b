"""Making a session durable on request, where its durability does not do so by itself.

Rule: what could be read before the call survives a power loss after it. In a `sync` session only names can be missing
on the disk, those of records that nobody has acknowledged yet; in a `none` session the shards' bytes can.
Strategy: flush the filesystem as a whole where that is to be relied on; elsewhere compact, for a segment is durable.
"""

from __future__ import annotations

import errno

from shardstore.compact import compact
from shardstore.errors import Unavailable, describe
from shardstore.log import SessionLog

__all__ = ["make_durable"]

LOCK_WAIT_S = 10.0  # how long a compactor at work is waited for


def make_durable(log: SessionLog) -> None:
    """Return once every record that was visible before the call survives a power loss.

    Raises NotFound, Deleted, Corrupt, Unavailable, OutcomeUnknown.
    """
    manifest = log.look()
    if manifest.durability == "sync":
        log.backend.settle(log.keys.shards)
        return
    flush = log.backend.flusher()
    if flush is not None:
        flush()
        return
    end = log.gallop(manifest.watermark)
    with log.backend.exclusive(log.keys.folder, wait_s=LOCK_WAIT_S) as held:
        if not held or compact(log).watermark < end:
            why = "the session could not be made durable; is a compactor stopped?"
            raise Unavailable(describe(why, session=log.id, upto=end), errno=errno.EAGAIN)
