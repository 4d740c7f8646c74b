"""LMDB, through py-lmdb.

Rule: one environment a process, a write transaction an append; LMDB's own lock puts writers in a row. Durable is its
default, `sync=True`. With `sync=False` nothing is flushed, and by its documentation a power loss may not only lose the
last transactions, but corrupt the whole database (lmdb.readthedocs.io: Environment): a weaker promise than the other
unsynced subjects make. `map_size` is an address range, not a size on the disk, and is to be large.
Strategy: all sessions in one tree, under session, NUL, seq. A named database for each session is the other way: its
appends and loads were measured to cost the same, but a new session takes four times as long and a page of its own,
every transaction pays for each slot of `max_dbs`, and opening one searches all that are open, so the documentation
advises a moderate number of them, and sessions are many. `append=True`, which fills pages to their ends, is only
allowed at the end of the tree, and used there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from benchmarks.subjects.base import Handle, Subject, decoded

__all__ = ["SUBJECTS"]

MAP_BYTES = 16 << 30
READERS_MAX = 1024
_SEQ = struct.Struct(">Q")
_SEQ_MAX = b"\xff" * _SEQ.size


class Lmdb(Handle):
    """One environment, one tree. The seqs of a session are 1, 2, 3, …"""

    def __init__(self, folder: str, *, durable: bool) -> None:
        import lmdb

        self._environment: Any = lmdb.open(
            folder, map_size=MAP_BYTES, sync=durable, metasync=durable, max_readers=READERS_MAX
        )  # fmt: skip

    def append(self, session: str, line: bytes) -> None:
        """Put one entry under the next seq."""
        start = _start(session)
        with self._environment.begin(write=True) as transaction:
            cursor = transaction.cursor()
            newest, is_end = _newest(cursor, start)
            cursor.put(start + _SEQ.pack(newest + 1), line, append=is_end)

    def load(self, session: str) -> list[Any]:
        """Walk over all entries of a session."""
        return self.since(session, 0)

    def since(self, session: str, seen: int) -> list[Any]:
        """Walk over the entries after the first ones."""
        with self._environment.begin(buffers=True) as transaction:
            cursor, start = transaction.cursor(), _start(session)
            newest, _ = _newest(cursor, start)
            cursor.set_range(start + _SEQ.pack(seen + 1))
            return decoded(islice(cursor.iternext(keys=False), max(newest - seen, 0)))

    def last(self, session: str, count: int) -> list[Any]:
        """Walk backwards over the last entries."""
        with self._environment.begin(buffers=True) as transaction:
            cursor = transaction.cursor()
            newest, _ = _newest(cursor, _start(session))
            return decoded(islice(cursor.iterprev(keys=False), min(newest, count)))[::-1]

    def sessions(self) -> list[str]:
        """Jump from each session's first key to the next session's."""
        names = []
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.first()
            while found:
                name = cursor.key()[: -_SEQ.size - 1]
                names.append(name.decode())
                found = cursor.set_range(name + b"\1")
        return names

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Put all entries in one transaction."""
        self.fill_many([(session, lines)])

    def fill_many(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Put all sessions in one transaction."""
        with self._environment.begin(write=True) as transaction:
            cursor = transaction.cursor()
            for session, lines in sessions:
                start = _start(session)
                newest, is_end = _newest(cursor, start)
                for seq, line in enumerate(lines, newest + 1):
                    cursor.put(start + _SEQ.pack(seq), line, append=is_end)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


def _start(session: str) -> bytes:
    return session.encode() + b"\0"


def _newest(cursor: Any, start: bytes) -> tuple[int, bool]:
    """Return a session's last seq, 0 if it has none, and whether the tree ends there; the cursor is at its entry."""
    is_end = not cursor.last() or bytes(cursor.key())[: -_SEQ.size] <= start
    if not is_end:
        cursor.set_range(start + _SEQ_MAX)
        cursor.prev()
    key = bytes(cursor.key())
    return int(_SEQ.unpack(key[-_SEQ.size :])[0]) if key[: -_SEQ.size] == start else 0, is_end


SUBJECTS = (
    Subject("lmdb", "LMDB, sync=True", True, partial(Lmdb, durable=True), ("lmdb",)),
    Subject("lmdb-unsynced", "LMDB, sync=False", False, partial(Lmdb, durable=False), ("lmdb",)),
)
