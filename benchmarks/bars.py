"""The speed bars: what shardstore promises, each as a ratio within one run.

    python -m benchmarks.bars [--only NAME...] [--rounds N] [--quick] [--dir DIR] [--json]

Rule: no speed without a correctness check, and no absolute number as a bound: machines differ, ratios much less.
Both sides of a ratio take turns, in fresh processes or in one, and medians over the rounds are compared.
Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable

import orjson

import shardstore
from benchmarks import bulk, crowd, mount, single, topdir
from benchmarks.machine import filesystem
from benchmarks.report import Row, as_json, missed, table
from benchmarks.workshop import Workshop

__all__ = ["BARS", "main"]

BARS: dict[str, Callable[[Workshop], list[Row]]] = {
    "single": single.single_durable,
    "single-unsynced": single.single_unsynced,
    "group-commit": single.group_commit,
    "crowd": crowd.crowd_durable,
    "crowd-unsynced": crowd.crowd_unsynced,
    "load": bulk.load,
    "tail": bulk.tail,
    "memory": bulk.memory,
    "first-append": bulk.first_append,
    "compaction": bulk.compaction,
    "topdir": topdir.topdir,
    "mount": mount.mount,
}
ONLY_ON_REQUEST = ("topdir", "mount")


def _circumstances(path: str) -> dict[str, str]:
    return {
        "command": " ".join(["python -m benchmarks.bars", *_words()]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "filesystem": filesystem(path),
        "python": platform.python_version(),
        "shardstore": shardstore.__version__,
        "orjson": orjson.__version__,
        "sqlite": sqlite3.sqlite_version,
    }


def _words() -> list[str]:
    """Return the command line without the folder, which is of no use elsewhere."""
    words = sys.argv[1:]
    if "--dir" in words:
        at = words.index("--dir")
        del words[at : at + 2]
    return words


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bars", description="Measure shardstore's speed bars.")
    parser.add_argument("--only", nargs="+", choices=sorted(BARS), metavar="NAME", help=", ".join(BARS))
    parser.add_argument("--rounds", type=int, help="rounds of every bar, instead of its own number")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and less data; the ratios get rougher")
    parser.add_argument("--dir", default=".", help="where to work; it must lie on a disk, not on tmpfs (default: here)")
    parser.add_argument("--json", action="store_true", help="print everything that was measured")
    return parser.parse_args()


def main() -> int:
    """Measure the bars that the command line names; return the exit status."""
    arguments = _arguments()
    kind = filesystem(arguments.dir)
    if kind in ("tmpfs", "ramfs"):
        sys.exit(f"{arguments.dir} lies on {kind}, where a flush costs nothing; choose a folder on a disk with --dir")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shardstore-bars-", dir=arguments.dir) as path:
        workshop = Workshop(os.path.abspath(path), arguments.rounds, arguments.quick)
        for name in arguments.only or [name for name in BARS if name not in ONLY_ON_REQUEST]:
            measured = BARS[name](workshop)
            rows += measured
            if not arguments.json:
                print(f"{name}: {', '.join(f'{row.ratio:.3f} {row.verdict}'.strip() for row in measured)}", flush=True)
        circumstances = _circumstances(path)
    if arguments.json:
        print(json.dumps({**circumstances, "rows": [as_json(row) for row in rows]}, indent=1))
    else:
        print("\n" + table(rows) + "\n\n" + "\n".join(f"{name}: {fact}" for name, fact in circumstances.items()))
    return 1 if missed(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
