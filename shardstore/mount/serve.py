"""Mounting and unmounting: everything around the file system that is not a file's business.

Rule: what could go wrong is found before the kernel is asked, and said with what to do next: no library, no device,
a folder whose transcripts no session stands for, a store inside the folder. A mount whose process was killed is taken
away first, so that the same command mounts again at once.
Strategy: libfuse ends its loop at SIGTERM, SIGINT and SIGHUP, unmounts and has us commit what is left. In the
background the command forks before anything is opened, and the parent ends when the child answers programs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from shardstore.errors import Conflict, InvalidRequest, NotFound, Unavailable, describe
from shardstore.mount.filesystem import Filesystem
from shardstore.mount.handles import Sessions
from shardstore.mount.image import ShapeMaker
from shardstore.mount.names import could_be_session
from shardstore.store import Store

__all__ = ["Place", "detach", "mount", "prepare", "unmount"]

KIND = "fuse.shardstore"
DEVICE = "/dev/fuse"
ENDED_BY_SIGNAL = 8  # what libfuse's main returns then
STRANGERS_MAX = 5  # named in the error
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mount is to be: its folder, and the folder of its plain files (the same one, unless given)."""

    folder: str
    files: str


# -------------------------------------------------------------- what is mounted


def _mounted(folder: str) -> str | None:
    """Return the kind of what is mounted on exactly this folder, None if nothing is."""
    wanted, kind = os.path.join(os.path.realpath(os.path.dirname(folder)), os.path.basename(folder)), None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), before.split(" ")[4])
            if os.fsencode(point) == os.fsencode(wanted) or point == wanted:
                kind = after.split(" ")[0]
    return kind


def _is_dead(folder: str) -> bool:
    """Say whether a mount lies there whose process is gone."""
    try:
        os.stat(folder)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _take_away(folder: str, *, lazily: bool) -> None:
    """Unmount by the program that may; raise what it says otherwise."""
    fuser, letters = shutil.which("fusermount3"), "-uz" if lazily else "-u"
    command = [fuser, letters, "--", folder] if fuser else ["umount", *(["-l"] if lazily else []), "--", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, whole names
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"{command[0]} failed"]
        raise Unavailable(describe(f"can't unmount: {said[0]}", path=folder), errno=errno.EBUSY)


def unmount(folder: str) -> None:
    """Unmount a store's folder; whatever programs wrote and closed is committed already.

    Raises NotFound if no store is mounted there, Unavailable while programs have files open in it.
    """
    folder = os.path.realpath(folder)
    if _mounted(folder) != KIND:
        raise NotFound(describe("no store is mounted here", path=folder))
    _take_away(folder, lazily=_is_dead(folder))


# -------------------------------------------------------------- what a mount needs


def _library() -> ModuleType:
    try:
        from shardstore.mount import library
    except ImportError as error:
        raise Unavailable("mounting needs mfusepy; pip install 'shardstore[mount]'", errno=errno.ENOSYS) from error
    except OSError as error:
        raise Unavailable("mounting needs libfuse 3; on Debian: apt install fuse3", errno=errno.ENOSYS) from error
    if not os.path.exists(DEVICE):
        raise Unavailable(describe("mounting needs this device; modprobe fuse", path=DEVICE), errno=errno.ENODEV)
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise Unavailable(describe("mounting needs access to this device", path=DEVICE), errno=errno.EACCES)
    return library


def prepare(store_path: str, folder: str, files: str | None) -> Place:
    """Return where to mount, the folder made and a dead mount taken away.

    Raises Conflict if a store is mounted there already, InvalidRequest if one place lies inside another,
    Unavailable where the system lacks what a mount needs.
    """
    _library()
    folder = os.path.realpath(folder)
    if _is_dead(folder):
        _take_away(folder, lazily=True)
    if _mounted(folder) == KIND:
        raise Conflict(describe("a store is mounted here already; see `shardstore unmount`", path=folder))
    place = Place(folder, folder if files is None else os.path.realpath(files))
    for inner, outer in ((store_path, folder), (folder, store_path), (place.files, store_path)):
        if _lies_in(inner, outer):
            raise InvalidRequest(describe("store and mount can't lie in each other", store=store_path, path=folder))
    if place.files != folder and (_lies_in(place.files, folder) or _lies_in(folder, place.files)):
        raise InvalidRequest(describe("the plain files' folder and the mount can't lie in each other", path=folder))
    for path in (place.folder, place.files):
        os.makedirs(path, mode=0o700, exist_ok=True)
    return place


def _lies_in(inner: str, outer: str) -> bool:
    inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    return os.path.commonpath([inner, outer]) == outer


def _transcripts(folder: int) -> Iterator[str]:
    """Yield the names of the plain files that have a session's name."""
    for path, _, names, _ in os.fwalk(".", dir_fd=folder):
        yield from (name for last in names if could_be_session(name := os.path.normpath(os.path.join(path, last))))


def _is_brought_in(name: str, folder: int, sessions: Sessions) -> bool:
    """Say whether all that a transcript holds is in the store; of what is no file, whether a session is shown there."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return sessions.resolve(name) is not None
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as content:
            return sessions.holds(name, content)
    except OSError as error:
        if error.errno == errno.EACCES:  # nobody can tell
            return False
        raise


def _refuse_strangers(path: str, folder: int, sessions: Sessions) -> None:
    """Refuse a folder with transcripts that would be hidden although not all of them is in the store."""
    found = sorted(name for name in _transcripts(folder) if not _is_brought_in(name, folder, sessions))
    if found:
        more = f" and {len(found) - STRANGERS_MAX} more" if len(found) > STRANGERS_MAX else ""
        sentence = (
            "files lie here whose content is in no session; `shardstore migrate run` brings them in, then move them"
        )
        raise InvalidRequest(
            describe(f"{sentence} away, or choose an empty folder", path=path, found=found[:STRANGERS_MAX]) + more
        )


def _refuse_prefix(prefix: str) -> None:
    """Refuse a prefix below which no session could be made."""
    if prefix.strip("/") and not could_be_session(f"{prefix.strip('/')}/x.jsonl"):
        raise InvalidRequest(describe("no file can have such a prefix; it is one or more folders: a/b", prefix=prefix))


@contextmanager
def _held(path: str) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


# -------------------------------------------------------------- mounting


def mount(
    store: Store,
    place: Place,
    *,
    prefix: str = "",
    real: bool = False,
    purge: bool = False,
    shape: ShapeMaker | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve a store in a folder until it is unmounted or a signal comes; `ready` is called when it answers.

    Programs that this user runs may use it. `prefix`, `real` and `purge` are those of `shardstore mount`; `shape`
    makes what decides which bytes of a session are shown, all of them by default.
    """
    library = _library()
    _refuse_prefix(prefix)
    with _held(place.files) as folder:
        sessions = Sessions(store, prefix=prefix, purge=purge, shape=shape)
        _refuse_strangers(place.files, folder, sessions)
        if place.files != place.folder:
            with _held(place.folder) as hidden:
                _refuse_strangers(place.folder, hidden, sessions)
        shown = Filesystem(folder, sessions, caller=library.caller, real=real, ready=ready)
        shown.home = place.folder
        os.umask(0)  # the kernel has applied the callers' own
        options = {"fsname": "shardstore", "subtype": "shardstore", "default_permissions": True}
        try:
            library.Fuse(shown, place.folder, **options)
        except RuntimeError as error:  # libfuse has said why on stderr
            if error.args == (ENDED_BY_SIGNAL,):
                return
            raise Unavailable(describe("libfuse could not mount", path=place.folder), errno=errno.EIO) from error
        finally:
            sessions.close()


def detach() -> Callable[[], None] | int:
    """Go on in the background: return, in the child, what to call when it is ready, and in the parent its exit code.

    The parent returns when the child is ready (0), or has ended before that (its code).
    """
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        with open(told, "rb") as pipe:
            if pipe.read():
                return 0
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(told)
    os.setsid()

    def ready() -> None:
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        os.close(nowhere)
        os.write(tell, b"ready")
        os.close(tell)

    return ready
