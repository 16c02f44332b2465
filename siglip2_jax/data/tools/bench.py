"""Speed of the input of a stage on this machine: reading and preparing, apart from each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from siglip2_jax.data.sources import Blocked, Examples, Mixture, Source
from siglip2_jax.data.stores.client import counts as counts_of_stores

_SAMPLE = 64  # examples that preparation is timed on


@dataclass(frozen=True)
class Read:
    """Speed of reading a source, with nothing done to what is read.

    Attributes:
      source: what is read, in short.
      share: its share of the examples.
      examples: how many were read.
      bytes: of their images, or all that came from a store.
      requests: how many reads that took, or how many requests to a store.
      seconds: how long.
      bad: how many could not be used.
      sample: some of them.
    """

    source: str
    share: float
    examples: int
    bytes: int
    requests: int
    seconds: float
    bad: int
    sample: tuple[dict[str, Any], ...]

    @property
    def rate(self) -> float:
        """Examples per second."""
        return self.examples / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Rates, for machines."""
        return {
            "source": self.source,
            "share": self.share,
            "images_per_second": self.rate,
            "megabytes_per_second": self.bytes / self.seconds / 1e6,
            "requests_per_second": self.requests / self.seconds,
            "bad": self.bad,
        }


def leaves(source: Source | Mixture, share: float = 1.0) -> Iterator[tuple[Source, float]]:
    """The sources of a mixture, each with its share of the examples; any other one alone."""
    if not isinstance(source, Mixture):
        yield source, share
        return
    total = sum(weight for _, weight in source.parts)
    for part, weight in source.parts:
        yield from leaves(part, share * weight / total)


def read_rate(
    examples: Examples,
    source: str,
    *,
    share: float = 1.0,
    seconds: float = 3.0,
    threads: int = 16,
    in_blocks: bool = False,
    seed: int = 0,
) -> Read:
    """Reads at random places for some time.

    Args:
      examples: the opened source.
      source: its name.
      share: its share of the examples.
      seconds: how long to read.
      threads: how many read at the same time.
      in_blocks: read blocks of examples, as the block order does.
      seed: of the places.

    Raises:
      OSError: it cannot be read.
    """
    blocked = examples if in_blocks and isinstance(examples, Blocked) else None
    size = blocked.block_size if blocked else 1
    places = np.random.default_rng(seed).permutation(min(-(-len(examples) // size), 2**20))
    lock, sample, counts = Lock(), [], np.zeros(4, np.int64)  # examples, bytes, requests, bad
    end = time.perf_counter() + seconds

    def read(first: int) -> None:
        for place in np.roll(places, -first):
            if time.perf_counter() >= end:
                return
            block = blocked.read_block(int(place)) if blocked else None
            good, bad, length = [], 0, 0
            for i in range(1 if block is None else len(block)):
                try:
                    item = examples[int(place)] if block is None else block[i]
                except ValueError:
                    bad += 1
                    continue
                good.append(item)
                length += len(item["image"])
            with lock:
                counts[:] += len(good), length, 1, bad
                sample.extend(good[: _SAMPLE - len(sample)])

    start, before = time.perf_counter(), counts_of_stores()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(read, i * len(places) // threads) for i in range(threads)]:
            done.result()
    elapsed = max(time.perf_counter() - start, 1e-9)
    number, length, requests, bad = counts.tolist()
    traffic = counts_of_stores() - before
    length, requests = traffic.bytes or length, traffic.requests or requests
    return Read(source, share, number, length, requests, elapsed, bad, tuple(sample))


def prepare_rate(
    examples: Sequence[dict[str, Any]],
    prepare: Callable[[dict[str, Any], np.random.Generator, int], Any],
    budget: int,
    seconds: float = 3.0,
) -> float:
    """Examples that a core prepares in a second of its time.

    Args:
      examples: what to prepare, again and again.
      prepare: a `Prepare`.
      budget: patches an image may have.
      seconds: how long to go on, of CPU time.

    Raises:
      ValueError: none of them can be used.
    """
    done, rng, start = 0, np.random.default_rng(0), time.thread_time()
    while time.thread_time() - start < seconds:
        before = done
        for example in examples:
            try:
                prepare(example, rng, budget)
            except ValueError:
                continue
            done += 1
        if done == before:
            raise ValueError(f"none of {len(examples)} examples can be used, so none was timed")
    return done / (time.thread_time() - start)


def together(rates: Sequence[tuple[float, float]]) -> float:
    """The rate of a mixture, from each part's share and the rate that it has alone."""
    return 1 / sum(share / max(rate, 1e-9) for share, rate in rates)
