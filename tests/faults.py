"""The table of faults: `python -m tests.faults` measures it, `--write` writes it to FAULTS.md beside this file.

Rule: every cell is what a trial answered and what the judges found in the store afterwards; nothing is written by hand.
`test_fault_table` measures all of it again and compares.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the tests import each other by plain names, and the package under test

from fault_cases import FAULTS, WEATHER, Fault, Weather, cell, weather_cell  # noqa: E402
from fault_operations import OPERATIONS, Operation, Template, template  # noqa: E402
from fault_swaps import ASKED, SWAPS, swap_cells  # noqa: E402
from fuzzing_stores import memory_folder  # noqa: E402
from small_disks import COLUMNS, DISKS, Disk, NotMountableError, disk_cells  # noqa: E402

TABLE = HERE / "FAULTS.md"
PROGRESS_S = 5.0
Rows = dict[str, list[str]]

HEAD = """# What each fault does to each operation

Measured by `python -m tests.faults --write`, checked by `test_fault_table`; not written by hand. Each call of the kind
that fails fails once in turn, all others being healthy; then all of that kind fail for good. After every trial fresh
handles judged the store: every acknowledged record is there once, byte for byte; a refused one is not there; an unknown
one is there at its seq under its nonce, or not at all; `verify` finds no damage; no descriptor was leaked. Then the
fault was taken away and the same handle had to do the same work.

- **done**: as without the fault. **refused**: `Unavailable`, nothing of it is stored; the next try succeeds.
- **unknown**: `OutcomeUnknown`, visible perhaps; a repetition with the same key is one record.
- **begun**: a deletion that was begun, and that goes on when it is repeated.
- **then Conflict**: the repetition says that it was done.
- **names what it can't read**: verify went on, and says which files the disk does not give.
- **yet done** would be an answer that is not true: done, although it says that it was not. The test allows none.
- **–**: the operation makes no such call. `a or b`: a for some of its calls, b for others.
  `a; for good: b`: a if one call fails, b if all do.
"""
SWAP_HEAD = """## A folder is swapped between two calls, and put back later

For a handle in use (it holds the old folders), and for a new one. Nothing is ever written through a symlink. What was
acknowledged is afterwards in the folder that was put back (the old) or in the one that stood in its place (the new).
"""

REAL_HEAD = """## Real filesystems without room

Nothing is injected here: each was filled while a writer wrote. Measured as root; where a machine can't mount one, its
row stands as it was measured elsewhere, and the test says that it was skipped.
"""


def measured(folder: Path, told: Callable[[str], None] = lambda _: None) -> dict[str, Rows]:
    """Return every row of every table, by group."""
    made = template()
    tables: dict[str, Rows] = {}
    for fault in (*FAULTS, *WEATHER):
        told(fault.row)
        for operation in OPERATIONS:
            rows = tables.setdefault(operation.group, {})
            rows.setdefault(fault.row, []).append(one_cell(fault, operation, made, folder))
    told("swaps")
    tables["swaps"] = {swap.row: swap_cells(swap, made, folder) for swap in SWAPS}
    tables["disks"] = {disk.row: _disk_row(disk, folder, told) for disk in DISKS}
    return tables


def _disk_row(disk: Disk, folder: Path, told: Callable[[str], None]) -> list[str]:
    """Return what was measured, or what the page says already where this machine can't."""
    told(disk.row)
    try:
        return disk_cells(disk, folder)
    except NotMountableError as reason:
        print(f"{disk.row}: not measured here: {reason}", file=sys.stderr)
        return committed().get(disk.row, ["not measured"] * len(COLUMNS))


def committed() -> dict[str, list[str]]:
    """Return the cells of each row of the page as it is, over all its tables, in order."""
    rows: dict[str, list[str]] = {}
    for line in TABLE.read_text().splitlines() if TABLE.exists() else ():
        if line.startswith("| ") and not line.startswith("| ---"):
            first, *cells = line[2:-2].split(" | ")
            rows.setdefault(first, []).extend(cells)
    return rows


def one_cell(fault: Fault | Weather, operation: Operation, made: Template, folder: Path) -> str:
    """Return a cell; a failure says which one it is."""
    try:
        if isinstance(fault, Fault):
            return cell(fault, operation, made, folder / "trial")
        return weather_cell(fault, operation, made, folder / "trial")
    except BaseException as error:
        error.add_note(f"fault={fault.row!r} operation={operation.name!r}")
        raise


def rendered(tables: dict[str, Rows]) -> str:
    """Return the page."""
    parts = [HEAD]
    for group, rows in tables.items():
        if group == "swaps":
            columns = [f"{who}: {ask}" for who in ("held", "new") for ask in ASKED]
            parts += [SWAP_HEAD, _table("folder", columns, rows)]
        elif group == "disks":
            parts += [REAL_HEAD, _table("filesystem", list(COLUMNS), rows)]
        else:
            columns = [operation.name for operation in OPERATIONS if operation.group == group]
            parts += [f"## {group}\n", _table("fault", columns, rows)]
    return "\n".join(parts)


def _table(corner: str, columns: list[str], rows: Rows) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *cells] for row, cells in rows.items() if set(cells) != {"–"}]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def untruths(tables: dict[str, Rows]) -> set[tuple[str, str]]:
    """Return the (fault, operation) whose answer was not true."""
    found = set()
    for group, rows in tables.items():
        columns = [operation.name for operation in OPERATIONS if operation.group == group]
        found |= {(row, name) for row, cells in rows.items() for name, text in zip(columns, cells, strict=False)
                  if "yet done" in text}  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure the table; print how it compares, or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="write FAULTS.md instead of comparing with it")
    options = parser.parse_args(arguments)
    told = [time.monotonic()]

    def tell(row: str) -> None:
        if time.monotonic() - told[0] > PROGRESS_S:
            told[0] = time.monotonic()
            print(f"now: {row}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="shardstore-faults-", dir=memory_folder()) as folder:
        tables = measured(Path(folder), tell)
    page, before = rendered(tables), ""
    with suppress(FileNotFoundError):
        before = TABLE.read_text()
    if options.write:
        TABLE.write_text(page)
    cells = sum(len(row) for rows in tables.values() for row in rows.values())
    changed = len(set(page.splitlines()) ^ set(before.splitlines()))
    print(f"{cells} cells, {len(untruths(tables))} answers that are not true, {changed} lines differ from FAULTS.md")
    if not options.write and changed:
        print("replay: python -m tests.faults; if the change is meant, python -m tests.faults --write")
    return 1 if changed and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
