"""One session's view in a file: compared with what should be there, appended to, or made again beside it.

Rule: bytes that a reader may have read are never changed. A file that is a prefix of what should be there is only
appended to, by calls to write that end with LF; any other is replaced by rename. What is remembered of a file between
two calls counts only while its status is as this process left it.
Strategy: every update is a generator that pauses after each piece, so that one long session holds up no other.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Literal

from shardstore.errors import InvalidRequest, Unavailable, describe
from shardstore.generations import Rewritten, newest_rewrite, shown_records
from shardstore.layout import VIEW_MARKER, view_path
from shardstore.record import Record
from shardstore.session import Session
from shardstore.shapes import Shape

__all__ = ["Descriptors", "DiskFile", "Status", "unfinished_name"]

GENERATIONS_MAX = 100  # that may begin while one file is brought up to date
PIECE_BYTES = 256 << 10  # what is read, compared or written at once, unless a single record is larger
DESCRIPTORS_MAX = 64  # files held open between two appends
MODE = 0o444
WRITABLE = 0o644
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW

Status = Literal["made", "made again", "appended", "unchanged", "removed"]
Pieces = Iterator[tuple[int, bytes]]


class Descriptors:
    """The files that are held open for writing, by path: those that were written last."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, int] = OrderedDict()

    def take(self, path: str) -> int | None:
        """Hand over the descriptor of `path`, if it is held; whoever takes it keeps it or closes it."""
        return self._held.pop(path, None)

    def keep(self, path: str, descriptor: int) -> None:
        """Hold a descriptor, and close the one that was not used for longest if there are too many."""
        self.drop(path)
        self._held[path] = descriptor
        if len(self._held) > DESCRIPTORS_MAX:
            os.close(self._held.popitem(last=False)[1])

    def drop(self, path: str) -> None:
        """Close what is held of `path`."""
        descriptor = self._held.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all of them."""
        while self._held:
            os.close(self._held.popitem()[1])


def unfinished_name(folder: str) -> str:
    """Return a new name in `folder` for a file that is not ready; a writer that starts sweeps those of dead ones."""
    return os.path.join(folder, f"{VIEW_MARKER}-{os.urandom(8).hex()}")


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)


class DiskFile:
    """The file of one session below `folder`. Raises InvalidRequest for an id that has no place there."""

    __slots__ = (
        "_birth",
        "_descriptors",
        "_folder",
        "_left",
        "_new_shape",
        "_rewrite",
        "_shape",
        "lines",
        "path",
        "seq",
        "size_bytes",
        "written",
    )

    def __init__(self, folder: str, session_id: str, descriptors: Descriptors, new_shape: Callable[[], Shape]) -> None:
        self.path = os.path.join(folder, view_path(session_id))
        self._folder = folder
        self._descriptors = descriptors
        self._new_shape = new_shape
        self.lines = self.written = 0  # lines and bytes, by the last update
        self._birth = ""  # of the session in it
        self._rewrite: Record | None = None  # that the generation in it stands on
        self._forget()

    def _forget(self) -> None:
        """Know nothing of the file any more."""
        self._descriptors.drop(self.path)
        self._left: tuple[int, ...] | None = None
        self._shape = self._new_shape()
        self.seq = self.size_bytes = 0  # the last record shown, and the length of what is shown up to it

    @property
    def is_known(self) -> bool:
        """True if the file is there and up to date, as far as this process knows."""
        return self._left is not None

    def is_as_left(self) -> bool:
        """Say whether nobody has touched the file since the last update."""
        try:
            return self._left == _fingerprint(os.lstat(self.path))
        except OSError:
            return False

    def update(self, session: Session, head: int, birth: str) -> Generator[None, None, Status]:
        """Show the records up to `head`, pausing after each piece; return what that took.

        A session with another birth is another one, whose folder took the place of the one that was shown.

        Raises what reading raises, OSError, and InvalidRequest where something else lies in the place. Whatever it
        ends with, closed in a pause too, the next call goes on from what it finds.
        """
        if birth != self._birth:
            self._birth, self._rewrite = birth, None
            self._forget()
        for _ in range(GENERATIONS_MAX):
            try:
                return (yield from self._updated(session, head))
            except Rewritten:
                after = 0 if self._rewrite is None else self._rewrite.seq
                self._rewrite = newest_rewrite(session, after, head)
                self._forget()
        raise Unavailable(describe("the session was rewritten again and again while it was read", session=session.id))

    def _updated(self, session: Session, head: int) -> Generator[None, None, Status]:
        """Show the records up to `head` in one generation. Raises Rewritten where a newer one begins."""
        self.lines = self.written = 0
        if self.is_as_left() and self.seq <= head:
            if head == self.seq:
                return "unchanged"
            left, self._left = self._left, None  # until it is known again what was left
            if (yield from self._append(self._open(), self._pieces(session, head), left)):
                return "appended" if self.written else "unchanged"
        self._forget()
        found = self._found()
        if found is None:
            return (yield from self._make(session, head, "made"))
        if (yield from self._compare(found, session, head)):
            return "appended" if self.written else "unchanged"
        self._forget()
        self.lines = self.written = 0
        return (yield from self._make(session, head, "made again"))

    def remove(self) -> Status:
        """Remove the file of a session that is not shown."""
        self._forget()
        self._check_folders()
        with suppress(FileNotFoundError):
            if stat.S_ISREG(os.lstat(self.path).st_mode):
                os.unlink(self.path)
                return "removed"
        return "unchanged"

    # -------------------------------------------------------------- what should be there

    def _pieces(self, session: Session, head: int) -> Pieces:
        """Yield (seq, what is shown of the records up to it since the last piece), from where this file is."""
        shown: list[bytes] = []
        size = 0
        shape = self._shape
        for record in shown_records(session, self._rewrite, self.seq, head):
            shown.append(shape.shown(record))
            size += len(shown[-1])
            if (size >= PIECE_BYTES and record.seq > 0) or record.seq == head:
                yield record.seq, b"".join(shown)
                shown, size = [], 0

    # -------------------------------------------------------------- ways to get there

    def _append(self, descriptor: int, pieces: Pieces, left: tuple[int, ...] | None) -> Generator[None, None, bool]:
        """Append `pieces`; False if somebody else has touched the file. Takes over the descriptor."""
        try:
            if (
                left is not None and _fingerprint(os.fstat(descriptor))[:4] != left[:4]
            ):  # opening it may change the rest
                return False
            yield from self._extend(descriptor, pieces)
            status = os.fstat(descriptor)
            if status.st_size != self.size_bytes or status.st_nlink == 0:
                return False
            self._left = _fingerprint(status)
            self._descriptors.keep(self.path, descriptor)
            descriptor = -1
            return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _compare(self, found: int, session: Session, head: int) -> Generator[None, None, bool]:
        """Compare the file with what should be there and append what is missing; False if it is no prefix of that.

        Takes over the descriptor `found`.
        """
        try:
            pieces = self._pieces(session, head)
            for seq, piece in pieces:
                got = _read(found, len(piece))
                if got != piece:
                    break
                self.seq, self.size_bytes = seq, self.size_bytes + len(piece)
                yield
            else:
                if os.read(found, 1):
                    return False
                self._left = _fingerprint(_read_only(found))
                return True
            if not piece.startswith(got):
                return False
            self.size_bytes += len(got)
            rest = (seq, piece[len(got) :])
        finally:
            os.close(found)
        return (yield from self._append(self._open(), _after(rest, pieces), None))

    def _make(self, session: Session, head: int, status: Status) -> Generator[None, None, Status]:
        """Write the file anew and rename it to its name."""
        self._check_folders(make=True)
        temporary = unfinished_name(os.path.dirname(self.path))
        descriptor = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _PLAIN, MODE)
        try:
            os.fchmod(descriptor, MODE)  # whatever the umask
            yield from self._extend(descriptor, self._pieces(session, head))
            os.rename(temporary, self.path)
            temporary = ""
            self._left = _fingerprint(os.fstat(descriptor))
            self._descriptors.keep(self.path, descriptor)
            descriptor = -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            if temporary:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
        return status

    def _extend(self, descriptor: int, pieces: Pieces) -> Generator[None, None, None]:
        """Write pieces, each of which ends with LF; a call that falls short is followed by one for the rest."""
        for seq, piece in pieces:
            left = memoryview(piece)
            while left:
                count = os.write(descriptor, left)
                self.size_bytes += count
                self.written += count
                left = left[count:]
            self.lines += piece.count(b"\n")
            self.seq = seq
            yield

    # -------------------------------------------------------------- the system

    def _found(self) -> int | None:
        """Open the file that lies there for reading, None if there is none. Raises InvalidRequest for anything else."""
        self._check_folders()
        try:
            mode = os.lstat(self.path).st_mode
            if not stat.S_ISREG(mode):
                raise InvalidRequest(
                    describe("no plain file, move it away: a session's view goes there", path=self.path)
                )
            return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | _PLAIN)
        except FileNotFoundError:
            return None

    def _open(self) -> int:
        """Return a descriptor of the file for appending, 0444 as it is."""
        held = self._descriptors.take(self.path)
        if held is not None:
            return held
        descriptor = self._found()
        if descriptor is None:
            raise Unavailable(describe("the view's file has just been removed", path=self.path))
        try:
            return self._reopen(descriptor)
        finally:
            os.close(descriptor)

    def _reopen(self, found: int) -> int:
        """Return a descriptor for appending to the file that is open as `found`, and see that its mode is right."""
        status = _read_only(found)
        try:
            descriptor = self._open_for_writing()
        except PermissionError:  # its owner has to let himself in; root need not
            os.fchmod(found, WRITABLE)
            try:
                descriptor = self._open_for_writing()
            finally:
                os.fchmod(found, MODE)
        if not os.path.samestat(os.fstat(descriptor), status):
            os.close(descriptor)
            raise Unavailable(describe("the view's file has just been replaced", path=self.path))
        return descriptor

    def _open_for_writing(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | _PLAIN)

    def _check_folders(self, *, make: bool = False) -> None:
        """Raise InvalidRequest where something else lies in the place of a folder on the way; `make` missing ones."""
        path, mode = self._folder, stat.S_IMODE(os.stat(self._folder).st_mode)
        for name in os.path.relpath(self.path, self._folder).split("/")[:-1]:
            path = os.path.join(path, name)
            if make:
                with suppress(FileExistsError):
                    os.mkdir(path, mode)
            elif not os.path.lexists(path):
                return
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise InvalidRequest(describe("no folder, move it away: a session's view goes below it", path=path))


def _read_only(descriptor: int) -> os.stat_result:
    """See that a file's mode is right; return its status."""
    status = os.fstat(descriptor)
    if stat.S_IMODE(status.st_mode) == MODE:
        return status
    os.fchmod(descriptor, MODE)
    return os.fstat(descriptor)


def _after(first: tuple[int, bytes], rest: Pieces) -> Pieces:
    yield first
    yield from rest


def _read(descriptor: int, size: int) -> bytes:
    """Read `size` bytes, fewer at the end of the file."""
    pieces = []
    while size and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
