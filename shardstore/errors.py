"""Every error that leaves shardstore, one class per next move of the caller.

    ShardstoreError
    ├── InvalidRequest     (ValueError)   change the request; nothing was written
    │   └── UnsupportedFormat             written by a newer shardstore: upgrade this one
    ├── NotFound           (LookupError)  no such store or session
    │   └── Deleted                       the session was deleted; its id is spent for good
    ├── Conflict                          read what came between (`seqs`), then decide
    ├── Unavailable        (OSError)      the disk, a permission or a limit stands in the way (`errno`); nothing was
    │                                     committed: remove the cause, then repeat the call
    ├── OutcomeUnknown     (OSError)      visible perhaps, durable perhaps: repeat with the same `key`, or read `seq`
    └── Corrupt            (ValueError)   stored bytes are not what was written: `shardstore verify`, then `--repair`

Each also inherits the standard class that a caller would expect. The type is API, the text is not. A message is a
lowercase sentence followed by `key=value` facts. A lost race is not an error and never appears here.
"""

from __future__ import annotations

__all__ = [
    "Conflict",
    "Corrupt",
    "Deleted",
    "InvalidRequest",
    "NotFound",
    "OutcomeUnknown",
    "ShardstoreError",
    "Unavailable",
    "UnsupportedFormat",
    "describe",
]


def describe(sentence: str, **facts: object) -> str:
    """Return `sentence` followed by its facts as ` key=value`, values quoted as Python would."""
    return " ".join([sentence, *(f"{name}={value!r}" for name, value in facts.items())])


class ShardstoreError(Exception):
    """Any error of shardstore."""


class InvalidRequest(ShardstoreError, ValueError):
    """The request can't be honoured as it stands; nothing was written."""


class UnsupportedFormat(InvalidRequest):
    """The store was written by a newer format than this version reads."""


class NotFound(ShardstoreError, LookupError):
    """There is no such store or session."""


class Deleted(NotFound):
    """The session was deleted; its id is never used again."""


class Conflict(ShardstoreError):
    """A condition of the request does not hold; nothing was written.

    `seqs` are the records that came between (for `if_no_turn_since`), `existing` the seq that already holds the key
    or None.
    """

    def __init__(self, message: str, *, seqs: tuple[int, ...] = (), existing: int | None = None) -> None:
        super().__init__(message)
        self.seqs = seqs
        self.existing = existing


class Unavailable(ShardstoreError, OSError):
    """The environment refused (`errno` says why); nothing was committed."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class OutcomeUnknown(ShardstoreError, OSError):
    """The record may have been committed, and may not survive a power loss.

    `seq` is the slot it took, `nonce` its identity there. A caller that appended with a `key` simply repeats the
    call; another one reads `seq` and compares the nonce.
    """

    def __init__(self, message: str, *, seq: int | None = None, nonce: str | None = None) -> None:
        super().__init__(message)
        self.seq = seq
        self.nonce = nonce


class Corrupt(ShardstoreError, ValueError):
    """Stored bytes are damaged or missing; `seq` is the first record concerned, where one is known."""

    def __init__(self, message: str, *, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq
