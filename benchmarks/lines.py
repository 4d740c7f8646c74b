"""Transcript lines whose sizes are those of real ones.

Rule: sizes follow quantiles measured over real transcripts (bytes a line, by program); every line is a JSON object with
an id that says who wrote it and which of his it is, so that a check knows what is lost, doubled, moved or torn. A
writer's lines are an assistant's and a user's by turns, for there are gateways that look at who speaks.
Strategy: the sizes of a mix are a fixed ladder of its quantiles in a fixed random order, so that a thousand lines have
the whole distribution, the largest line included, and every run the same.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache

__all__ = ["MIXES", "Mix", "bodies", "line_of", "lines", "size_at"]

Mix = tuple[int, int, int, int]  # bytes a line: p50, p90, p99, max
MIXES: dict[str, Mix] = {
    "openclaw": (734, 2_692, 16_752, 116_197),  # pi's are the same
    "claude-code": (1_058, 6_296, 51_266, 961_405),
    "codex": (447, 2_236, 11_967, 119_838),
}
SMALLEST = 150
LADDER = 1_000
_SHARES = (0.0, 0.5, 0.9, 0.99, 1.0)
_WORDS = (
    "the file was written",
    "and read back;",
    "def append(self, record): return self.log[-1]  # naïve, but it will do\\n",
    'error: \\"expected\\" 42 items, got 41',
    "at /srv/agent/session/transcript.jsonl:1021\\t--verbose",
)


def size_at(mix: str, share: float) -> int:
    """Return the size in bytes that `share` (0 to 1) of a mix's lines do not exceed: log-linear between quantiles."""
    sizes = (SMALLEST, *MIXES[mix])
    at = min(bisect_right(_SHARES, share), len(_SHARES) - 1)
    low, high = _SHARES[at - 1], _SHARES[at]
    return int(sizes[at - 1] * math.exp((share - low) / (high - low) * math.log(sizes[at] / sizes[at - 1])))


@cache
def bodies(mix: str) -> tuple[bytes, ...]:
    """Return what follows the id in the lines of a mix: a ladder of sizes in a random order, always the same."""
    rng = random.Random(mix)
    sizes = [size_at(mix, (step + 0.5) / (LADDER - 1)) for step in range(LADDER - 1)] + [MIXES[mix][-1]]
    rng.shuffle(sizes)
    roles = itertools.cycle((b"assistant", b"user"))
    return tuple(_body(rng, size - len(_head(0, 0)), role) for size, role in zip(sizes, roles, strict=False))


def _body(rng: random.Random, size: int, role: bytes) -> bytes:
    usage = b'"usage":{"input":%d,"output":%d},' % (rng.randrange(9_000), rng.randrange(900)) if size > 600 else b""
    head = b'"timestamp":"2026-01-01T00:00:00.000Z",%s"message":{"role":"%s","text":"' % (usage, role)
    piece = " ".join(rng.choices(_WORDS, k=16)).encode()
    room = size - len(head) - len(b'"}}\n')
    text = (piece * math.ceil(max(room, 0) / len(piece)))[: max(room, 0)]
    while text and not _is_whole(text):
        text = text[:-1]
    return head + text + b"x" * (room - len(text)) + b'"}}\n'


def _is_whole(text: bytes) -> bool:
    """Say whether a text ends neither within an escape nor within a character."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 0


def _head(writer: int, number: int) -> bytes:
    return b'{"type":"message","id":"%d-%d",' % (writer, number)


def line_of(mix: str, writer: int, number: int) -> bytes:
    """Return line `number` of a writer, with its LF: an assistant's if the number is even, else a user's."""
    ladder = bodies(mix)
    return _head(writer, number) + ladder[(number + 38 * writer) % len(ladder)]


def lines(mix: str, writer: int, first: int = 0) -> Iterator[bytes]:
    """Yield a writer's lines from number `first` on, without end."""
    return (line_of(mix, writer, number) for number in itertools.count(first))
