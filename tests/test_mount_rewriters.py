"""Programs that rewrite one session at once, while others append to it: nothing that was appended is ever not shown."""

from __future__ import annotations

import io
import os
from collections import Counter

import pytest
from helpers import together

import shardstore
from shardstore.mount.handles import Sessions

FIRST_PID = 10_000_000  # beyond what a kernel gives
REWRITERS, APPENDERS, ROUNDS = 4, 4, 25


def read_all(sessions: Sessions, pid: int) -> bytes:
    """Read the session as one program does, in pieces."""
    file = sessions.open("x.jsonl", os.O_RDONLY, pid)
    try:
        data = b""
        while piece := file.read(100, len(data)):
            data += piece
        return data
    finally:
        file.release()


@pytest.mark.parametrize("way", ["rename", "truncate"])
def test_nothing_that_was_appended_is_lost_by_rewrites(store_path: str, way: str) -> None:
    """Rewriters that keep what they know, in two mounts, and appenders: every appended line is shown, once, whole."""
    store = shardstore.open(store_path, durability="none", compact_shards=64)
    mounts = [Sessions(store), Sessions(shardstore.open(store_path, durability="none"))]
    store.create("x")

    def rewrite(worker: int) -> None:
        sessions, pid, mine = mounts[worker % 2], FIRST_PID + worker, b'{"rewriter":%d,' % worker
        for round_ in range(ROUNDS):
            known = read_all(sessions, pid)
            kept = [line for line in known.splitlines(keepends=True) if not line.startswith(mine)]
            content = b"".join(kept) + mine + b'"round":%d}\n' % round_
            if way == "rename":
                sessions.replace("x.jsonl", io.BytesIO(content), None, pid)
            else:
                file = sessions.open("x.jsonl", os.O_WRONLY | os.O_TRUNC, pid)
                file.write(content, 0)
                file.flush()
                file.release()

    def append(worker: int) -> None:
        for number in range(ROUNDS):
            line = b'{"appender":%d,"n":%d}\n' % (worker, number)
            if worker % 2:
                store.session("x").append(line)
                continue
            file = mounts[0].open("x.jsonl", os.O_WRONLY | os.O_APPEND, FIRST_PID + 100 + worker)
            file.write(line, 0)
            file.release()

    together([lambda w=w: rewrite(w) for w in range(REWRITERS)] + [lambda w=w: append(w) for w in range(APPENDERS)])
    shown = Counter(read_all(Sessions(store), FIRST_PID - 1).splitlines())
    wanted = {b'{"appender":%d,"n":%d}' % (w, n) for w in range(APPENDERS) for n in range(ROUNDS)}
    assert {line for line in shown if b"appender" in line} == wanted
    assert max(shown[line] for line in wanted) == 1
    store.close()
