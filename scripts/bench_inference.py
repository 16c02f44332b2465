"""Speed of both towers and of preprocessing against transformers/torch on this machine.

Both sides run in one process, taking turns, on the same random weights and inputs: B/16 NaFlex at
256 tokens and text of 64 tokens. Prints the median of each side and the median and range of the
ratio (above 1: this package is faster). Needs torch and transformers.

    python scripts/bench_inference.py [--rounds 7] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from siglip2_jax import Embedder, Patches, load
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.siglip2 import init_params
from siglip2_jax.preprocess.image import ImagePreprocessor

TOKENS = 256
Side = Callable[[], object]


def compare(name: str, count: int, ours: Side, theirs: Side, rounds: int) -> dict[str, object]:
    """Times two sides in turns.

    Args:
      name: of the measurement.
      count: items that one call handles.
      ours: our side; returns when the work is done.
      theirs: the other side.
      rounds: how often each runs, after one run to warm up.

    Returns:
      Items per second of both (medians) and their ratio (median, lowest, highest of the rounds).
    """
    ours()
    theirs()
    seconds = np.zeros((rounds, 2))
    for i in range(rounds):
        # The order changes every round, so that neither side always follows the other.
        for side in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            (ours, theirs)[side]()
            seconds[i, side] = time.perf_counter() - start
    ratio = seconds[:, 1] / seconds[:, 0]
    rates = count / np.median(seconds, axis=0)
    row = {
        "name": name,
        "ours_per_s": float(rates[0]),
        "theirs_per_s": float(rates[1]),
        "ratio": float(np.median(ratio)),
        "ratio_low": float(ratio.min()),
        "ratio_high": float(ratio.max()),
    }
    print(
        "{name:34} ours {ours_per_s:8.2f}/s  transformers {theirs_per_s:8.2f}/s  "
        "ratio {ratio:.2f} ({ratio_low:.2f}-{ratio_high:.2f})".format(**row),
        flush=True,
    )
    return row


def both_models(directory: str, dtype: Literal["float32", "bfloat16"], vocab_size: int):
    """The same random B/16 NaFlex weights in this package and in transformers (sdpa)."""
    import torch
    from transformers import AutoModel

    path = Path(directory) / "model"
    if not path.exists():
        config = two_towers("B", patch_size=16, image_size=None, vocab_size=vocab_size)
        params = init_params(config, jax.random.key(0))
        Embedder(config, params, ImagePreprocessor(16, None)).save(path, "hf")
    theirs = AutoModel.from_pretrained(
        path, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    return load(path, dtype=dtype), theirs.eval()


def towers(ours: Embedder, theirs, batch: int, dtype: str, rounds: int) -> list[dict]:
    """Both towers at one batch size."""
    import torch

    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (batch, TOKENS, 768)).astype(np.float32)
    grid = np.indices((16, 16)).reshape(2, -1).T.astype(np.int32)
    yx = np.broadcast_to(grid, (batch, TOKENS, 2))
    image = Patches(pixels, yx, np.ones((batch, TOKENS), bool))
    ids = rng.integers(0, ours.config.text.vocab_size, (batch, 64)).astype(np.int32)
    inputs = {
        "pixel_values": torch.tensor(pixels).to(theirs.dtype),
        "pixel_attention_mask": torch.ones((batch, TOKENS), dtype=torch.int32),
        "spatial_shapes": torch.tensor([[16, 16]] * batch),
    }
    torch_ids = torch.tensor(ids.astype(np.int64))

    def images():
        with torch.inference_mode():
            return theirs.get_image_features(**inputs)

    def texts():
        with torch.inference_mode():
            return theirs.get_text_features(input_ids=torch_ids)

    label = f"{dtype}, batch {batch}"
    return [
        compare(
            f"images, {label}",
            batch,
            lambda: ours.embed_images(image, batch_size=batch),
            images,
            rounds,
        ),
        compare(
            f"texts, {label}",
            batch,
            lambda: ours.embed_tokens(ids, batch_size=batch),
            texts,
            rounds,
        ),
    ]


def photo(width: int, height: int) -> bytes:
    """A JPEG with detail at all scales."""
    rng = np.random.default_rng(0)
    layers = [
        Image.fromarray(rng.integers(0, 256, (height // s, width // s, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for s in (4, 16, 64)
    ]
    image = Image.blend(Image.blend(layers[0], layers[1], 0.6), layers[2], 0.6)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def preprocessing(rounds: int, repeats: int = 8) -> list[dict]:
    """NaFlex preprocessing on one core, from JPEG bytes to a padded batch of one."""
    import torch
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    torch.set_num_threads(1)
    theirs = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=TOKENS)
    rows = []
    for width, height in ((640, 480), (1024, 768)):
        data = photo(width, height)
        for mode in ("reference", "hf"):
            ours = ImagePreprocessor(16, None, mode=mode)
            rows.append(
                compare(
                    f"preprocess {mode}, {width}x{height}",
                    repeats,
                    lambda ours=ours, data=data: [ours(data, TOKENS) for _ in range(repeats)],
                    lambda data=data: [
                        theirs(Image.open(io.BytesIO(data)), return_tensors="np")
                        for _ in range(repeats)
                    ],
                    4 * rounds,
                )
            )
    return rows


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--skip", choices=("towers", "preprocessing"))
    parser.add_argument("--vocab-size", type=int, default=32_000, help="rows of the token table")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of transformers, on import
    import torch

    torch.set_num_threads(args.threads)
    jnp.zeros(()).block_until_ready()
    rows = []
    if args.skip != "towers":
        with tempfile.TemporaryDirectory() as directory:
            for dtype in args.dtype:
                ours, theirs = both_models(directory, dtype, args.vocab_size)
                for batch in args.batch:
                    rows += towers(ours, theirs, batch, dtype, args.rounds)
    if args.skip != "preprocessing":
        rows += preprocessing(args.rounds)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
