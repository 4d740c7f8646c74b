"""SQLite in WAL mode, through the standard library.

Rule: one connection a process, autocommit, one INSERT an append: SQLite takes the write lock itself, so nobody needs
BEGIN IMMEDIATE, and busy writers wait for up to a minute inside SQLite. `synchronous=FULL` makes a commit in WAL mode
survive a power loss; `NORMAL` leaves the flush to the checkpoint and may lose the last commits, but corrupts nothing
(sqlite.org/pragma.html#pragma_synchronous, sqlite.org/wal.html). Checkpoints come by themselves every 1,000 pages.
Strategy: one table for all sessions, keyed by rowid, so that rows are packed in the order in which they came; an index
finds a session's. A table that is clustered by session loaded more slowly and split its pages; a database for each
session would need a connection for each.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from benchmarks.subjects.base import Handle, Refused, Subject, decoded

__all__ = ["SUBJECTS", "Sqlite"]

TIMEOUT_S = 60.0
RETRY_S = 0.01  # of the change to WAL, for which SQLite itself does not wait
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, session TEXT NOT NULL, payload BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS log_session ON log (session, seq)",
)
INSERT = "INSERT INTO log (session, payload) VALUES (?, ?)"
SINCE = "SELECT payload FROM log WHERE session = ? ORDER BY seq LIMIT -1 OFFSET ?"
LAST = "SELECT payload FROM log WHERE session = ? ORDER BY seq DESC LIMIT ?"


class Sqlite(Handle):
    """One database for all sessions."""

    def __init__(self, folder: str, *, synchronous: str, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._database = sqlite3.connect(
            os.path.join(folder, "log.sqlite"), isolation_level=None, timeout=timeout_s
        )  # fmt: skip
        self._to_wal()
        self._database.execute(f"PRAGMA synchronous={synchronous}")
        for statement in SCHEMA:
            self._database.execute(statement)

    def _to_wal(self) -> None:
        """Several may open a new database at once, and the change to WAL doesn't wait for the others by itself."""
        give_up = time.monotonic() + self._timeout_s
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > give_up:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def append(self, session: str, line: bytes) -> None:
        """Insert a row, which is a transaction."""
        try:
            self._database.execute(INSERT, (session, line))
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                raise Refused(str(error)) from error
            raise

    def load(self, session: str) -> list[Any]:
        """Select all rows of a session."""
        return self.since(session, 0)

    def since(self, session: str, seen: int) -> list[Any]:
        """Select the rows after the first ones."""
        return _payloads(self._database.execute(SINCE, (session, seen)))

    def last(self, session: str, count: int) -> list[Any]:
        """Select backwards from the last row."""
        return _payloads(self._database.execute(LAST, (session, count)))[::-1]

    def sessions(self) -> list[str]:
        """Select what is distinct, from the index."""
        return [name for (name,) in self._database.execute("SELECT DISTINCT session FROM log")]

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Insert in one transaction."""
        self.fill_many([(session, lines)])

    def fill_many(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Insert all sessions in one transaction."""
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or rolls back what raised
            for session, lines in sessions:
                self._database.executemany(INSERT, ((session, line) for line in lines))

    def compact(self, session: str) -> None:  # noqa: ARG002 - sessions share the log
        """Checkpoint the whole log into the database, and empty it."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def leave_upkeep(self) -> None:
        """Checkpoint no longer by itself."""
        self._database.execute("PRAGMA wal_autocheckpoint=0")

    def close(self) -> None:
        """Close the connection; the last one checkpoints."""
        self._database.close()


def _payloads(rows: Iterable[tuple[bytes]]) -> list[Any]:
    return decoded(payload for (payload,) in rows)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


SUBJECTS = (
    Subject("sqlite-full", "SQLite, WAL, synchronous=FULL", True, partial(Sqlite, synchronous="FULL")),
    Subject("sqlite-normal", "SQLite, WAL, synchronous=NORMAL", False, partial(Sqlite, synchronous="NORMAL")),
)
