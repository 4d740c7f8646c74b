"""The session stores of two agent frameworks: Strands' FileSessionManager and OpenAI Agents' SQLiteSession.

Rule: each gets what its users give it, a message or an item as a dict, which the framework turns into text itself, and
what is read back is what its own decoder made of that. Neither has a way to list its sessions.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import orjson

from benchmarks.subjects.base import Handle, Refused, Subject, decoded

__all__ = ["SUBJECTS", "Strands"]

AGENT = "default"  # the id of Strands' Agent if its user gives it none
ITEMS_AT_ONCE = 1_000
CREATIONS_MAX, RETRY_S = 100, 0.01
NO_LIST = {"open-list": "it has no way to list its sessions"}


class Strands(Handle):
    """A file a message: strandsagents.com, Session Management. It flushes nothing, and has no setting for it.

    A message's number is the caller's to count: its Agent takes the last one's number when a session is opened and
    counts on from there, and so does this. Of two processes that have the same agent of a session open, each replaces
    what the other wrote. An agent is known by its id, which is the same in every process unless users say otherwise.
    """

    def __init__(self, folder: str) -> None:
        from strands.session.file_session_manager import FileSessionManager
        from strands.types.exceptions import SessionException
        from strands.types.session import SessionAgent, SessionMessage

        self._folder = folder
        self._manager: Any = FileSessionManager
        self._taken: type[Exception] = SessionException
        self._agent: Any = SessionAgent(agent_id=AGENT, state={}, conversation_manager_state={})
        self._message: Any = SessionMessage.from_message
        self._managers: dict[str, Any] = {}
        self._next: dict[str, int] = {}

    def _opened(self, session: str) -> Any:
        """Return a session's manager, which creates a session that is not there yet."""
        if session not in self._managers:
            self._managers[session] = self._created(session)
        return self._managers[session]

    def _created(self, session: str) -> Any:
        for _ in range(CREATIONS_MAX - 1):
            try:
                return self._manager(session_id=session, storage_dir=self._folder)
            except self._taken:  # somebody else is creating it at this moment
                time.sleep(RETRY_S)
        return self._manager(session_id=session, storage_dir=self._folder)

    def _number(self, session: str) -> int:
        """Return the next message's number, for which an Agent looks once."""
        if session not in self._next:
            manager = self._opened(session)
            if manager.read_agent(session, AGENT) is None:
                manager.create_agent(session, self._agent)
            there = manager.list_messages(session, AGENT)
            self._next[session] = there[-1].message_id + 1 if there else 0
        return self._next[session]

    def append(self, session: str, line: bytes) -> None:
        """Create the next message."""
        message = self._message(orjson.loads(line), self._number(session))
        self._opened(session).create_message(session, AGENT, message)
        self._next[session] += 1

    def load(self, session: str) -> list[Any]:
        """List all messages."""
        return self.since(session, 0)

    def since(self, session: str, seen: int) -> list[Any]:
        """List the messages from an offset on."""
        messages = self._opened(session).list_messages(session, AGENT, offset=seen)
        return [one.to_message() for one in messages]

    def last(self, session: str, count: int) -> list[Any]:
        """List the last messages: the offset is that of a slice."""
        return self.since(session, -count)


class OpenAIAgents(Handle):
    """One database for all sessions: openai.github.io/openai-agents-python/sessions.

    It sets WAL and leaves `synchronous` at SQLite's default, which is FULL unless whoever built SQLite changed it, and
    the busy timeout at the five seconds of Python's. Its calls are coroutines; one event loop stays open for all.
    """

    def __init__(self, folder: str) -> None:
        from agents import SQLiteSession

        self._path = os.path.join(folder, "conversations.db")
        self._new: Any = SQLiteSession
        self._held: dict[str, Any] = {}
        self._runner = asyncio.Runner()

    def _session(self, session: str) -> Any:
        if session not in self._held:
            self._held[session] = self._new(session, self._path)
        return self._held[session]

    def append(self, session: str, line: bytes) -> None:
        """Add one item."""
        self._add(self._session(session), [orjson.loads(line)])

    def _add(self, session: Any, items: list[Any]) -> None:
        try:
            self._runner.run(session.add_items(items))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise Refused(str(error)) from error

    def load(self, session: str) -> list[Any]:
        """Get all items."""
        return list(self._runner.run(self._session(session).get_items()))

    def last(self, session: str, count: int) -> list[Any]:
        """Get the last items."""
        return list(self._runner.run(self._session(session).get_items(limit=count)))

    def fill(self, session: str, lines: Iterable[bytes]) -> None:
        """Add many items at once, each time in one transaction, and close the session: each holds connections."""
        opened, lines = self._new(session, self._path), iter(lines)
        while items := decoded(islice(lines, ITEMS_AT_ONCE)):
            self._add(opened, items)
        opened.close()

    def close(self) -> None:
        """Close all sessions and the loop."""
        while self._held:
            self._held.popitem()[1].close()
        self._runner.close()


SUBJECTS = (
    Subject("strands", "Strands FileSessionManager", False, Strands, ("strands",), cannot=NO_LIST, writers_max=8),
    Subject(
        "openai-agents", "OpenAI Agents SQLiteSession", True, OpenAIAgents, ("agents",), cannot=NO_LIST, writers_max=8
    ),
)
