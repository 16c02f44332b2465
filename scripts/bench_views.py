"""Estimated time of the passes of self-distillation through the vision tower, on one TPU chip.

Compiles each pass for a chip that is not there (extra `tpu`, Linux x86; some minutes each): the
student's of original and masked images, the teacher's, and the student's of local views, as they
run and with one view in each row. Defaults are a chip's share of B/16 at batch 32,768 on 256 chips.

    python scripts/bench_views.py [--size L] [--images 32] [--local 49] [--topology v6e:1x1]
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from siglip2_jax.models import layers
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.models.vision import VisionTower
from siglip2_jax.planner.estimate import chip_of, measure
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.sharding import BATCH
from siglip2_jax.types import Patches


def _estimate(args: argparse.Namespace, images: int, tokens: int, learns: bool) -> str:
    """Cells of a pass: milliseconds, those at the chip's peak, their ratio, and memory."""
    mesh = topology_mesh(args.topology)
    chip = chip_of(mesh)
    config = two_towers(args.size, patch_size=16, image_size=256).vision
    compute = Compute(dtype="bfloat16", remat="full")
    tower = nnx.eval_shape(lambda: VisionTower(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(tower)

    def array(*shape: int, dtype=jnp.bfloat16, spec=BATCH) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype, spec=PartitionSpec()), params)
    shape = (images * mesh.size, tokens)
    image = Patches(
        pixels=array(*shape, 3 * 16**2),
        yx=array(*shape, 2, dtype=jnp.int32),
        valid=array(*shape, dtype=jnp.bool_),
    )

    def loss(params: nnx.State, image: Patches) -> jax.Array:
        tokens, pooled = nnx.merge(graphdef, params)(image)
        return jnp.mean(tokens**2) + jnp.mean(pooled**2)

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss) if learns else loss).lower(params, image)
    analysis, memory = measure(lowered, mesh, "the pass", "use fewer images")
    seconds = analysis.seconds
    peak = images * vision_flops(config, tokens) * (3 if learns else 1) / chip.flops
    return f"{seconds * 1e3:.0f} | {peak * 1e3:.0f} | {peak / seconds:.2f} | " + (
        f"{memory['peak'] / 2**30:.2f}"
    )


def main() -> int:
    """Prints the estimates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="B", help="of the tower (%(default)s)")
    parser.add_argument("--images", type=int, default=128, help="of a chip (%(default)s)")
    parser.add_argument("--patches", type=int, default=256, help="of an image (%(default)s)")
    parser.add_argument("--views", type=int, default=8, help="local ones of it (%(default)s)")
    parser.add_argument("--local", type=int, default=36, help="patches of one (%(default)s)")
    parser.add_argument("--topology", default="v5e:1x1", help="(%(default)s)")
    args = parser.parse_args()
    whole, local = (args.images, args.patches), (args.images * args.views, args.local)
    print("| pass | ms | at the peak | MFU | GiB |\n|---|---|---|---|---|")
    print(f"| student, whole images | {_estimate(args, *whole, True)} |", flush=True)
    print(f"| teacher, whole images | {_estimate(args, *whole, False)} |", flush=True)
    print(f"| student, local views | {_estimate(args, *local, True)} |", flush=True)
    with mock.patch.object(layers, "arrange", lambda *_: None):
        print(f"| the same, one a row | {_estimate(args, *local, True)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
