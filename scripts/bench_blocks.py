"""Blocks of a tower on TPU v5e by the compiler's estimate, with and without a change to them.

Compiles three blocks, forward and backward, for chips that are not there (extra `tpu`, Linux x86; a
minute each on two cores) and prints what a block takes: its attention kernels, everything else, and
memory. With everything kept for the backward pass it compares rows as sequences are with whole
ones, of 256 or 128 tokens of whatever sequence (`siglip2_jax.models.kernels.rows`); with `--kept
inputs`, an MLP whose products XLA may join with one where it may not.

    python scripts/bench_blocks.py [--size SIZE] [--kept all|inputs] [IMAGESxTOKENS ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from siglip2_jax.models import layers
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.planner.estimate import Measurement, measure
from siglip2_jax.planner.results import user_results
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.sharding import AXES

BLOCKS = 3
SHAPES = ("128x64", "128x196", "1024x36", "128x256", "128x576", "128x784")
HEAD = ("images x tokens", "attention, us", "all else, us", "KB kept of a token")
# What the column of the two is called, the first, what of `layers` makes it, and the second.
CHANGES = {
    "all": ("rows", "sequences", {"in_whole_rows": lambda x: x}, "whole"),
    "inputs": ("products of an MLP", "together", {"platform": lambda: ""}, "apart"),
}


def compile_blocks(size: str, images: int, tokens: int, kept: str) -> Measurement:
    """Cost and memory of the blocks, forward and backward, on each of four chips."""
    mesh = topology_mesh("v5e:2x2")
    tower = dataclasses.replace(
        two_towers(size, patch_size=16, image_size=256).vision, depth=BLOCKS
    )
    remat = "none" if kept == "all" else "full"
    compute = Compute(dtype="bfloat16", scan=False, remat=remat)

    def make() -> layers.Encoder:
        return layers.Encoder(tower, compute=compute, rngs=nnx.Rngs(0))

    graphdef, params = nnx.split(nnx.eval_shape(make))

    def step(params: nnx.State, x: jax.Array, cotangent: jax.Array):
        y, back = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x), params, x)
        return y.sum(), back(cotangent)

    def on(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    shape = (images * mesh.size, tokens, tower.width)
    x, cotangent = (
        on(jax.ShapeDtypeStruct(shape, dtype), PartitionSpec(AXES))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    params = jax.tree.map(lambda leaf: on(leaf, PartitionSpec()), params)
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(params, x, cotangent)
    return measure(lowered, mesh, "the blocks", "take fewer images", user_results())


def row(size: str, images: int, tokens: int, kept: str, kind: str) -> str:
    """A line of the table."""
    cost, memory = compile_blocks(size, images, tokens, kept)
    attention = other = 0
    for operation in cost.operations:
        if operation.kernel and "attention" in operation.source:
            attention += operation.cycles or 0
        elif not operation.asynchronous:
            other += operation.cycles or 0
    each = [f"{x / cost.clock_hz / BLOCKS * 1e6:,.0f}" for x in (attention, other)]
    of_a_token = memory["temporaries"] / BLOCKS / images / tokens / 1000
    return f"| {images:,} x {tokens:,} | {kind} | {' | '.join(each)} | {of_a_token:.1f} |"


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES, help="of a chip, such as 128x576")
    parser.add_argument("--size", default="B", help="of the image tower: B, L, So400m or g-opt")
    parser.add_argument("--kept", default="all", choices=CHANGES, help="of a block's activations")
    args = parser.parse_args()
    try:
        shapes = [(int(images), int(n)) for images, n in (x.split("x") for x in args.shapes)]
    except ValueError:
        print(f"expected shapes such as 128x576, found {' '.join(args.shapes)}", file=sys.stderr)
        return 2
    change, before, changed, after = CHANGES[args.kept]
    head = (HEAD[0], change, *HEAD[1:])
    print(f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", sep="\n", flush=True)
    for images, tokens in shapes:
        with mock.patch.multiple(layers, **changed):
            print(row(args.size, images, tokens, args.kept, before), flush=True)
        print(row(args.size, images, tokens, args.kept, after), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
