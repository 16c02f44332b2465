"""Sizes and speed of exports to ONNX, in float32 and int8, beside the model, on this machine.

Random weights in the sizes of a release, but a small vocabulary; all run the same images in turns.
Needs jax2onnx and onnxruntime (docs/export.md).

    python scripts/bench_onnx.py [--size B] [--batch 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from siglip2_jax import Embedder, ImagePreprocessor
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.export.onnx_embedder import OnnxEmbedder
from siglip2_jax.export.onnx_graphs import export_onnx, sample_patches
from siglip2_jax.export.onnx_int8 import Int8
from siglip2_jax.models.config import SIZES, two_towers
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.testing import random_params


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="B")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = two_towers(args.size, patch_size=16, image_size=None)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=1024))
    tokenizer = Tokenizer.load(TOKENIZER)
    embedder = Embedder(config, random_params(config), ImagePreprocessor(16, None), tokenizer)
    images = sample_patches(config, np.random.default_rng(0), [(14, 18)] * args.batch)
    with tempfile.TemporaryDirectory() as folder:
        models = {"this package": embedder}
        for name, quantize in (("float32", None), ("int8", Int8())):
            path = Path(folder) / name
            start = time.perf_counter()
            description = export_onnx(embedder, path, quantize=quantize)
            print(f"{name}: exported in {time.perf_counter() - start:.0f} s")
            print(f"{name}: image.onnx has {(path / 'image.onnx').stat().st_size:,} bytes")
            if quantize:
                print(f"{name}: {description['int8']}")
            else:
                print(f"{name}: largest difference {description['largest_difference']:.1e}")
            models[name] = OnnxEmbedder(embedder, path)
        times = {name: [] for name in models}
        for _ in range(args.rounds + 1):
            for name, model in models.items():
                start = time.perf_counter()
                model.embed_images(images, batch_size=args.batch)
                times[name].append(time.perf_counter() - start)
    ours = np.array(times["this package"][1:])
    for name, seconds in times.items():
        ratios = ours / np.array(seconds[1:])
        print(
            f"{name}: {args.batch / np.median(seconds[1:]):.2f} images a second, ratio "
            f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
