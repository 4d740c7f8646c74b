"""What damage and fault tests share: stores with a known content, ways to hurt them, and the judge afterwards.

Rule: nothing here knows how the engine works inside; it damages files as a disk, a person or another program would,
and lets system calls fail as a kernel would.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import shardstore
from shardstore import Finding, Record, Session, Store
from shardstore.backends import syscalls
from shardstore.manifest import SegmentRef, decode_manifest
from shardstore.segment import decode_index_page, index_page_range, span

ID = "a"
HANG_S = 60  # ends a hang; no test passes or fails by being slow


def fresh(path: str | Path) -> tuple[Store, Session]:
    """Open the store as a process that knows nothing of it would, with no compaction of its own accord."""
    store = shardstore.open(path, compact_shards=None)
    return store, store.session(ID)


def build(
    path: str | Path, records: int, *, compact_at: tuple[int, ...] = (), durability: Any = "sync"
) -> list[Record]:
    """Fill session `a`: turns, events and keys, compacted after the records `compact_at`; return what it holds."""
    with shardstore.open(path, durability=durability, compact_shards=None) as store:
        session = store.session(ID)
        for number in range(1, records + 1):
            kind, source = ("event", "cron:daily") if number % 4 == 0 else ("turn", "main")
            key = f"key-{number}" if number % 3 == 0 else None
            session.append({"number": number, "text": "x" * (number % 50)}, kind=kind, source=source, key=key)  # type: ignore[arg-type]
            if number in compact_at:
                session.compact()
        return list(session.records())


def folder(path: str | Path) -> Path:
    """Return the folder of session `a`."""
    return Path(path) / "sessions" / ID


def manifest(path: str | Path) -> Path:
    """Return the manifest's file."""
    return folder(path) / "manifest.json"


def shard(path: str | Path, seq: int) -> Path:
    """Return the file of the shard at `seq`."""
    return folder(path) / "shards" / f"{seq:020d}.shard"


def segments(path: str | Path) -> list[Path]:
    """Return the segment files, by first seq."""
    return sorted((folder(path) / "segments").iterdir())


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file; negative offsets count from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def damages(findings: list[Finding]) -> list[Finding]:
    """Return the findings that are damage."""
    return [finding for finding in findings if finding.severity == "damage"]


def assert_kept(path: str | Path, before: list[Record], *, lost: set[int], more: int = 0) -> list[Record]:
    """After a repair: every record but `lost` is the same at its seq, `lost` ones are spent, and all of it verifies.

    `more` records may follow.
    """
    store, session = fresh(path)
    with store:
        after = list(session.records())
        assert [record.seq for record in after] == list(range(1, len(before) + more + 1))
        for old, new in zip(before, after, strict=False):
            if old.seq in lost:
                spent = (new.kind, new.source, new.payload) == ("control", "lost", b"")
                assert spent or (new.kind, new.payload) == (old.kind, old.payload)  # only its header was hurt
            else:
                assert new == old
        assert damages(store.verify()) == []
        assert session.append({"next": True}).seq == len(before) + more + 1
        session.compact()
        again = list(session.records())
        assert again[: len(after)] == after
        assert damages(store.verify()) == []
        return after


def tree(path: str | Path) -> dict[str, bytes]:
    """Return every regular file below `path` with its bytes, not following symlinks."""
    found = {}
    for above, _, names in os.walk(path):
        for name in names:
            file = Path(above) / name
            if file.is_file() and not file.is_symlink():
                found[str(file.relative_to(path))] = file.read_bytes()
    return found


def content(path: Path) -> list[Record]:
    """Return what the undamaged session holds."""
    return list(fresh(path)[1].records())


def footer(path: Path) -> tuple[SegmentRef, list[tuple[int, int]]]:
    """Return the first segment and the (offset, length) of each of its records."""
    segment = decode_manifest(manifest(path).read_bytes(), what="test").segments[0]
    data = segments(path)[0].read_bytes()
    spans: list[tuple[int, int]] = []
    for number in range(-(-(segment.last - segment.first + 1) // 128)):
        start, length = index_page_range(segment, number)
        spans += [
            span(entry) for entry in decode_index_page(segment, number, data[start : start + length], what="test")
        ]
    return segment, spans


def cut(file: Path, length: int) -> None:
    """Cut a file to `length` bytes, or by that many if negative."""
    os.truncate(file, length if length >= 0 else file.stat().st_size + length)


def extend(file: Path) -> None:
    """Write a byte behind a file's end."""
    file.write_bytes(file.read_bytes() + b"x")


def flip_record(path: Path, seq: int, offset: int) -> None:
    """Flip a bit of record `seq` in the segment; negative offsets count from the record's end."""
    start, length = footer(path)[1][seq - 1]
    flip(segments(path)[0], start + (offset if offset >= 0 else length + offset))


# ------------------------------------------------------------------ faults


class Fault:
    """Counts the calls of a function that is made to fail, and says when it fails."""

    def __init__(self, code: int, when: Callable[[int], bool]) -> None:
        self.code = code
        self.when = when
        self.calls = 0
        self.failed = 0
        self._lock = threading.Lock()

    def strike(self) -> None:
        """Raise the fault if this call's turn has come."""
        with self._lock:
            self.calls += 1
            if not self.when(self.calls):
                return
            self.failed += 1
        raise OSError(self.code, os.strerror(self.code))


def always(_: int) -> bool:
    """Every call fails."""
    return True


def nth(number: int) -> Callable[[int], bool]:
    """Only the call with this number fails."""
    return lambda call: call == number


@contextmanager
def failing(
    owner: Any, name: str, code: int = errno.EIO, when: Callable[[int], bool] = always, *, after: bool = False
) -> Iterator[Fault]:
    """Let a system call fail while the block runs; with `after`, it takes effect and then reports failure.

    Of `os.stat` only the calls relative to a folder are meant: those are the engine's own.
    """
    real = getattr(owner, name)
    fault = Fault(code, when)

    def call(*args: Any, **options: Any) -> Any:
        if name == "stat" and options.get("dir_fd") is None:
            return real(*args, **options)
        if not after:
            fault.strike()
            return real(*args, **options)
        answer = real(*args, **options)
        fault.strike()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield fault


@contextmanager
def named_temps() -> Iterator[None]:
    """Let stores opened in the block use named temporary files, as on filesystems without unnamed ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "supports_unnamed", lambda _: False)
        yield


def as_nobody(call: Callable[[], object]) -> str:
    """Run `call` in a child without any privilege; return "ok" or the name of the error's type."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = "ok"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            call()
        except BaseException as error:
            answer = f"{type(error).__name__} {getattr(error, 'errno', None)} {error}"
        finally:
            os.write(writer, answer.encode()[:4000])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    return answer


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which is killed if it hangs."""
    root = str(Path(shardstore.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env=environment,
    )


@contextmanager
def mounted(kind: str, source: str, target: Path, options: str) -> Iterator[Path]:
    """Mount something for the block; skip the test where mounting is not allowed."""
    target.mkdir(exist_ok=True)
    steps = [["mount", "--bind", source, str(target)], ["mount", "-o", f"remount,bind,{options}", str(target)]]
    if kind == "tmpfs":
        steps = [["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)]]
    try:
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, timeout=HANG_S)
    except (OSError, subprocess.SubprocessError) as error:
        subprocess.run(["umount", str(target)], check=False, capture_output=True)
        pytest.skip(f"mounting is not possible here: {error}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True, capture_output=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
