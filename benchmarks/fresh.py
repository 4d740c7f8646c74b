"""Fresh processes: a subject runs in an interpreter of its own and prints one JSON line.

Rule: a subject is a top-level function that takes and returns what JSON carries; it imports what it needs before it
looks at the clock, and it checks what it measured. Crews start at a moment that all of them know beforehand, so that
nobody's start-up is measured.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["call", "crew", "gate", "peak_bytes"]

HEAD_START_NS = 100_000_000  # between the last one's readiness and the common start
READY = "ready"


def _spawn(subject: Callable[..., Any], arguments: dict[str, Any]) -> subprocess.Popen[str]:
    name = f"{subject.__module__}:{subject.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.fresh", name, json.dumps(arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a subject failed: {process.args!r}")
    return json.loads(out)


def call(subject: Callable[..., Any], /, **arguments: Any) -> Any:
    """Run `subject` in a fresh process and return its answer."""
    return _answer(_spawn(subject, arguments))


def crew(subject: Callable[..., Any], members: int, /, **arguments: Any) -> list[Any]:
    """Run `subject(member=0..)` in fresh processes that pass their `gate` at one moment; return their answers."""
    processes = [_spawn(subject, {"member": member, **arguments}) for member in range(members)]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise RuntimeError(f"a subject failed before the start: {process.args!r}")
        start_ns = time.monotonic_ns() + HEAD_START_NS
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{start_ns}\n")
            process.stdin.flush()
        return [_answer(process) for process in processes]
    finally:
        for process in processes:
            process.kill()  # nothing happens to one that has ended
            process.wait()


def gate() -> None:
    """Say that this member of a crew is ready, and return at the common start."""
    print(READY, flush=True)
    start_ns = int(sys.stdin.readline())
    while (left := start_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)


def peak_bytes() -> int:
    """Return the most memory that this process has held since its exec (ru_maxrss would count its parent's too)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def main() -> None:
    """Run the subject that the command line names."""
    module, _, name = sys.argv[1].partition(":")
    subject = getattr(importlib.import_module(module), name)
    print(json.dumps(subject(**json.loads(sys.argv[2]))), flush=True)


if __name__ == "__main__":
    main()
