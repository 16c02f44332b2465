"""Reports of libraries on errors that commands tell in a sentence, kept from the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

LIBRARIES = ("gcsfs", "absl", "asyncio")  # the last two are Orbax's
CLOSED = "Event loop is closed"  # where TensorStore answers late, after Orbax has failed


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides logs of errors that are raised too or got over, and late answers of TensorStore."""
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != CLOSED:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
