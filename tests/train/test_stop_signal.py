"""Ctrl-C ends a run, also where something that it interrupts goes on as if nothing had happened."""

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from siglip2_jax.train.stop_signal import StopSignal


@pytest.fixture
def stop():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = StopSignal()
    yield stop
    stop.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


async def deaf():
    """A task that ignores its cancellation, which is what `asyncio.run` makes of Ctrl-C."""
    with suppress(asyncio.CancelledError):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)


def test_tasks_cannot_ignore_it(stop):
    assert not stop.should_stop(1)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(deaf())


def test_caught_it_comes_again_at_the_next_step(stop):
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.should_stop(1)


def test_without_it_python_would_lose_it(stop):
    """The reason for a handler: if this fails, Python has changed and the handler may go."""
    stop.close()
    asyncio.run(deaf())


def test_where_it_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopSignal()
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.should_stop(1)
        stop.close()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
