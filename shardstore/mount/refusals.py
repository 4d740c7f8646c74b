"""The engine's errors as those that a file has.

Rule: what leaves `Sessions` and `SessionFile` is an OSError with an errno, whose text is the engine's own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from shardstore.errors import Deleted, InvalidRequest, NotFound, ShardstoreError, Unavailable, UnsupportedFormat

__all__ = ["as_os_error", "refuse", "translated"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def refuse(code: int, name: str = "") -> OSError:
    """Return the OSError of `code` for the file `name`."""
    return OSError(code, os.strerror(code), name or None)


def as_os_error(error: ShardstoreError) -> OSError:
    """Return the OSError that tells a program what an error of the engine means for its file."""
    if isinstance(error, Unavailable):
        code = error.errno or errno.EIO
    elif isinstance(error, Deleted):
        code = errno.ESTALE
    elif isinstance(error, NotFound):
        code = errno.ENOENT
    elif isinstance(error, InvalidRequest) and not isinstance(error, UnsupportedFormat):
        code = errno.EFBIG  # what a mount asks for is in order, but for its size
    else:
        code = errno.EIO
    return OSError(code, str(error))


def translated(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a call raise OSError where it would raise an error of the engine."""

    @wraps(call)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return call(*args, **kwargs)
        except ShardstoreError as error:
            raise as_os_error(error) from error

    return run
