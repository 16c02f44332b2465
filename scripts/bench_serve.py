"""A server on this machine under load: speed, latency, memory, and its end.

Three parts, each on its own server; everything stays on this machine, whose cores the clients
share:

- batching: requests a second with one request at a time, and with many; of texts and of images
- load: texts, images, classification and reranking from many clients, with a few requests that
  have to be refused; latencies, requests a second, padding, and the growth of memory
- end: SIGTERM under the same load; no request that was sent may stay without its answer

    python scripts/bench_serve.py [--seconds 600] [--clients 16] [--source MODEL] [--json FILE]

Exits with 1 if a request got another status than it had to, or none.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from serve_load import Call, Client, image_call, mixed_call, text_call
from served import Served

from siglip2_jax.testing import tiny_embedder

SAMPLES = 200  # of the server's memory
MakeCall = Callable[[random.Random, int], Call]


class Bench:
    """Servers of a model, and the load that they get.

    Attributes:
      wrong: requests that got another status than they had to.
    """

    def __init__(self, source: Path, folder: Path, budget: int, clients: int, options: list[str]):
        self.source, self.folder, self.budget, self.clients = source, folder, budget, clients
        self.options = ["--max-num-patches", str(budget), *options]
        self.wrong: collections.Counter[str] = collections.Counter()

    def serve(self, part: str) -> Served:
        """A server of the model, not started yet."""
        return Served(self.source, self.folder / f"{part}.log", self.options)

    async def drive(self, port: int, clients: int, make: MakeCall, end: Callable[[], bool]):
        """Sends requests from many clients until the end; returns the clients."""

        def calls(client: int) -> Iterator[Call]:
            draw = random.Random(client)
            while not end():
                yield make(draw, self.budget)

        crew = [Client(port) for _ in range(clients)]
        await asyncio.gather(*(client.run(calls(i)) for i, client in enumerate(crew)))
        for client in crew:
            self.wrong += client.wrong
        return crew

    async def speed(self, port: int, clients: int, make: MakeCall, seconds: float) -> float:
        """Requests a second, after a few that are not counted."""
        warm = itertools.count()
        await self.drive(port, clients, make, lambda: next(warm) >= 4 * clients)
        start = time.perf_counter()
        crew = await self.drive(port, clients, make, lambda: time.perf_counter() - start > seconds)
        return sum(client.sent for client in crew) / (time.perf_counter() - start)

    def batching(self, seconds: float) -> dict[str, Any]:
        """Requests a second, one at a time and many, in two rounds."""
        rates: dict[str, list[float]] = collections.defaultdict(list)
        kinds: dict[str, MakeCall] = {"texts": text_call, "images": image_call}
        with self.serve("batching") as server:
            for _ in range(2):
                for kind, make in kinds.items():
                    for name, clients in (("one", 1), ("many", self.clients)):
                        rate = asyncio.run(self.speed(server.port, clients, make, seconds))
                        rates[f"{kind}_{name}"].append(rate)
        result: dict[str, Any] = {k: [round(x, 1) for x in v] for k, v in rates.items()}
        for kind in kinds:
            ratio = np.mean(rates[f"{kind}_many"]) / np.mean(rates[f"{kind}_one"])
            result[f"{kind}_times"] = round(float(ratio), 2)
        return result

    def load(self, seconds: float) -> dict[str, Any]:
        """Mixed load: latencies, rate, padding, memory."""
        memory: list[tuple[float, int]] = []

        async def watch(server: Served, start: float) -> None:
            while True:
                memory.append((time.perf_counter() - start, server.memory()))
                await asyncio.sleep(seconds / SAMPLES)

        async def run(server: Served) -> list[Client]:
            start = time.perf_counter()
            watcher = asyncio.create_task(watch(server, start))
            crew = await self.drive(
                server.port,
                self.clients,
                mixed_call,
                lambda: time.perf_counter() - start > seconds,
            )
            watcher.cancel()
            return crew

        with self.serve("load") as server:
            crew = asyncio.run(run(server))
            metrics = server.get("/metrics").body.decode()
        latencies: dict[str, list[float]] = collections.defaultdict(list)
        for client in crew:
            for kind, values in client.seconds.items():
                latencies[kind] += values
                latencies["all"] += values
        return {
            "requests": len(latencies["all"]),
            "a_second": round(len(latencies["all"]) / seconds, 1),
            "ms": {kind: percentiles(values) for kind, values in sorted(latencies.items())},
            "padding": padding(metrics),
            "memory": growth(memory),
        }

    def end(self, seconds: float) -> dict[str, Any]:
        """SIGTERM after a while; the clients go on until nobody listens."""
        with self.serve("end") as server:

            async def run() -> list[Client]:
                loop = asyncio.get_running_loop()
                loop.call_later(seconds, server.process.send_signal, signal.SIGTERM)
                deadline = time.monotonic() + seconds + 60
                return await self.drive(
                    server.port, self.clients, mixed_call, lambda: time.monotonic() > deadline
                )

            crew = asyncio.run(run())
            code = server.process.wait(60)
        lost = sum(sum(client.wrong.values()) for client in crew)
        return {"sent": sum(client.sent for client in crew), "lost": lost, "exit_code": code}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds within which so many in a hundred requests were answered."""
    values = {f"p{p}": 1000 * float(np.percentile(seconds, p)) for p in (50, 95, 99)}
    return {name: round(value, 1) for name, value in values.items()}


def padding(metrics: str) -> dict[str, dict[str, float]]:
    """Share of rows, and of tokens, that were computed for no item, for each program."""
    figures: dict[tuple[str, str], float] = {}
    for line in metrics.splitlines():
        if line.startswith("siglip2_") and '_total{program="' in line:
            name, _, rest = line.partition('_total{program="')
            program, _, value = rest.partition('"} ')
            figures[name.removeprefix("siglip2_"), program] = float(value)
    result = {}
    for program in sorted({program for _, program in figures}):
        rows, padded, used, slots = (
            figures.get((name, program), 0.0)
            for name in ("items", "padding_items", "tokens", "token_slots")
        )
        result[program] = {
            "rows": round(padded / max(rows + padded, 1), 3),
            "tokens": round(1 - used / max(slots, 1), 3),
        }
    return result


def growth(memory: Sequence[tuple[float, int]]) -> dict[str, float]:
    """MiB at the start, half way and at the end, and the slope of the second half."""
    table = np.array(memory, float)
    half = table[len(table) // 2 :]
    slope = np.polyfit(half[:, 0], half[:, 1], 1)[0] if len(half) > 2 else 0.0
    points = {"start": table[0, 1], "half": half[0, 1], "end": table[-1, 1]}
    result = {f"MiB_{name}": round(value / 2**20, 1) for name, value in points.items()}
    return {**result, "KiB_a_minute": round(60 * slope / 1024, 1)}


def main() -> int:
    """Prints the figures; returns 1 if a request got another status than it had to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", type=Path, help="a model (default: a tiny random one)")
    parser.add_argument("--seconds", type=float, default=600, help="of the mixed load")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--max-num-patches", type=int, default=64)
    parser.add_argument("--options", default="", help="further options of `siglip2 serve`")
    parser.add_argument("--parts", default="batching,load,end")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.source or Path(folder) / "tiny"
        if not args.source:
            tiny_embedder().save(source)
        options = args.options.split()
        bench = Bench(source, Path(folder), args.max_num_patches, args.clients, options)
        parts = {"batching": min(10, args.seconds), "load": args.seconds, "end": 2.0}
        result: dict[str, Any] = {}
        for part in args.parts.split(","):
            result[part] = getattr(bench, part)(parts[part])
        result["wrong"] = dict(bench.wrong)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return int(bool(bench.wrong))


if __name__ == "__main__":
    sys.exit(main())
