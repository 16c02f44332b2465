"""Trains the same small model on examples in a full shuffle and in an order made of blocks.

    python scripts/compare_orders.py --data DIR --workdir /tmp/orders [--steps 300] [--seeds 0 1 2]

DIR holds `flickr8k_1k`. Its 700 images for training are taken as blocks of 8, and read with 8 lanes
and windows of 4 blocks: a batch of 64 comes from at most 32 of the 87 blocks. Every run is kept in
its own directory of WORKDIR, so that a comparison that was stopped goes on; the table of recall on
unseen images is printed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.recipes import small_flickr8k
from siglip2_jax.train.loop import train

BLOCK = 8
ORDERS = {"full": True, "blocks": BlockShuffle(lanes=8, window=4)}
METRICS = ("eval/val/image_to_text@10", "eval/val/text_to_image@10")


@dataclasses.dataclass(frozen=True)
class InBlocks:
    """A source as if its examples had to be read in blocks."""

    source: Source

    def open(self) -> Examples:
        """The source's examples, in blocks."""
        return _Blocks(self.source.open())


class _Blocks:
    block_size, remote = BLOCK, False

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._examples[index]

    def read_block(self, block: int, /) -> list[dict[str, Any]]:
        rows = range(len(self))[block * BLOCK : (block + 1) * BLOCK]
        return [self._examples[i] for i in rows]


def run_config(order: str, steps: int, seed: int) -> TrainConfig:
    """One arm of the comparison."""
    config = small_flickr8k.config()
    (stage,) = config.stages
    source = InBlocks(small_flickr8k.images("train"))
    data = dataclasses.replace(stage.data, source=source, shuffle=ORDERS[order])
    val = small_flickr8k.images("val")
    evals = (Retrieval(source=val, name="val", every=steps, max_num_patches=64),)
    stage = dataclasses.replace(stage, data=data, steps=steps, evals=evals)
    return dataclasses.replace(config, stages=(stage,), seed=seed)


def scores(workdir: Path) -> dict[str, float]:
    """The last line of a run's metrics."""
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    os.environ["SIGLIP2_DATA"] = args.data
    results: dict[str, list[dict[str, float]]] = {order: [] for order in ORDERS}
    for seed in args.seeds:
        for order, runs in results.items():
            workdir = args.workdir / f"{order}_{seed}"
            train(run_config(order, args.steps, seed), workdir)
            runs.append(scores(workdir))
    print(f"| order | {' | '.join(METRICS)} |\n|---|---|---|")
    for order, runs in results.items():
        cells = []
        for metric in METRICS:
            values = [100 * run[metric] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ({', '.join(f'{x:.1f}' for x in values)})")
        print(f"| {order} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
