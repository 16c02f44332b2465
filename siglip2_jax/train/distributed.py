"""Many hosts: joining them, what they tell each other, and leaving together when one fails."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # the only way to JAX's key-value store
from jax.experimental import multihost_utils

from siglip2_jax.errors import reason_of
from siglip2_jax.train.liveness import (
    LOST,
    SECONDS_OF_SILENCE,
    Beats,
    aborting_with,
    loss_of,
)

PREEMPTED = 143
"""The exit code after SIGTERM (128 + 15): a supervisor starts the same command again."""
FAILED = 2
"""The exit code of a process that ends because another one failed."""

NEWS, LOSS = "siglip2_jax/failure", "siglip2_jax/loss"
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_FAIL_ALIKE = 10.0
SECONDS_TO_MEET = 3600

log = logging.getLogger(__name__)
_meetings = itertools.count()  # the same in every process


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
      ValueError: some of the three are given and others not, or the coordinator cannot start.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None:
        num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
        process_id = _number(process_id, "JAX_PROCESS_ID")
        log.info("process %d of %d joins at %s", process_id, num_processes, coordinator)
        alone = (
            f"process {process_id} of {num_processes} has waited at {coordinator} for the others "
            "in vain: one was not started, or was killed meanwhile; run the same command on all "
            "hosts, and training resumes from the last checkpoint"
        )
        try:
            with aborting_with(None, lambda: leave(alone, LOST)):  # JAX gives up in five minutes
                jax.distributed.initialize(coordinator, num_processes, process_id)
        except RuntimeError as error:
            raise ValueError(
                f"process {process_id} cannot join at {coordinator} ({error}); is the port in use?"
            ) from error
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


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes where one fails: the others would wait for it in a collective, for ever.

    The one that fails leaves its reason in JAX's coordination service. A thread of each process
    looks for it there, prints it and ends its own process with `FAILED`; unless that process fails
    by itself, as all do where the loss is no number.

    Raises:
      ValueError: a collective broke because another process failed; says why that one did.
    """
    if global_state.client is None or jax.process_count() == 1:
        yield
        return
    over, answered = threading.Event(), threading.Event()
    beats = Beats(_store(), jax.process_index())
    beats.beat()
    watch = threading.Thread(target=_watch, args=(over, answered, beats), daemon=True)
    watch.start()
    if beats.process > 0:
        threading.Thread(target=_watch_store, args=(over, answered), daemon=True).start()
    with _noticing_the_coordinator():  # a broken collective may come first, and waits for news
        try:
            yield
        except BaseException as error:
            if _is_broken_collective(error) and (news := _await_news()):
                raise ValueError(news) from error
            reason = reason_of(error)
            news = f"process {jax.process_index()} of {jax.process_count()} failed: {reason}"
            with suppress(RuntimeError):  # the coordinator may be gone
                global_state.client.key_value_set(NEWS, news, allow_overwrite=True)
            raise
        finally:
            over.set()
            watch.join()
            with suppress(RuntimeError):
                beats.end()


@contextmanager
def _noticing_the_coordinator() -> Iterator[None]:
    """Ends this process with a sentence if process 0, the coordinator, is lost."""
    if jax.process_index() == 0 or global_state.coordinator_address is None:
        yield
        return
    with aborting_with(
        global_state.coordinator_address, lambda: leave(loss_of(0, jax.process_count()), LOST)
    ):
        yield


def _is_broken_collective(error: BaseException) -> bool:
    """True for errors of XLA: JAX raises some as a ValueError that begins with the status."""
    status = r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
    return isinstance(error, jax.errors.JaxRuntimeError) or re.match(status, str(error)) is not None


def _store() -> Any:
    """JAX's key-value store, which runs of several processes have."""
    assert global_state.client is not None
    return global_state.client


def _news() -> str | None:
    """Reason why another process failed, if one did."""
    try:
        return _store().key_value_try_get(NEWS)
    except RuntimeError:
        return None


def _await_news() -> str | None:
    """Waits for news after a broken collective, until any loss would have been noticed."""
    end = time.monotonic() + SECONDS_OF_SILENCE + 2 * SECONDS_TO_FAIL_ALIKE
    while (news := _news()) is None and time.monotonic() < end:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return news


def _watch(over: threading.Event, answered: threading.Event, beats: Beats) -> None:
    """Ends this process if another one fails or is lost, unless it is over before."""
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        if lost := _loss(answered, beats):
            leave(lost, LOST)
        news = _news()
        if news is None or over.wait(SECONDS_TO_FAIL_ALIKE):
            continue
        leave(news)  # the main thread is in a collective, which nothing interrupts


def _watch_store(over: threading.Event, answered: threading.Event) -> None:
    """Ends this process if process 0, which holds the store, has not answered for too long.

    A process that hangs keeps its connections, on which calls wait for minutes. What counts is the
    number of looks: a process that has stood still itself has not listened meanwhile.
    """
    looks = 0
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        looks = 0 if answered.is_set() else looks + 1
        answered.clear()
        if looks * SECONDS_BETWEEN_LOOKS > SECONDS_OF_SILENCE:
            leave(loss_of(0, jax.process_count()), LOST)


def _loss(answered: threading.Event, beats: Beats) -> str | None:
    """Sends this process's beat; gives a sentence on a lost process, which process 0 passes on."""
    try:
        beats.beat()
        answered.set()
        if beats.process > 0:
            return _store().key_value_try_get(LOSS)
        if (process := beats.silent(time.monotonic())) is None:
            return None
        sentence = loss_of(process, jax.process_count())
        _store().key_value_set(LOSS, sentence)
    except RuntimeError:  # nothing is lost, or the coordinator is
        return None
    time.sleep(2 * SECONDS_BETWEEN_LOOKS)  # this process holds the store, where the others look
    return sentence


def leave(reason: str, code: int = FAILED) -> NoReturn:
    """Says why, and ends this process at once, whatever its threads wait for."""
    print(f"siglip2: error: {reason}", file=sys.stderr, flush=True)
    logging.disable()  # threads are about to fail alike
    for worker in multiprocessing.active_children():
        worker.kill()  # they leave SIGTERM to this process
    try:
        if code != LOST:  # the processes of a run wait for one another here
            jax.distributed.shutdown()
    finally:
        os._exit(code)


def end(code: int) -> NoReturn:
    """Ends this process at once, with what it has printed, whatever its threads wait for."""
    sys.stdout.flush()
    os._exit(code)


def is_first() -> bool:
    """True in the process that prints; asks no device."""
    return global_state.process_id == 0


def meet() -> None:
    """Waits for all processes, for as long as it takes; the next collective may not wait so long.

    Gloo, which connects CPUs, gives up where another process comes 30 seconds later, as one may
    that has compiled on a busier machine.
    """
    if global_state.num_processes > 1:
        name = f"siglip2_jax/meeting/{next(_meetings)}"
        _store().wait_at_barrier(name, SECONDS_TO_MEET * 1000)


def exchange(text: str) -> list[str]:
    """The text of every process, in order; each calls it. No device takes part, nor starts."""
    return [x for x in _exchange(text, lambda _: meet()) if x is not None]


def gather(text: str, seconds: float) -> list[str | None]:
    """Exchanges texts, and waits no longer than that; None of a process that gave none by then."""

    def wait(name: str) -> None:
        with suppress(RuntimeError):  # a process is missing
            _store().wait_at_barrier(name, int(seconds * 1000))

    return _exchange(text, wait)


def _exchange(text: str, wait: Callable[[str], None]) -> list[str | None]:
    """The texts of all processes after a wait, which gets a name; None of one that gave none."""
    processes = range(global_state.num_processes)
    if len(processes) == 1:
        return [text]
    folder = f"siglip2_jax/exchange/{next(_meetings)}"
    _store().key_value_set(f"{folder}/{global_state.process_id}", text)
    wait(folder)
    texts = dict(_store().key_value_dir_get(folder))
    return [texts.get(f"{folder}/{process}") for process in processes]


def total(count: int) -> int:
    """The sum of a number over all processes, each of which calls it."""
    return int(totals([count])[0])


def totals(numbers: Sequence[int | float]) -> list[float]:
    """The sums of some numbers over all processes, each of which calls it."""
    if jax.process_count() == 1:
        return [float(number) for number in numbers]
    # As they lie in memory: JAX itself would round them to 32 bits.
    bits = np.array(numbers, np.float64).view(np.uint32)
    everywhere = np.ascontiguousarray(multihost_utils.process_allgather(bits))
    return everywhere.view(np.float64).sum(0).tolist()
