"""Sizes and speed of an export to StableHLO, and its difference from the model, on this machine.

Random weights in the sizes of a release; both run the same images in turns. Needs flatbuffers.

    python scripts/bench_export.py [--size B] [--batch 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from siglip2_jax import Embedder, ImagePreprocessor
from siglip2_jax.export.stablehlo import export_stablehlo
from siglip2_jax.export.stablehlo_loader import load
from siglip2_jax.models.config import SIZES, two_towers
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.testing import random_params


def seconds(call: Callable[[], object]) -> float:
    """Time that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description="Speed of an export to StableHLO.")
    parser.add_argument("--size", choices=SIZES, default="B")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = two_towers(args.size, patch_size=16, image_size=None)
    embedder = Embedder(config, random_params(config), ImagePreprocessor(16, None))
    rng = np.random.default_rng(0)
    grids = [(16, 16), (3, 20), (14, 18), (1, 70)]
    grids = [grids[i % len(grids)] for i in range(args.batch)]
    patches = pad_and_stack([(rng.uniform(-1, 1, (h * w, 768)), (h, w)) for h, w in grids], 256)
    ids = rng.integers(0, config.text.vocab_size, (args.batch, config.text.length))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export"
        print(f"export: {seconds(lambda: export_stablehlo(embedder, path)):.1f} s")
        for file in sorted(path.iterdir()):
            print(f"{file.name}: {file.stat().st_size:,} bytes")
        print(f"load: {seconds(lambda: load(path)):.2f} s")
        model = load(path)
        images = [np.asarray(x) for x in (patches.pixels, patches.yx, patches.valid)]
        sides = {
            "images": (
                lambda: embedder.embed_images(patches, batch_size=args.batch),
                lambda: model.embed_images(*images),
            ),
            "texts": (
                lambda: embedder.embed_tokens(ids, batch_size=args.batch),
                lambda: model.embed_tokens(ids),
            ),
        }
        for name, (ours, exported) in sides.items():
            difference = np.abs(ours() - exported()).max()
            times = [(seconds(ours), seconds(exported)) for _ in range(args.rounds)]
            mine, its = np.median(times, axis=0)
            ratios = np.divide(*np.transpose(times))
            print(
                f"{name}: largest difference {difference:.1e}; {args.batch / mine:.2f} a second in "
                f"this package, {args.batch / its:.2f} exported, ratio {np.median(ratios):.2f} "
                f"({ratios.min():.2f}-{ratios.max():.2f})"
            )


if __name__ == "__main__":
    main()
