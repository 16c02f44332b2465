"""Requests that a server must survive: broken images, wrong types, floods, clients that hang up.

Sends a fixed sequence of requests to a server on this machine, several at a time: images of one
pixel, of 12,000 pixels a side, cut, bombs; bodies of wrong types, huge lists, deep JSON; searches
with conditions that would take all memory; clients that are slow, stop half way or leave. Between
them, good requests whose embeddings must be right. Searches need the extra `search`.

Exits with 1 if an answer is 5xx, a request hangs, or a good one is answered wrongly. Prints how
often each kind was answered with which status, and the growth of the server's memory.

    python scripts/campaigns/fuzz_serve.py [--requests 10000] [--seed 0] [--source M] [--json F]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
from odd_requests import GOOD, Case, odd_requests
from served import Served, ask, connect, make_database

import siglip2_jax
from siglip2_jax.testing import tiny_embedder

CLIENTS = 8
SECONDS = 60.0  # after which a request hangs
ROUNDS = 20  # after each of which the server's memory is read, while nothing is sent
GOOD_EVERY = 20
HANGS, CLOSED, LEFT = "hangs", "closed", "left"  # what may come instead of a status


async def send(port: int, case: Case) -> str:
    """The status of the answer, or what came instead."""
    try:
        async with asyncio.timeout(SECONDS), connect(port) as connection:
            writer, data = connection.writer, case.data
            if case.manner in ("half", "leave"):
                data = data[: len(data) // 2]
            pieces = 4 if case.manner == "slow" else 1
            for i in range(pieces):
                writer.write(data[i * len(data) // pieces : (i + 1) * len(data) // pieces])
                await writer.drain()
                if case.manner in ("slow", "late leave"):
                    await asyncio.sleep(0.02)
            if case.manner in ("leave", "late leave"):
                return LEFT
            if case.manner == "half":
                writer.write_eof()
            return str((await connection.read()).status)
    except TimeoutError:
        return HANGS
    except (ConnectionError, asyncio.IncompleteReadError):
        return CLOSED


class Fuzz:
    """A run of odd requests, and what came of them.

    Attributes:
      counts: of each kind of request, how often it got which status.
      wrong: good requests that were not answered with the right embedding.
      memory: after each round, number of requests so far and bytes of the server.
    """

    def __init__(self, server: Served, expected: np.ndarray):
        self.server, self.expected = server, expected
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.wrong: list[str] = []
        self.memory: list[tuple[int, int]] = []

    async def run(self, count: int, seed: int) -> None:
        """Sends all requests, several at a time."""
        cases = enumerate(odd_requests(count, seed), 1)
        done = 0
        while cases_of_round := tuple(itertools.islice(cases, -(-count // ROUNDS))):
            waiting = iter(cases_of_round)
            await asyncio.gather(*(self._client(waiting) for _ in range(CLIENTS)))
            await self._check_good()
            done += len(cases_of_round)
            self.memory.append((done, self.server.memory()))

    async def _client(self, cases: Iterator[tuple[int, Case]]) -> None:
        for number, case in cases:
            self.counts[case.kind][await send(self.server.port, case)] += 1
            if number % GOOD_EVERY == 0:
                await self._check_good()

    async def _check_good(self) -> None:
        """A good request, sent again while the server says that it is busy."""
        for _ in range(100):
            answer = await ask(self.server.port, "POST", "/v1/embeddings", GOOD)
            if answer.status != 429:
                break
            await asyncio.sleep(0.1)
        if answer.status != 200:
            self.wrong.append(f"{answer.status} {answer.body[:200]!r}")
            return
        row = np.array(answer.json()["data"][0]["embedding"], np.float32)
        if row.shape != self.expected.shape or np.abs(row - self.expected).max() > 1e-6:
            self.wrong.append("another embedding")

    def summary(self) -> dict[str, Any]:
        """Counts, failures, and the line through the second half of the memory."""
        by_status: collections.Counter[str] = collections.Counter()
        for counts in self.counts.values():
            by_status.update(counts)
        half = np.array(self.memory[len(self.memory) // 2 :], float)
        slope = np.polyfit(half[:, 0], half[:, 1], 1)[0] if len(half) > 1 else 0.0
        faults = {
            kind: dict(counts)
            for kind, counts in sorted(self.counts.items())
            if any(status == HANGS or status.startswith("5") for status in counts)
        }
        return {
            "requests": by_status.total(),
            "statuses": dict(sorted(by_status.items())),
            "faults": faults,
            "wrong": self.wrong,
            "MiB": [round(size / 2**20, 1) for _, size in self.memory],
            "KiB_per_1000_requests": round(slope * 1000 / 1024, 1),
            "kinds": {kind: dict(counts) for kind, counts in sorted(self.counts.items())},
        }


def fuzz(source: Path, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Starts a server, sends it the requests, and returns what came of them."""
    log, database = folder / "log", find_spec("lancedb") is not None
    expected = siglip2_jax.load(source).embed_texts(GOOD["input"])[0]
    options = ("--db", str(make_database(folder, source))) if database else ()
    start = time.monotonic()
    with Served(source, log, options) as server:
        run = Fuzz(server, expected)
        asyncio.run(run.run(count, seed))
        alive = server.process.poll() is None
        tracebacks = log.read_text(errors="replace").count("Traceback")
    seconds = round(time.monotonic() - start, 1)
    more = {"seconds": seconds, "alive": alive, "tracebacks": tracebacks, "database": database}
    return {**run.summary(), **more}


def main() -> int:
    """Prints the summary; returns 1 if the server failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help="a model (default: a tiny random one)")
    parser.add_argument("--json", type=Path, help="write the summary there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or Path(folder) / "tiny"
        if not args.source:
            tiny_embedder().save(source)
        summary = fuzz(source, args.requests, args.seed, Path(folder))
    text = json.dumps(summary, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    failed = summary["faults"] or summary["wrong"] or not summary["alive"]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
