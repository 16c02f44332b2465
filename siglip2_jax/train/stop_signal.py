"""Signals that end a run: SIGTERM, after which it saves, and Ctrl-C, after which it does not."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Notices SIGTERM, which comes before a preemption, on any host, and Ctrl-C on this one.

    With several processes JAX's preemption service agrees on a step that all of them reach, so
    that they save the same one. Ctrl-C raises `KeyboardInterrupt` where the run stands, and again
    at the next step if something has caught it: `asyncio.run`, with which Orbax saves, makes a
    cancellation of it that its tasks may ignore, but leaves handlers that others installed.
    """

    def __init__(self) -> None:
        self._received = self._interrupted = False
        self._several = jax.process_count() > 1
        self._previous: dict[int, Any] = {}
        if not self._several:  # with several, JAX itself listens
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where ignored
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def should_stop(self, step: int) -> bool:
        """True where the run stops before this step; every process asks at every step.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed since the run began.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def close(self) -> None:
        """Restores the handlers that the signals had before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt
