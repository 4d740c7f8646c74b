"""Killing a process at one of its system calls: the trap, the child that falls into it, and what it said before.

Rule: the child runs the real engine on real files and really dies, by SIGKILL, with everything that a kernel does
then: its locks go, its unnamed files go, half a write stays half a write. What it had acknowledged is known because it
wrote each acknowledgement into a pipe before it went on.
Strategy: two ways to the same end. In the `Trap` every function of `os` and `fcntl` counts, and the process kills
itself right before the n-th call, in the middle of it (half of the bytes written) or right after it; the child is
forked from a warm parent, so that a kill costs milliseconds. With `Tracer`, strace watches the same child from outside
and kills it as it enters its n-th real system call of one name. That the trap sees every modifying call that strace
sees is a test of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from helpers import DEADLINE_S, fork

from shardstore.backends import syscalls

CALLS_MAX = 5_000  # system calls of one operation before a sweep gives up
MOMENTS = ("before", "amid", "after")
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, 2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1
READY = b"\0"  # said once, between two lines
SCOPES = ("every", "modifying", "writes")
WRITES = ("write", "writev", "pwrite")
_OS = ("close", "fdatasync", "fstat", "fsync", "link", "listdir", "mkdir", "open", "pread", "pwrite", "rename", "stat",
       "unlink", "write", "writev")  # fmt: skip
_FCNTL = ("flock", "ioctl")
_READ_ONLY = ("close", "fstat", "listdir", "pread", "stat")
_KERNEL = {"open": "openat", "mkdir": "mkdirat", "pwrite": "pwrite64", "link": "linkat", "unlink": "unlinkat",
           "rename": "renameat", "stat": "newfstatat"}  # fmt: skip
_ALIASES = {"mkdir": "mkdirat", "rename": "renameat", "renameat2": "renameat", "unlink": "unlinkat", "link": "linkat"}

Acknowledge = Callable[..., None]
Work = Callable[[Acknowledge], None]


def modifies(name: str, arguments: tuple[Any, ...]) -> bool:
    """Say whether a call can change what is on the disk, or a lock."""
    if name != "open":
        return name not in _READ_ONLY
    flags = arguments[1] if len(arguments) > 1 else 0
    unnamed = getattr(os, "O_TMPFILE", 0)
    return bool(flags & os.O_CREAT) or bool(unnamed and flags & unnamed == unnamed)


class Trap:
    """Counts the system calls of this process and kills it at the one numbered `number` (0: only counts).

    Which calls count is its `scope`: `every` one, `modifying` ones, or only `writes`.
    """

    def __init__(self, number: int, moment: str, *, scope: str = "every") -> None:
        self.calls: list[str] = []
        self._number = number
        self._moment = moment
        self._scope = scope
        self._guard = threading.Lock()

    def set(self) -> None:
        """Put the trap under every function; it stays there, for the process is a child that ends soon."""
        for owner, names in ((os, _OS), (fcntl, _FCNTL)):
            for name in names:
                setattr(owner, name, self._trapped(name, getattr(owner, name)))
        syscalls.flush_data, syscalls.flush_folder = os.fdatasync, os.fsync  # the engine's own names for them
        syscalls.flush_filesystem = self._trapped("syncfs", syscalls.flush_filesystem)

    def _counts(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if self._scope == "every":
            return True
        return name in WRITES if self._scope == "writes" else modifies(name, arguments)

    def _trapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def trapped(*arguments: Any, **options: Any) -> Any:
            if not self._counts(name, arguments):
                return call(*arguments, **options)
            with self._guard:
                self.calls.append(_KERNEL.get(name, name))
                mine = len(self.calls) == self._number
            if mine and self._moment == "amid" and name in WRITES:
                _half(call, name, arguments)
            if mine and self._moment != "after":
                die()
            try:
                return call(*arguments, **options)
            finally:
                if mine:
                    die()

        return trapped


def _half(call: Callable[..., Any], name: str, arguments: tuple[Any, ...]) -> None:
    """Write only the first half of what should be written."""
    fd, data, *rest = arguments
    whole = b"".join(data) if name == "writev" else bytes(data)
    half = whole[: len(whole) // 2]
    call(fd, [half] if name == "writev" else half, *rest)


def die() -> NoReturn:
    """Kill this very process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


# ------------------------------------------------------------------ children


@dataclass
class Death:
    """How a child ended: `killed`, or unharmed; what it acknowledged, which calls it made (if it came to tell)."""

    killed: bool
    acknowledged: list[list[Any]]
    calls: list[str] = field(default_factory=list)


class Child:
    """A forked process that does `work` once it is told to, and can be heard until it ends.

    It is heard over a socket, whose calls are not among those that count.
    """

    def __init__(self, work: Work, trap: Trap | None = None, *, ready: Work = lambda _: None):
        self._ours, theirs = socket.socketpair()
        self.pid = fork()
        if self.pid == 0:
            self._ours.close()
            _live(work, trap, ready, theirs)
        theirs.close()
        self._said = b""

    def go(self) -> None:
        """Let the child begin, once it is ready."""
        self._ours.sendall(b"g")

    def end(self) -> Death:
        """Wait for its end. Fails if it raised anything, or if it hangs."""
        while self._hear():
            pass
        self._ours.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = self._said.replace(READY, b"")
        lines = [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]
        assert code in (0, -signal.SIGKILL), f"the child ended with {code}: {lines[-1:]}"
        calls = lines.pop()["calls"] if code == 0 else []
        return Death(code != 0, lines, calls)

    def hear_ready(self) -> None:
        """Wait until the child only waits for `go`."""
        while READY not in self._said:
            assert self._hear(), "the child ended early"

    def hear(self, lines: int) -> None:
        """Wait until the child has said `lines` more lines."""
        enough = self._said.count(b"\n") + lines
        while self._said.count(b"\n") < enough:
            assert self._hear(), "the child ended early"

    def _hear(self) -> bool:
        if not wait([self._ours], DEADLINE_S):
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError("the child hangs")
        try:
            data = self._ours.recv(65536)
        except ConnectionResetError:  # it died before it had read what it was told
            data = b""
        self._said += data
        return bool(data)


def _live(work: Work, trap: Trap | None, ready: Work, ours: socket.socket) -> NoReturn:
    def say(what: object) -> None:
        ours.sendall(json.dumps(what).encode() + b"\n")

    def acknowledge(*facts: Any) -> None:
        say(facts)

    code = 1
    try:
        _let_be_traced()
        ready(acknowledge)
        ours.sendall(READY)
        ours.recv(1)
        if trap is not None:
            trap.set()
        work(acknowledge)
        say({"calls": trap.calls if trap is not None else []})
        code = 0
    except BaseException:
        say(traceback.format_exc())
    finally:
        os._exit(code)
    raise AssertionError


def _let_be_traced() -> None:
    """Allow strace to attach although it is no ancestor, where the system asks for permission (Yama)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY), 0, 0, 0)


def fall(work: Work, trap: Trap, *, ready: Work = lambda _: None) -> Death:
    """Run `work` in a child that falls into the trap."""
    child = Child(work, trap, ready=ready)
    child.go()
    return child.end()


# ------------------------------------------------------------------ strace

TRACED_MODIFYING = ("openat,write,writev,pwrite64,mkdir,mkdirat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,"
                    "fsync,fdatasync,syncfs,flock,ioctl")  # fmt: skip
TRACED_EVERY = "%file,%desc"
_ELSEWHERE = ("TCGETS", r'"\1\0\0\0\0\0\0\0", 8)')  # questions to terminals, wake-ups between threads
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")


def why_no_strace() -> str:
    """Return why strace can't be used here, "" if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        traced = trace(lambda _: None, "openat", Path(os.devnull))
    except AssertionError as error:
        return f"strace can't attach to a process here: {error}"
    return "strace kills what it should watch" if traced.killed else ""


def trace(
    work: Work,
    calls: str,
    out: Path,
    *,
    kill: tuple[str, int] | None = None,
    ready: Work = lambda _: None,
    trap: Trap | None = None,
) -> Death:
    """Run `work` in a child under strace; kill it as it enters call number n of a name if `kill` says so."""
    child = Child(work, trap, ready=ready)
    child.hear_ready()
    inject = ["-e", f"inject={kill[0]}:signal=KILL:when={kill[1]}"] if kill else []
    command = ["strace", "-f", "-o", str(out), "-p", str(child.pid), "-e", f"trace={calls}", *inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()  # printed once the child is held, which waits for `go` until then
        child.go()
        death = child.end()
        strace.stderr.read()
    assert "attached" in said, said.strip()
    return death


def traced_calls(out: Path) -> list[str]:
    """Return the names of the calls that strace saw, in order."""
    return [line[1] for line in map(_LINE.match, out.read_text(errors="replace").splitlines()) if line]


def traced_modifying(out: Path) -> list[str]:
    """Return those of them that can change a disk or a lock, as the trap spells them."""
    lines = [line for line in map(_LINE.match, out.read_text(errors="replace").splitlines()) if line]
    opening = re.compile("O_CREAT|O_TMPFILE")
    return [
        _ALIASES.get(line[1], line[1])
        for line in lines
        if (line[1] != "openat" or opening.search(line[2])) and not any(other in line[2] for other in _ELSEWHERE)
    ]


# ------------------------------------------------------------------ strays


def strays(path: Path) -> list[Path]:
    """Return the temporary files below a store."""
    return sorted(file for file in path.rglob(".tmp-*") if file.is_file())


def age(files: list[Path], hours: float = 2) -> None:
    """Make files older than any running creation may be."""
    then = time.time() - hours * 3600
    for file in files:
        os.utime(file, (then, then))
