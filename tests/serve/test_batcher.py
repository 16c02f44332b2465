"""Packing, waiting, refusing, cancelling: with a device that a test holds."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from siglip2_jax.serve.batcher import Batcher, batch_size
from siglip2_jax.serve.engine import TEXT, DeviceError, Engine, Program
from siglip2_jax.serve.errors import ApiError
from siglip2_jax.serve.metrics import Metrics
from siglip2_jax.serve.settings import Settings

pytestmark = pytest.mark.serve

IMAGE = Program("image", 16)


class Device(Engine):
    """Doubles rows; notes its batches; waits while `go` is unset."""

    def __init__(self):
        self.sizes = {TEXT: (1, 4), IMAGE: (1, 2)}
        self.tokens = {TEXT: 8, IMAGE: 16}
        self.thread = ThreadPoolExecutor(1)
        self.go = threading.Event()
        self.go.set()
        self.batches = []
        self.broken = False

    def run(self, program, rows, size):
        self.go.wait(10)
        self.batches.append((str(program), len(rows), size))
        if self.broken:
            raise DeviceError
        return np.stack([2.0 * np.ravel(row[0] if program.budget else row) for row in rows])


def run(test, **settings):
    """Runs a coroutine with a batcher at work."""

    async def main():
        device = Device()
        batcher = Batcher(device, Settings(**{"queue": 12, "max_items": 6} | settings), Metrics())
        work = asyncio.create_task(batcher.run())
        try:
            await asyncio.wait_for(test(batcher, device), 20)
            assert not work.done()
        finally:
            device.go.set()
            work.cancel()
            device.thread.shutdown()

    asyncio.run(main())


def texts(*numbers):
    return [np.full(8, x) for x in numbers]


@pytest.mark.parametrize(
    ("waiting", "size"),
    [(1, 1), (2, 1), (3, 1), (4, 8), (7, 8), (8, 8), (9, 8), (15, 8), (16, 32), (32, 32), (99, 32)],
)
def test_at_most_half_of_a_batch_is_padding(waiting, size):
    assert batch_size(waiting, (1, 8, 32)) == size


def test_the_smallest_size_may_be_larger_than_what_waits():
    assert batch_size(1, (8, 32)) == 8


def test_requests_are_packed_and_get_their_own_rows():
    async def test(batcher, device):
        results = await asyncio.gather(
            batcher.embed(TEXT, texts(1, 2)),
            batcher.embed(TEXT, texts(3)),
            batcher.embed(TEXT, texts(4)),
        )
        assert [[int(x[0]) for x in rows] for rows in results] == [[2, 4], [6], [8]]
        assert device.batches == [("text", 4, 4)]

    run(test, wait_ms=5000.0)  # full before that


def test_a_single_item_waits_for_others_only_so_long():
    async def test(batcher, device):
        loop = asyncio.get_running_loop()
        start = loop.time()
        await batcher.embed(TEXT, texts(1))
        assert 0.1 <= loop.time() - start < 2
        assert device.batches == [("text", 1, 1)]

    run(test, wait_ms=100.0)


async def begun(batcher, device):
    """A text that the device has begun with, and waits for `go` to go on."""
    device.go.clear()
    task = asyncio.create_task(batcher.embed(TEXT, texts(0)))
    await asyncio.sleep(0)
    while batcher._queues[TEXT]:
        await asyncio.sleep(0.01)
    return task


def test_kinds_take_turns_by_age():
    async def test(batcher, device):
        first = await begun(batcher, device)
        jobs = [
            asyncio.create_task(batcher.embed(TEXT, texts(*range(6)))),
            asyncio.create_task(batcher.embed(IMAGE, [(np.zeros((3, 4)), (1, 3))] * 2)),
        ]
        await asyncio.sleep(0.05)
        device.go.set()
        await asyncio.gather(first, *jobs)
        assert device.batches[1:] == [("text", 4, 4), ("text", 2, 4), ("image-16", 2, 2)]

    run(test, wait_ms=0.0)


def test_a_full_queue_says_when_to_come_again():
    async def test(batcher, device):
        with batcher.admit(7):
            with batcher.admit(5), pytest.raises(ApiError) as caught:
                batcher.admit(1).__enter__()
            assert caught.value.status == 429
            assert int(caught.value.headers["Retry-After"]) >= 1
            with batcher.admit(5):
                pass
        assert batcher.waiting == 0

    run(test)


def test_what_is_cancelled_leaves_the_queue():
    async def test(batcher, device):
        first = await begun(batcher, device)
        leaves = asyncio.create_task(batcher.embed(TEXT, texts(1, 2, 3)))
        stays = asyncio.create_task(batcher.embed(TEXT, texts(4)))
        await asyncio.sleep(0.01)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        device.go.set()
        assert [int(x[0]) for x in await stays] == [8]
        await first
        assert sum(n for _, n, _ in device.batches) == 2

    run(test, wait_ms=0.0)


def test_a_batch_that_fails_fails_its_items_and_no_more():
    async def test(batcher, device):
        device.broken = True
        results = await asyncio.gather(
            batcher.embed(TEXT, texts(1)), batcher.embed(TEXT, texts(2)), return_exceptions=True
        )
        assert [type(x) for x in results] == [DeviceError, DeviceError]
        device.broken = False
        assert [int(x[0]) for x in await batcher.embed(TEXT, texts(3))] == [6]

    run(test, wait_ms=20.0)
