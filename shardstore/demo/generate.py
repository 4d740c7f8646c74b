"""A transcript in the session format of pi and OpenClaw, for those who have none at hand.

A header line, then messages of a user, an assistant and its tools, chained by `id` and `parentId`, with usage as
providers report it. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

__all__ = ["generate_transcript"]

BEGIN = datetime(2026, 1, 12, 8, 30, tzinfo=UTC)
TASKS = (
    ("why does the nightly import stop at 02:00?", "import.log", "the job is killed by a memory limit"),
    ("please reschedule the dentist to thursday afternoon", "calendar.ics", "thursday 15:30 is free and booked"),
    ("summarise yesterday's support mails", "inbox/2026-01-11.mbox", "eleven mails, two of them urgent"),
    ("the door sensor in the hall reports nothing", "sensors/hall.json", "its battery went empty on friday"),
    ("draft a reply to the landlord about the heating", "letters/landlord.md", "a draft that names both dates"),
    ("which of the invoices are still open?", "invoices/2025.csv", "three are open, the oldest since october"),
    ("rename the branch and open a pull request", ".git/HEAD", "the branch is renamed, the request is open"),
)
FILLER = ("I checked the timestamps first.", "Nothing else in there looks unusual.", "I kept the wording short.",
          "The rest can wait until tomorrow.", "I left the original untouched.")  # fmt: skip


def generate_transcript(*, turns: int, seed: int = 0) -> list[bytes]:
    """Return a session of `turns` turns as lines; each turn has two model calls, the first of which uses a tool."""
    chain = _Chain(random.Random(seed))
    for number in range(turns):
        question, file, finding = TASKS[number % len(TASKS)]
        chain.message("user", [{"type": "text", "text": question}])
        call: dict[str, object] = {
            "type": "toolCall",
            "id": f"toolu_{chain.token()}",
            "name": "read",
            "arguments": {"path": file},
        }
        chain.answer([{"type": "text", "text": f"Let me look at {file}."}, call], stop_reason="toolUse")
        result: list[dict[str, object]] = [{"type": "text", "text": "\n".join(chain.sentences(6))}]
        chain.message("toolResult", result, toolCallId=call["id"], toolName="read", isError=False)
        words = f"I found it: {finding}. " + " ".join(chain.sentences(4))
        chain.answer([{"type": "text", "text": words}], stop_reason="stop")
    return chain.lines


class _Chain:
    """The lines so far; every entry points to the one before it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._now = BEGIN
        self._parent: str | None = None
        self.lines: list[bytes] = []
        header = {"type": "session", "version": 3, "id": f"demo-{self.token()}", "cwd": "/home/robin/assistant"}
        self.lines.append(_encode({**header, "timestamp": self._tick()}))

    def token(self) -> str:
        """Return a fresh identifier."""
        return f"{self._chance.getrandbits(48):012x}"

    def sentences(self, count: int) -> list[str]:
        """Return words for a text nobody reads."""
        return [self._chance.choice(FILLER) for _ in range(count)]

    def answer(self, content: list[dict[str, object]], *, stop_reason: str) -> None:
        """Add an assistant's entry with the usage that it cost."""
        output = self._chance.randint(180, 900)
        spent = self._chance.randint(9_000, 40_000)
        usage = {"input": spent, "output": output, "cacheRead": 0, "cacheWrite": 0, "totalTokens": spent + output}
        self.message("assistant", content, model="demo-model", provider="demo", usage=usage, stopReason=stop_reason)

    def message(self, role: str, content: list[dict[str, object]], **more: object) -> None:
        """Add one message entry."""
        name = self.token()
        stamp = self._tick()
        entry = {"type": "message", "id": name, "parentId": self._parent, "timestamp": stamp}
        self.lines.append(_encode({**entry, "message": {"role": role, "content": content, **more}}))
        self._parent = name

    def _tick(self) -> str:
        self._now += timedelta(seconds=self._chance.randint(1, 40))
        return self._now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode("ascii")
