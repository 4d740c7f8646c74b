"""Logging into a session: a `logging.FileHandler` whose file is one.

Rule: everything but the file is the standard handler's, so a configuration changes in one word, its class.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from shardstore.jsonl.files import open as open_session
from shardstore.jsonl.places import Name
from shardstore.record import Kind
from shardstore.store import Store

__all__ = ["FileHandler"]


class FileHandler(logging.FileHandler):
    """Appends each log message as one record: see `shardstore.jsonl.open` and `logging.FileHandler`.

    Any number of processes may log to one session. Records are events of the source `logging` unless told otherwise.
    """

    def __init__(
        self,
        filename: Name,
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        *,
        store: Store | str | os.PathLike[str] | None = None,
        kind: Kind = "event",
        source: str = "logging",
    ) -> None:
        self._file = filename if store is not None else os.path.abspath(os.fspath(filename))
        self._store = store
        self._kind: Kind = kind
        self._source = source
        super().__init__(os.fsdecode(filename), mode, encoding, delay, errors)

    def _open(self) -> Any:
        return open_session(
            self._file,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            store=self._store,
            kind=self._kind,
            source=self._source,
        )
