"""Loss of a process of a run, by a kill or with its host: the others notice, name it and end.

Every process leaves a beat in JAX's coordination service every few seconds, and process 0, which
holds the service, looks for those that have fallen silent. Where process 0 itself is lost, JAX
aborts the others at once, and a handler of that signal says why; where it hangs, they notice that
the service no longer takes their beats.
"""

from __future__ import annotations

import ctypes
import itertools
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOST = 144
"""The exit code where another process was lost: a supervisor starts the same command again.

Next to 143, that of SIGTERM, and like it among those on which xpk restarts (127 to 255).
"""

SECONDS_OF_SILENCE = 30.0  # JAX itself gives up after 100
SECONDS_TO_CONNECT = 2.0
ATTEMPTS, SECONDS_BETWEEN = 10, 0.5
BEATS, GONE = "siglip2_jax/beats", "gone"

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_set_handler = ctypes.pythonapi.PyOS_setsig  # Python's own handlers run too late for an abort
_set_handler.restype = ctypes.c_void_p
_set_handler.argtypes = ctypes.c_int, ctypes.c_void_p


class Beats:
    """Signs of life of all processes.

    Attributes:
      store: JAX's key-value store.
      process: this one's number.
    """

    def __init__(self, store: Any, process: int):
        self.store, self.process = store, process
        self._count = itertools.count()
        self._heard: dict[int, tuple[str, float]] = {}  # the last beat of each, and when it came

    def beat(self) -> None:
        """Says that this process is alive."""
        self._set(str(next(self._count)))

    def end(self) -> None:
        """Says that this process ends in good order, and is not lost when it falls silent."""
        self._set(GONE)

    def silent(self, now: float) -> int | None:
        """The first process without a new beat for too long.

        Args:
          now: seconds of a clock that never jumps.
        """
        for key, beat in self.store.key_value_dir_get(BEATS):
            process = int(key.rpartition("/")[2])
            if self._heard.get(process, ("", 0.0))[0] != beat:
                self._heard[process] = beat, now
        for process, (beat, came) in sorted(self._heard.items()):
            if beat != GONE and now - came > SECONDS_OF_SILENCE:
                return process
        return None

    def _set(self, beat: str) -> None:
        self.store.key_value_set(f"{BEATS}/{self.process}", beat, allow_overwrite=True)


def loss_of(process: int, count: int) -> str:
    """Sentence on a process that is lost."""
    return (
        f"process {process} of {count} is lost: it was killed, it hangs, or its host is gone; run "
        "the same command again on all hosts, and training resumes from the last checkpoint"
    )


@contextmanager
def aborting_with(address: str | None, leave: Callable[[], None]) -> Iterator[None]:
    """Calls a function where JAX aborts this process because its coordinator does not answer.

    Args:
      address: `host:port` of the coordinator; None where any abort is for want of others.
      leave: says so and ends the process.
    """

    def on_abort(number: int) -> None:
        for _ in range(ATTEMPTS):  # a process that was killed may listen until all of it is gone
            if address is None or not _answers(address):
                leave()
            time.sleep(SECONDS_BETWEEN)

    handler = _Handler(on_abort)  # referenced until it is no longer set
    before = _set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        _set_handler(signal.SIGABRT, before)


def _answers(address: str) -> bool:
    """True where something listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except OSError:
        return False
    return True
