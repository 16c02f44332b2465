"""Rates of reading and preparing: what they count, and bounds that hold on any machine."""

import time
from dataclasses import dataclass

import pytest
from data.faults import FailingBlocks
from data.samples import example

from siglip2_jax.data.sources import Memory, Mixture
from siglip2_jax.data.tools.bench import leaves, prepare_rate, read_rate, together

PAUSE = 0.01


class Slow:
    """Thirty examples that take 10 ms to read; every third is bad."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        time.sleep(PAUSE)
        if index % 3 == 0:
            raise ValueError("bad")
        return {**example(0), "image": bytes(index)}


def test_reading_counts_what_was_read():
    read = read_rate(Slow(), "it", seconds=0.3, threads=4)
    assert read.requests == read.examples + read.bad
    assert 0.3 <= read.seconds < 3 and read.requests <= 4 * (0.3 / PAUSE + 1)
    assert read.requests >= 8 and abs(read.bad / read.requests - 1 / 3) < 0.2
    assert 1 * read.examples <= read.bytes <= 29 * read.examples
    assert read.rate == read.examples / read.seconds
    assert 0 < len(read.sample) <= 64 and all(len(x["image"]) % 3 for x in read.sample)
    figures = read.to_json()
    assert figures["images_per_second"] == read.rate
    assert figures["requests_per_second"] == pytest.approx(read.requests / read.seconds)


def test_blocks_are_one_request():
    read = read_rate(FailingBlocks(), "it", seconds=0.05, threads=2, in_blocks=True)
    assert read.examples == 5 * read.requests > 0
    assert read_rate(FailingBlocks(), "it", seconds=0.05, threads=2).examples > 0


@pytest.mark.parametrize("in_blocks", [False, True])
def test_what_cannot_be_read_stops(in_blocks):
    with pytest.raises(OSError, match="Input/output error"):
        read_rate(FailingBlocks(times={2: 1}), "it", seconds=5.0, in_blocks=in_blocks)


@dataclass
class Busy:
    """Takes 5 ms of CPU time for an example, and refuses the second."""

    def __call__(self, item, rng, budget):
        if item["id"] == 1:
            raise ValueError("bad")
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass


def test_preparing_is_timed_by_the_core():
    assert 50 < prepare_rate([example(0), example(1)], Busy(), 64, 0.1) <= 200
    with pytest.raises(ValueError, match="none of 1 examples can be used"):
        prepare_rate([example(1)], Busy(), 64, 0.1)


def test_parts_of_a_mixture():
    a, b, c = (Memory((example(i),)) for i in range(3))
    inner = Mixture(((b, 1.0), (c, 3.0)))
    shares = list(leaves(Mixture(((a, 2.0), (inner, 2.0)))))
    assert shares == [(a, 0.5), (b, 0.125), (c, 0.375)]
    assert together([(0.5, 100.0), (0.5, 300.0)]) == pytest.approx(150)
