"""Facts about the machine and the versions that a run measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
from contextlib import suppress

from shardstore.backends.filesystems import commits_in_order

__all__ = ["facts", "filesystem"]

PACKAGES = ("shardstore", "orjson", "msgspec", "filelock", "lmdb", "diskcache", "strands-agents", "openai-agents")


def filesystem(path: str) -> str:
    """Return the type of the filesystem that holds `path`, as the mount table names it."""
    best = ("", "unknown")
    real = os.path.realpath(path)
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split()
            if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _described(folder: str) -> str:
    """Return a filesystem's type, and what a flush costs there: whether it has a journal, and a disk of its own."""
    words, device = filesystem(folder), os.stat(folder).st_dev
    if words == "ext4":
        words += " with a journal" if commits_in_order(folder) else " without a journal of its own"
    with suppress(OSError):
        disk = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        words += " on a loop device" if os.path.basename(disk).startswith("loop") else ""
    return words


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def facts(folder: str) -> dict[str, str]:
    """Return what figures depend on: system, processor, memory, filesystem of `folder`, versions."""
    found = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} CPUs",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB",
        "filesystem": _described(folder),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
