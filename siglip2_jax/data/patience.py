"""Reading that outlasts what passes, and stops with one sentence at what does not."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.errors import reason_of

T = TypeVar("T")

PATIENCE = 300.0  # seconds, where nobody has said how long

# Errors of disks, mounts and networks that may pass by themselves.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR EIO ENETDOWN "
        "ENETRESET ENETUNREACH ENOTCONN EREMOTEIO ESTALE ETIMEDOUT"
    ).split()
    if hasattr(errno, name)  # macOS has no EREMOTEIO
)
# Errors of paths that lead to no file whatever the machine does.
_NO_FILE = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_WAYS_OUT = {
    errno.EACCES: "let the user of this process read it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
    errno.ENOENT: "put it back and run the same command again",
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0  # seconds


def patiently(read: Callable[[], T], name: str, patience: float = PATIENCE) -> T:
    """Reads, and tries again for some time after errors of the machine that may pass.

    Args:
      read: reads something; called again from the beginning.
      name: what is read, for errors that name no file.
      patience: seconds after the first error in which it is tried again, with longer and longer
        pauses.

    Raises:
      SourceError: the machine, the network or a permission stands against it.
    """
    pause, began = _FIRST_PAUSE, None
    while True:
        try:
            return read()
        except SourceError:
            raise
        except OSError as error:
            now = time.monotonic()
            began = now if began is None else began
            passing = error.errno in _PASSING
            if not passing or now + pause > began + patience:
                raise SourceError(_sentence(error, name, patience if passing else None)) from error
        time.sleep(pause * random.uniform(0.5, 1))  # many processes are at it
        pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def of_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives errors of the system a file's name, which they lack where it is open already."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def of_stored_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives errors of reading a file the form of `of_file`, those of clients of stores too."""
    try:
        with of_file(path):
            yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        reason = reason_of(error)
        raise OSError(errno.EIO, reason, os.fspath(path)) from error


@contextmanager
def of_example_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives errors of reading an example's file the form of `of_stored_file`.

    Raises:
      ExampleError: the path is that of no file, or of none that there can be.
    """
    try:
        with of_stored_file(path):
            yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise
        text = os.fspath(path)
        raise ExampleError(
            f"{text if text.isprintable() else repr(text)}: this is no file."
        ) from error


def _sentence(error: OSError, name: str, tried: float | None) -> str:
    """Sentence on an error: the thing that cannot be read, the reason, a way out."""
    place = name if error.filename is None else os.fsdecode(error.filename)
    reason = error.strerror or reason_of(error)
    if tried is not None:
        return (
            f"{place} cannot be read ({reason}), tried for {tried:g} s (Data.patience); run the "
            "same command again once it can"
        )
    way_out = _WAYS_OUT.get(error.errno or 0, "run the same command again once it can")
    return f"{place} cannot be read ({reason}); {way_out}"
