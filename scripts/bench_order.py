"""Quality of the block order: pairs of one class in a batch, against the full shuffle's.

Simulated on the worst case, data sorted by class: N examples of C classes that stand together. In
full shuffle a pair of a batch is of one class with a probability of about 1 / C; the table says how
many times as many pairs the block order has, averaged over steps from all of an epoch. Reads no
data and takes a few minutes on one core.

    python scripts/bench_order.py [--steps 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from siglip2_jax.cli.options import positive
from siglip2_jax.data.blocks.order import BlockOrder
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.progress import progress

CLASSES = 1000
# Examples, a block's examples, batch, settings.
CASES = (
    (8_000_000, 128, 4096, BlockShuffle(window=1)),
    (8_000_000, 128, 4096, BlockShuffle(lanes=256, window=4)),
    (8_000_000, 128, 4096, BlockShuffle(lanes=256, window=8)),
    (8_000_000, 128, 4096, BlockShuffle(lanes=256, window=16)),
    (8_000_000, 128, 4096, BlockShuffle()),
    (8_000_000, 128, 4096, BlockShuffle(lanes=256)),
    (8_000_000, 128, 4096, BlockShuffle(window=16)),
    (8_000_000, 32, 4096, BlockShuffle()),
    (8_000_000, 512, 4096, BlockShuffle()),
    (1_000_000, 128, 4096, BlockShuffle()),
    (32_000_000, 128, 32_768, BlockShuffle()),
    (32_000_000, 256, 32_768, BlockShuffle()),
    (1_000_000_000, 128, 32_768, BlockShuffle()),
)


def batch(order: BlockOrder, step: int, size: int) -> np.ndarray:
    """Numbers of the examples of a step's batch."""
    each = size // order.lanes
    keys = range(step * each, (step + 1) * each)
    return np.array([order.example(lane, key) for lane in range(order.lanes) for key in keys])


def pairs(numbers: np.ndarray, per_class: int) -> int:
    """Pairs of one class."""
    counts = np.bincount(numbers // per_class)
    return int(np.sum(counts * (counts - 1)) // 2)


def measure(
    examples: int, block: int, size: int, shuffle: BlockShuffle, steps: int
) -> dict[str, Any]:
    """One row of the table."""
    lanes, window = shuffle.resolve((size,))
    order = BlockOrder(examples, block, lanes, window, seed=0)
    per_class = examples // CLASSES
    chosen = np.linspace(0, examples // size - 1, steps).astype(int)
    ratios, full = [], size * (size - 1) / 2 * (per_class - 1) / (examples - 1)
    for step in chosen.tolist():
        ratios.append(pairs(batch(order, step, size), per_class) / full)
    return {
        "examples": examples,
        "block": block,
        "batch": size,
        "lanes": lanes,
        "window": order.width,
        "pool": order.lanes * order.width * order.size,
        "pairs": float(np.mean(ratios)),
        "error": float(np.std(ratios) / np.sqrt(len(ratios))),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=20, help="steps of each row")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    args = parser.parse_args()
    rows = []
    with progress("simulating") as show:
        for case in CASES:
            rows.append(measure(*case, args.steps))
            show(len(rows), len(CASES))
    print("| N | block | batch | lanes | window | pool | pairs of a class, block / full shuffle |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['examples']:,} | {row['block']} | {row['batch']:,} | {row['lanes']:,} | "
            f"{row['window']} | {row['pool']:,} | {row['pairs']:.3f} ± {row['error']:.3f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
