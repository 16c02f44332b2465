"""Images a second that the training process takes from its data workers and puts on its devices.

The workers have nothing to prepare: they copy one row of patches to all rows of a batch. So the
figures are what is left to the training process for each image, in its own CPU time, and for all
processes together, in time.

    python scripts/bench_transport.py [--budget 256] [--rows 512] [--workers 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from siglip2_jax.cli.options import positive
from siglip2_jax.data.collate import blank_row
from siglip2_jax.data.tools.transport import transport_rate
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.sharding import make_mesh, put_batch


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=positive, default=256, help="patches of an image")
    parser.add_argument("--rows", type=positive, default=512, help="images of a host's batch")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    figures, mesh = [], make_mesh()
    ways = {"taken": lambda batch: (), "put on devices": partial(put_batch, mesh=mesh)}
    for dtype in ("float32", "bfloat16"):
        row = blank_row(ImagePreprocessor(16, None), 64, (), args.budget, dtype)
        for way, place in ways.items():
            rates = [
                transport_rate(row, args.rows, place, workers=args.workers)
                for _ in range(args.repeats)
            ]
            cpu, wall = (sorted(values) for values in zip(*rates, strict=True))
            print(
                f"{dtype}, {way}: {np.median(cpu):,.0f} images per CPU second ({cpu[0]:,.0f}-"
                f"{cpu[-1]:,.0f}), {np.median(wall):,.0f} per second"
            )
            figures.append({"dtype": dtype, "way": way, "per_cpu_s": cpu, "per_s": wall})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
