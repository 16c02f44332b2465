"""Work on threads ahead of the device, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def thread_map(function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Maps on threads, in order, never more than `count` items ahead of the consumer.

    Left before its end, it drops what has not begun, and waits for nothing: the garbage collector
    closes a generator that is left in a cycle, as errors leave it, at any point of any thread. That
    thread may hold the very lock that the end of another thread needs.
    """
    pool = ThreadPoolExecutor(cpu_count())
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items, the last one shorter (3.12's itertools.batched)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def prefetch_batches(
    function: Callable[[T], R], items: Iterable[T], batch_size: int
) -> Iterator[tuple[list[R], float]]:
    """Maps on threads ahead of the device; yields batches and the seconds each was waited for.

    Raises:
      ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    batches = batched(thread_map(function, items, 2 * batch_size), batch_size)
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()
