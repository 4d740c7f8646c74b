"""The one door to libfuse, through mfusepy: importing this module fails where either is missing.

Rule: what mfusepy drops on its way from libfuse to Python, and what we need, is passed on here: the handle of a
truncate, chmod, chown or utimens (all that is left of a file that was unlinked while open), and the flags of a rename
(without them, `mv -n` would replace what it must not).
"""

from __future__ import annotations

from typing import Any

import mfusepy

__all__ = ["Fuse", "caller"]

IDLE_THREADS_MAX = 10  # kept for the next requests


def caller() -> int:
    """Return the thread id of the program that the current callback serves."""
    context: tuple[int, int, int] = mfusepy.fuse_get_context()
    return context[2]


class Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """Mount `operations` and serve them until they are unmounted or a signal ends the process."""

    def __init__(self, operations: object, folder: str, **options: bool | str) -> None:
        options["max_idle_threads"] = str(IDLE_THREADS_MAX)  # without it, some versions complain of their own default
        super().__init__(operations, folder, raw_fi=True, foreground=True, **options)

    def _text(self, path: bytes | None) -> str | None:
        return None if path is None else path.decode(self.encoding, self.errors)

    def truncate_fuse_3(self, path: bytes | None, length: int, fi: Any) -> int:
        """Pass the handle of an ftruncate on."""
        done: int = self.operations.truncate(self._text(path), length, fi.contents if fi else None)
        return done

    def chmod_fuse_3(self, path: bytes | None, mode: int, fi: Any) -> int:
        """Pass the handle of an fchmod on."""
        done: int = self.operations.chmod(self._text(path), mode, fi.contents if fi else None)
        return done

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fi: Any) -> int:
        """Pass the handle of an fchown on, and -1 for what is to stay."""
        kept = (1 << 32) - 1
        done: int = self.operations.chown(
            self._text(path), -1 if uid == kept else uid, -1 if gid == kept else gid, fi.contents if fi else None
        )
        return done

    def utimens_fuse_3(self, path: bytes | None, times: Any, fi: Any) -> int:
        """Pass the handle of a futimens on."""
        both = None
        if times:
            moments = times.contents.actime, times.contents.modtime
            both = tuple(moment.tv_sec * 1_000_000_000 + moment.tv_nsec for moment in moments)
        done: int = self.operations.utimens(self._text(path), both, fi.contents if fi else None)
        return done

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        """Pass the flags of a renameat2 on."""
        done: int = self.operations.rename(self._text(old), self._text(new), flags)
        return done
