"""Decoding processes: good images as without them; what hangs or dies is replaced."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time

import numpy as np
import pytest
from serve.running import encoded

from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.serve.decode import DecoderLost, Decoders

pytestmark = pytest.mark.serve


@dataclasses.dataclass(frozen=True)
class Hostile(ImagePreprocessor):
    """Hangs, dies or runs out of memory on certain bytes."""

    def open(self, source, name=None, least_size=None):
        if source == b"hang":
            time.sleep(600)
        if source == b"die":
            os._exit(11)
        if source == b"memory":
            raise MemoryError
        return super().open(source, name, least_size)


def run(test, workers=1, seconds=3.0):
    restarts = []
    decoders = Decoders(Hostile(4, None), workers, seconds, lambda: restarts.append(1))
    try:
        asyncio.run(test(decoders))
    finally:
        decoders.close()
    return len(restarts)


def test_bad_ones_do_not_reach_the_others():
    file = encoded(20, 31)
    expected = ImagePreprocessor(4, None)(file, 16)

    async def test(decoders):
        good = asyncio.create_task(decoders.decode(file, 16))
        results = await asyncio.gather(
            *(decoders.decode(x, 16) for x in (b"die", b"", b"memory", b"hang", file)),
            return_exceptions=True,
        )
        kinds = [type(x).__name__ for x in results]
        assert kinds == ["DecoderLost", "ImageError", "ImageError", "DecoderLost", "Decoded"]
        assert "MemoryError" in str(results[2])
        for decoded in (await good, results[-1]):
            pixels, grid = decoded.patches
            np.testing.assert_array_equal(pixels, expected.pixels[0][expected.valid[0]])
            assert decoded.size == (31, 20) and grid == decoded.grid

    assert run(test, seconds=2.0) == 2


def test_start_waits_for_all(tmp_path):
    async def test(decoders):
        decoders.start()
        assert len(decoders._processes) == 2
        start = time.monotonic()
        with pytest.raises(ImageError):
            await decoders.decode(b"no image", 16)
        assert time.monotonic() - start < 2  # nothing had to start

    assert run(test, workers=2) == 0


def test_a_hang_takes_its_time_and_no_more():
    async def test(decoders):
        decoders.start()
        start = time.monotonic()
        with pytest.raises(DecoderLost):
            await decoders.decode(b"hang", 16)
        assert 0.9 < time.monotonic() - start < 10

    assert run(test, seconds=1.0) == 1
