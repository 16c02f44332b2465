"""Peak memory of converting the largest release, g-opt/16 256: 1.87 billion float32 parameters.

Writes a synthetic checkpoint of that size, converts it around all formats, each step in a process
of its own, and prints the peak resident memory of each. Needs 40 GB of disk.

    python scripts/bench_convert_memory.py [--dir DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from siglip2_jax import checkpoints
from siglip2_jax.checkpoints.checkpoint import param_shapes
from siglip2_jax.models.config import RELEASES

STEPS = (
    ("start.npz", "first", "orbax"),
    ("first", "second", "hf"),
    ("second", "third.npz", "npz"),
    ("third.npz", "fourth", "hf"),
)


def synthetic(variant_name: str) -> checkpoints.Checkpoint:
    """A checkpoint of a release's sizes whose tensors are made when read."""
    config = next(v.config for v in RELEASES if v.name == variant_name)

    def tensor(seed: int, shape: tuple[int, ...]) -> checkpoints.Lazy:
        def make() -> np.ndarray:
            return np.random.default_rng(seed).random(shape, np.float32)

        return checkpoints.Lazy(shape, np.dtype(np.float32), make)

    shapes = param_shapes(config)
    params = {path: tensor(i, shape) for i, (path, shape) in enumerate(shapes.items())}
    return checkpoints.Checkpoint(
        config, params, None, checkpoints.Preprocessing(), "npz", "synthetic"
    )


def step(source: str, destination: str, format: checkpoints.Format) -> None:
    """One conversion, then this process's peak memory as JSON."""
    start = time.perf_counter()
    checkpoints.write(checkpoints.read(source), destination, format)
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": gibibytes, "seconds": time.perf_counter() - start}))


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", help="where to put the files (default: the temporary directory)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step(*args.step)
        return
    results = []
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        root = Path(name)
        checkpoints.write(synthetic("g-opt/16 256"), root / "start.npz", "npz")
        for source, destination, format in STEPS:
            command = [sys.executable, __file__, "--step", root / source, root / destination]
            output = subprocess.run(
                [*command, format], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            figures = {"from": source, "to": destination, "format": format, **json.loads(output)}
            results.append(figures)
            line = "{from:10} -> {format:5}  {peak_gib:5.2f} GiB  {seconds:4.0f} s"
            print(line.format_map(figures), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
