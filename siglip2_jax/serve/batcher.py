"""Items of all requests, packed into batches of few sizes for the device."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from siglip2_jax.serve.engine import TEXT, Engine, Program
from siglip2_jax.serve.errors import ApiError
from siglip2_jax.serve.metrics import Metrics
from siglip2_jax.serve.settings import Settings


class _Job(NamedTuple):
    row: Any
    embedding: asyncio.Future[np.ndarray]
    since: float


class Batcher:
    """Queue between requests and the device. All of it runs on the server's event loop.

    Attributes:
      waiting: items taken on and not answered yet.
    """

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics):
        self.waiting = 0
        self._engine, self._metrics = engine, metrics
        self._limit, self._wait = settings.queue, settings.wait_ms / 1000
        self._queues: dict[Program, deque[_Job]] = {program: deque() for program in engine.sizes}
        self._arrived = asyncio.Event()
        self._rate = 0.0  # items a second that the device has lately done

    @contextmanager
    def admit(self, items: int) -> Iterator[None]:
        """Takes on the items of a request, until it is answered.

        Raises:
          ApiError: there are too many already; says when to try again.
        """
        if self.waiting + items > self._limit:
            self._metrics.refused.labels("queue").inc()
            seconds = math.ceil(self.waiting / self._rate) if self._rate else 1
            raise ApiError(
                429,
                f"the server is busy: {self.waiting} items are waiting, of {self._limit} that it "
                "takes; try again later",
                code="queue_full",
                headers={"Retry-After": str(min(max(seconds, 1), 60))},
            )
        self.waiting += items
        self._metrics.queue.set(self.waiting)
        try:
            yield
        finally:
            self.waiting -= items
            self._metrics.queue.set(self.waiting)

    async def embed(self, program: Program, rows: Sequence[Any]) -> list[np.ndarray]:
        """Embeds rows together with those of other requests.

        What is cancelled, with the request, leaves the queue.

        Raises:
          DeviceError: the device could not run their batch.
        """
        loop, queue = asyncio.get_running_loop(), self._queues[program]
        jobs = [_Job(row, loop.create_future(), loop.time()) for row in rows]
        queue.extend(jobs)
        self._arrived.set()
        try:
            return await asyncio.gather(*(job.embedding for job in jobs))
        finally:
            if any(job.embedding.cancelled() for job in jobs):
                rest = [job for job in queue if not job.embedding.done()]
                queue.clear()
                queue.extend(rest)

    async def run(self) -> None:
        """Feeds the device for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            program, due = self._next(loop.time())
            if program is None or due > loop.time():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due if program else None):
                        await self._arrived.wait()
                continue
            await self._run_batch(program)

    def _next(self, now: float) -> tuple[Program | None, float]:
        """The program to run next and when: of those that are due, whose item came first.

        One is due when its largest batch is full, or its first item has waited long enough.
        """
        dues, firsts = {}, {}
        for program, queue in self._queues.items():
            if queue:
                full = len(queue) >= self._engine.sizes[program][-1]
                firsts[program] = queue[0].since
                dues[program] = queue[0].since + (0 if full else self._wait)
        if not dues:
            return None, math.inf
        due = [program for program, when in dues.items() if when <= now]
        first = min(due, key=firsts.__getitem__) if due else min(dues, key=dues.__getitem__)
        return first, dues[first]

    async def _run_batch(self, program: Program) -> None:
        queue, sizes = self._queues[program], self._engine.sizes[program]
        size = batch_size(len(queue), sizes)
        jobs = [queue.popleft() for _ in range(min(size, len(queue)))]
        self._count(program, jobs, size)
        start = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._engine.thread, self._engine.run, program, [job.row for job in jobs], size
            )
        except Exception as error:
            for job in jobs:
                if not job.embedding.done():
                    job.embedding.set_exception(error)
            return
        seconds = time.perf_counter() - start
        self._metrics.batch_seconds.labels(program).observe(seconds)
        self._rate = 0.8 * self._rate + 0.2 * len(jobs) / max(seconds, 1e-6)
        for job, row in zip(jobs, rows, strict=True):
            if not job.embedding.done():
                job.embedding.set_result(row)

    def _count(self, program: Program, jobs: Sequence[_Job], size: int) -> None:
        tokens = self._engine.tokens[program]
        if program == TEXT:
            used = len(jobs) * tokens
        else:
            used = sum(len(job.row[0]) for job in jobs)
        self._metrics.batch.labels(program).observe(len(jobs))
        self._metrics.items.labels(program).inc(len(jobs))
        self._metrics.padding.labels(program).inc(size - len(jobs))
        self._metrics.tokens.labels(program).inc(used)
        self._metrics.token_slots.labels(program).inc(size * tokens)


def batch_size(waiting: int, sizes: Sequence[int]) -> int:
    """Size of the next batch: the smallest that holds all, if that is at least half filled.

    Otherwise the largest that can be filled, so that at most half of a batch is padding, but for
    the smallest size.

    Args:
      waiting: number of items.
      sizes: to choose from, ascending.
    """
    above = next((size for size in sizes if size >= waiting), None)
    below = max((size for size in sizes if size <= waiting), default=None)
    if above is not None and (below is None or 2 * waiting >= above):
        return above
    assert below is not None
    return below
