"""Sessions as files: `shardstore.jsonl.open` in the place of `open`, for programs that know only `.jsonl`.

    >>> from shardstore import jsonl
    >>> with jsonl.open("chat.jsonl", "a") as file:
    ...     print('{"role":"user"}', file=file)

Rule: what comes back is a real `io` object, and its answers and exceptions are those of a file. A line becomes
permanent when the `write` that completes it returns; whatever would change bytes that are written is refused.
Strategy: `files` opens, `places` finds the session that a path means, `reading` shows its view as a raw file,
`writing` turns completed lines into records, `logs` is the handler for `logging`.
"""

from shardstore.jsonl.files import open  # noqa: A004
from shardstore.jsonl.logs import FileHandler

__all__ = ["FileHandler", "open"]
