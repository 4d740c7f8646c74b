"""A disk in user space that keeps every write and every flush in order, for a real filesystem to lie on.

Purpose: know what a real filesystem had sent to its disk, and what of it a flush had covered, at any moment; so that
any state which a power cut may leave on the platter can be built and mounted.
Rule: a write that was not followed by a flush may be there or not, each on its own; one that was, is there. The log's
length, read by a writer when it is told that something is durable, says which writes came before.
Strategy: a FUSE mount whose root is one regular file (the kernel's protocol, spoken by a child process: no library),
and a loop device on it; what the loop device flushes arrives as an fsync of the file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import run

from helpers import fork

HANG_S = 120
BUFFER_BYTES = (1 << 20) + (1 << 16)
MAX_WRITE_BYTES = 1 << 17
_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, user, group, process, extension, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_RANGE = struct.Struct("<QQIIQII")  # handle, offset, size, flags, owner, flags, padding
RECORD = struct.Struct("<BQI")  # flush or write, offset, size
WRITE, FLUSH = 0, 1
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY = (
    3,
    4,
    14,
    15,
    16,
    18,
    20,
    25,
    26,
    38,
)
_SILENT = (2, 36, 42)  # forget, interrupt, forget many
_ENOSYS = 38


def command(*words: str, check: bool = True) -> str:
    """Run a command and return what it printed."""
    done = run(words, capture_output=True, timeout=HANG_S, check=False, text=True)
    if check and done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout + done.stderr


class _Server:
    """The child process: answers the kernel, keeps the image up to date and the log complete."""

    def __init__(self, device: int, image: int, log: int) -> None:
        self._device = device
        self._image = image
        self._log = log
        self._calls: dict[int, Callable[[bytes], bytes]] = {
            _INIT: self._init,
            _GETATTR: self._attributes,
            _SETATTR: self._attributes,
            _OPEN: lambda _: struct.pack("<QII", 1, 0, 0),
            _READ: self._read,
            _WRITE: self._write,
            _FSYNC: self._flush,
            _RELEASE: lambda _: b"",
            _FLUSH: lambda _: b"",
            _DESTROY: lambda _: b"",
        }

    def serve(self) -> None:
        """Answer until the file is unmounted."""
        while True:
            try:
                request = os.read(self._device, BUFFER_BYTES)
            except InterruptedError:
                continue
            except OSError:
                return
            _, opcode, unique, *_ = _IN.unpack_from(request)
            if opcode in _SILENT:
                continue
            call = self._calls.get(opcode)
            answer = call(request[_IN.size :]) if call else b""
            with suppress(OSError):
                os.write(self._device, _OUT.pack(_OUT.size + len(answer), 0 if call else -_ENOSYS, unique) + answer)

    def _init(self, body: bytes) -> bytes:
        _, _, readahead, _ = struct.unpack_from("<IIII", body)
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, readahead, 1 << 5 | 1 << 22, 16, 12, MAX_WRITE_BYTES, 1, 32, 0, 0)

    def _attributes(self, _: bytes) -> bytes:
        size = os.fstat(self._image).st_size
        facts = struct.pack("<6Q10I", 1, size, size // 512, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, 4096, 0)
        return struct.pack("<QII", 3600, 0, 0) + facts

    def _read(self, body: bytes) -> bytes:
        _, offset, size, *_ = _RANGE.unpack_from(body)
        return os.pread(self._image, size, offset)

    def _write(self, body: bytes) -> bytes:
        _, offset, size, *_ = _RANGE.unpack_from(body)
        data = body[_RANGE.size : _RANGE.size + size]
        os.pwrite(self._image, data, offset)
        os.write(self._log, RECORD.pack(WRITE, offset, len(data)) + data)
        return struct.pack("<II", len(data), 0)

    def _flush(self, _: bytes) -> bytes:
        os.write(self._log, RECORD.pack(FLUSH, 0, 0))
        return b""


@contextmanager
def recorded_disk(image: Path, log: Path) -> Iterator[str]:
    """Yield a loop device whose bytes lie in `image`, and whose writes and flushes are appended to `log`."""
    with ExitStack() as stack:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        target = image.with_suffix(".disk")
        target.touch()
        options = f"fd={device},rootmode=100600,user_id=0,group_id=0,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"recorded", os.fsencode(target), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mounting a disk in user space is not possible here")
        stack.callback(command, "umount", "-l", str(target), check=False)
        child = fork()
        if child == 0:
            try:
                files = [os.open(image, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]
                _Server(device, *files).serve()
            finally:
                os._exit(0)
        os.close(device)
        stack.pop_all()
        try:
            loop = command("losetup", "--find", "--show", str(target)).strip()
            try:
                yield loop
            finally:
                command("losetup", "--detach", loop, check=False)
        finally:
            command("umount", "-l", str(target), check=False)
            os.kill(child, signal.SIGKILL)  # whatever still holds the mount, nobody asks for it any more
            os.waitpid(child, 0)


def read_log(log: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (length of the log afterwards, flush or write, offset, bytes) of each record."""
    data = memoryview(log.read_bytes())
    at = 0
    while at < len(data):
        kind, offset, size = RECORD.unpack_from(data, at)
        at += RECORD.size + size
        yield at, kind, offset, bytes(data[at - size : at])
