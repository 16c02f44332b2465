"""Many hosts: joining them, and leaving together when one is told to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

PREEMPTED = 143
"""The exit code after SIGTERM (128 + 15): a supervisor starts the same command again."""


def join_hosts(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects the processes of a run; does nothing where there is only one.

    On Cloud TPU, Slurm and the like JAX finds the others by itself. Elsewhere say who they are, or
    set `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. To be called before
    anything touches a device.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      ValueError: some of the three are given and others not.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None:
        num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
        process_id = _number(process_id, "JAX_PROCESS_ID")
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    if num_processes is not None or process_id is not None:
        raise ValueError(
            "the number of processes is given without a coordinator; pass --coordinator HOST:PORT"
        )
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        # No cluster was found: this is a machine of its own.
        if "coordinator_address" not in str(error):
            raise


def _number(value: int | None, variable: str) -> int:
    if value is not None:
        return value
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise ValueError(
            f"a coordinator is given without {variable} (found {text!r}); set it, or pass "
            "--num-processes and --process-id"
        )
    return int(text)


class StopSignal:
    """Notices SIGTERM, which comes before a preemption, on any host.

    With several processes JAX's preemption service agrees on a step that all of them reach, so
    that they save the same one.
    """

    def __init__(self) -> None:
        self._received = False
        self._several = jax.process_count() > 1
        if not self._several:  # with several, JAX itself listens
            self._previous = signal.signal(signal.SIGTERM, self._receive)

    def should_stop(self, step: int) -> bool:
        """Whether the run stops before this step; every process asks at every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def close(self) -> None:
        """Gives the signal back."""
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


def total(count: int) -> int:
    """The sum of a number over all processes, each of which calls it."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int64(count)).sum())
