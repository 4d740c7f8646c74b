"""shardstore: transcript storage for agent gateways. Sharded, append-only, lock-free for writers.

    >>> import shardstore
    >>> store = shardstore.open("transcripts")
    >>> session = store.session("telegram:42")
    >>> session.append({"role": "user", "content": "hello"}).seq
    1

What is stored and why it is safe stands in FORMAT.md beside this file.
"""

from typing import TYPE_CHECKING

from shardstore.aio import AsyncSession
from shardstore.background import CompactionWarning
from shardstore.compact import CompactReport
from shardstore.describe import Description, Overlap, Tally
from shardstore.errors import (
    Conflict,
    Corrupt,
    Deleted,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    ShardstoreError,
    Unavailable,
    UnsupportedFormat,
)
from shardstore.follow import Follower
from shardstore.ingest import Imported
from shardstore.manifest import Durability
from shardstore.record import Kind, NewRecord, Receipt, Record, split_lines
from shardstore.session import Session, SessionInfo
from shardstore.store import Store, repair_store
from shardstore.store import open_store as open  # noqa: A004
from shardstore.verify import Finding

__all__ = [
    "AsyncSession",
    "CompactReport",
    "CompactionWarning",
    "Conflict",
    "Corrupt",
    "Deleted",
    "Description",
    "Durability",
    "Finding",
    "Follower",
    "Imported",
    "InvalidRequest",
    "Kind",
    "NewRecord",
    "NotFound",
    "OutcomeUnknown",
    "Overlap",
    "Receipt",
    "Record",
    "Session",
    "SessionInfo",
    "ShardstoreError",
    "Store",
    "Tally",
    "Unavailable",
    "UnsupportedFormat",
    "__version__",
    "open",
    "repair_store",
    "split_lines",
]

__version__ = "0.1.0"

if not TYPE_CHECKING:  # a checker finds the module `shardstore.jsonl` by itself, and still checks every other name

    def __getattr__(name: str) -> object:
        """Import `shardstore.jsonl` when it is first used: the engine alone starts faster."""
        if name == "jsonl":
            from importlib import import_module

            return import_module("shardstore.jsonl")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
