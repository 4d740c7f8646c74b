"""Many sessions: listing them, finding one among them, and bringing a folder of transcripts in.

Rule: every name is compared; of the sessions a sample, evenly spread, is read back whole, and after an import all.
Strategy: what is timed of an import begins with the listing of the folder and ends when the subject has acknowledged
the last file. Beside it `cp -r` copies the same folder, without any flush, a moment earlier.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

import shardstore
from benchmarks import fresh
from benchmarks.checking import Check
from benchmarks.lines import line_of
from benchmarks.results import Figure
from benchmarks.subjects import Handle, Subject
from benchmarks.subjects import subject as subject_of
from benchmarks.workloads.base import MIX, Case, Outcome, Plan, Scale, Workload
from benchmarks.workloads.filling import as_json, fills_alike, made, name_of, opened, reads_alike, store_of, whole
from migrate.finding import find
from migrate.running import RECORD_BYTES_MAX, import_files

__all__ = ["IMPORT", "OPEN_LIST"]

SAMPLE = 50  # sessions that are read back
MIGRATING = "shardstore"  # which has a tool for it: what it makes is durable
SUFFIX = ".jsonl"


# ------------------------------------------------------------------ list


def look(subject: str, folder: str, mix: str, sessions: int, seconds: float) -> dict[str, Any]:
    """Subject: open the store and list its sessions; open it and read the last entry of one; again and again."""
    opened(subject, folder, mix).close()
    clock, wrong = time.perf_counter_ns, 0
    list_ns, last_ns = array("q"), array("q")
    end = clock() + int(seconds * 1e9)
    names: list[str] = []
    while not list_ns or clock() < end:
        begun = clock()
        handle = subject_of(subject).open(store_of(folder))
        names = handle.sessions()
        list_ns.append(clock() - begun)
        handle.close()
        number = len(list_ns) * 7919 % sessions
        begun = clock()
        handle = subject_of(subject).open(store_of(folder))
        found = handle.last(name_of(number), 1)
        last_ns.append(clock() - begun)
        handle.close()
        wrong += not whole(found, mix, 1, number).is_clean
    handle = subject_of(subject).open(store_of(folder))
    found_all = names_check(names, sessions) + _sample_check(handle, mix, sessions)
    handle.close()
    if wrong:
        found_all += Check(error=f"{wrong:,} of {len(last_ns):,} sessions had another last entry")
    return {
        "list_ms": statistics.median(list_ns) / 1e6,
        "last_ms": statistics.median(last_ns) / 1e6,
        "check": as_json(found_all),
    }


def names_check(names: list[str], sessions: int) -> Check:
    """Compare the names that were listed with those that there are, in any order."""
    known = {name_of(number) for number in range(sessions)}
    return Check(
        acknowledged=sessions,
        lost=len(known - set(names)),
        duplicated=len(names) - len(set(names)),
        torn=len(set(names) - known),
    )


def _sample_check(handle: Handle, mix: str, sessions: int) -> Check:
    numbers = range(0, sessions, max(sessions // SAMPLE, 1))
    return sum((whole(handle.load(name_of(number)), mix, 1, number) for number in numbers), Check())


def _open_list(subject: Subject, case: Case, folder: str) -> Outcome:
    arguments = dict(case.arguments)
    limit = arguments.pop("fill_seconds_max")
    reason = made(
        subject,
        folder,
        mix=arguments["mix"],
        sessions=arguments["sessions"],
        entries=1,
        seconds_max=limit,
        only_read=True,
    )
    if reason:
        return Outcome({}, note=reason)
    answer = fresh.call(look, subject=subject.name, folder=folder, **arguments)
    return Outcome(
        figures={"list": answer["list_ms"], "last": answer["last_ms"]},
        check=msgspec.convert(answer["check"], Check),
    )


def _open_list_plan(scale: Scale) -> Plan:
    sizes = {"quick": (200,), "usual": (1_000, 10_000), "full": (1_000, 10_000, 100_000)}[scale]
    seconds = {"quick": 0.05, "usual": 0.2, "full": 0.4}[scale]
    limits = {200: 3.0, 1_000: 5.0, 10_000: 15.0, 100_000: 10.0}
    return Plan(
        1,
        [
            Case(
                f"{size:,} sessions",
                {"mix": MIX, "sessions": size, "seconds": seconds, "fill_seconds_max": limits[size]},
                x=size,
            )
            for size in sizes
        ],
    )


OPEN_LIST = Workload(
    "open-list",
    "open a store of so many sessions and list them, or read the last entry of one",
    (Figure("list", "ms", "less"), Figure("last", "ms", "less")),
    _open_list_plan,
    _open_list,
    reads_alike,
)


# ------------------------------------------------------------------ import


def make_files(folder: str, mix: str, files: int, size: int) -> list[int]:
    """Write transcripts of about `size` bytes each; return how many lines each has."""
    os.mkdir(folder)
    counts = []
    for number in range(files):
        count = 0
        with open(os.path.join(folder, name_of(number) + SUFFIX), "wb") as file:
            while file.tell() < size:
                file.write(line_of(mix, number, count))
                count += 1
        counts.append(count)
    return counts


def bring_in(subject: str, folder: str, mix: str, files: int, size: int) -> dict[str, Any]:
    """Subject: import a folder's files one by one, by the subject's way for many if it has one, and by `migrate`."""
    source = os.path.join(folder, "source")
    counts = make_files(source, mix, files, size)
    names = [name for name, _ in _files(source)]
    os.mkdir(store_of(folder))
    handle = opened(subject, folder, mix)
    took = {"cp": _copy(source, os.path.join(folder, "copy")), "fill": _fill(handle, source)}
    found = _imported_check(subject, store_of(folder), mix, dict(zip(names, counts, strict=True)))
    if type(handle).fill_many is not Handle.fill_many:
        many = tempfile.mkdtemp(prefix="many-", dir=folder)
        took["batched"] = _fill_many(subject_of(subject).open(many), source)
        found += _imported_check(subject, many, mix, dict(zip(names, counts, strict=True)))
    if subject == MIGRATING:
        migrated = os.path.join(folder, "migrated")
        took["migrate"], names = _migrate(source, migrated)
        found += _imported_check(subject, migrated, mix, dict(zip(names, counts, strict=True)))
    payload = sum(os.stat(path).st_size for _, path in _files(source))
    return {"seconds": took, "payload": payload, "files": len(counts), "check": as_json(found)}


def _files(folder: str) -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir(folder)):
        yield name.removesuffix(SUFFIX), os.path.join(folder, name)


def _lines_of(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def _copy(source: str, target: str) -> float:
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    return time.perf_counter() - begun


def _fill(handle: Handle, source: str) -> float:
    begun = time.perf_counter()
    for name, path in _files(source):
        handle.fill(name, _lines_of(path))
    took = time.perf_counter() - begun
    handle.close()
    return took


def _fill_many(handle: Handle, source: str) -> float:
    begun = time.perf_counter()
    handle.fill_many((name, _lines_of(path)) for name, path in _files(source))
    took = time.perf_counter() - begun
    handle.close()
    return took


def _migrate(source: str, store: str) -> tuple[float, list[str]]:
    """Import as `shardstore migrate run` does, which reads everything back; return seconds and the sessions, by file.

    Raises RuntimeError if a file was not imported.
    """
    begun = time.perf_counter()
    found, problems = find([source], home="/nowhere", environ={})
    with shardstore.open(store, record_bytes_max=RECORD_BYTES_MAX) as opened_store:
        outcomes = list(import_files(opened_store, found))
    took = time.perf_counter() - begun
    sessions = {outcome.path: outcome.entry.session for outcome in outcomes if outcome.entry is not None}
    if problems or {outcome.status for outcome in outcomes} != {"imported"} or len(sessions) != len(found):
        raise RuntimeError(f"the migration failed: {[*problems, *(outcome.error for outcome in outcomes)][:3]}")
    return took, [sessions[path] for path in sorted(sessions)]


def _imported_check(subject: str, store: str, mix: str, counts: dict[str, int]) -> Check:
    """Check all sessions of an import; the n-th has the lines of writer n."""
    handle = subject_of(subject).open(store)
    checks = [whole(handle.load(name), mix, count, n) for n, (name, count) in enumerate(counts.items())]
    handle.close()
    return sum(checks, Check())


def _import(subject: Subject, case: Case, folder: str) -> Outcome:
    answer = fresh.call(bring_in, subject=subject.name, folder=folder, **case.arguments)
    took, size = answer["seconds"], answer["payload"] / 1e6
    figures = {
        "MB_per_s": size / took["fill"],
        "files_per_s": answer["files"] / took["fill"],
        "to_cp": took["fill"] / took["cp"],
    }
    more = {way: size / took[way] for way in ("batched", "migrate") if way in took}
    return Outcome(figures=figures | more, check=msgspec.convert(answer["check"], Check))


def _import_plan(scale: Scale) -> Plan:
    rounds, shapes = {
        "quick": (1, [(20, 45 << 10)]),
        "usual": (1, [(200, 45 << 10)]),
        "full": (1, [(200, 45 << 10)]),
    }[scale]
    cases = [
        Case(f"{files:,} files of {size >> 10} KB", {"mix": MIX, "files": files, "size": size})
        for files, size in shapes
    ]
    return Plan(rounds, cases)


IMPORT = Workload(
    "import",
    "bring a folder of transcripts in: file by file (to cp: x the time of `cp -r`), batched, and by `migrate`",
    (
        Figure("MB_per_s", "MB/s", "more"),
        Figure("files_per_s", "/s", "more"),
        Figure("to_cp", "x", "less"),
        Figure("batched", "MB/s", "more"),
        Figure("migrate", "MB/s", "more"),
    ),
    _import_plan,
    _import,
    fills_alike,
)
