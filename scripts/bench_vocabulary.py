"""Estimated time of the vocabulary loss with its gradient on TPU, by the kernels and by XLA.

Compiles the loss alone for a slice that is not there (extra `tpu`, Linux x86; some minutes) and
prints, for each implementation, one line in all and one for each of its longest operations.
Defaults are a chip's share of B/16's first stage at batch 32,768 on 256 chips.

    python scripts/bench_vocabulary.py [--impl xla|pallas] [--topology v6e:16x16] [--chunk 1024]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Literal, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.planner.estimate import chip_of, measure
from siglip2_jax.planner.hlo.program import top
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.sharding import BATCH

Impl = Literal["xla", "pallas"]


def _estimate(args: argparse.Namespace, impl: Impl) -> list[str]:
    mesh = topology_mesh(args.topology)
    chip = chip_of(mesh)

    def array(*shape: int, dtype=jnp.float32, spec=BATCH) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    loss = functools.partial(vocabulary_loss, chunk=args.chunk, dtype=jnp.bfloat16, impl=impl)
    tokens = args.tokens * mesh.size
    operands = (
        array(tokens, args.width),
        array(args.width, args.vocabulary, spec=PartitionSpec("fsdp", None)),
        array(tokens, dtype=jnp.int32),
        array(tokens),
    )
    with jax.set_mesh(mesh):
        gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        lowered = jax.jit(lambda *x: gradients(*x)).lower(*operands)
    analysis, memory = measure(lowered, mesh, "the loss", "use smaller chunks")
    lines = [
        f"{impl}: {analysis.seconds * 1e3:.1f} ms, products at the peak "
        f"{analysis.flops / chip.flops * 1e3:.1f} ms, HBM {analysis.hbm_bytes / 1e9:.0f} GB, "
        f"memory {memory['peak'] / 2**30:.2f} GiB"
    ]
    for op in top(analysis.operations, lambda op: op.cycles or 0, 6):
        milliseconds = (op.cycles or 0) / chip.clock_hz * 1e3
        lines.append(
            f"  {milliseconds:6.1f} ms in {op.trips} runs, HBM {op.hbm_bytes / 1e9:.0f} GB: "
            f"{op.name} {op.source}"
        )
    return lines


def main() -> int:
    """Prints the estimates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--impl", choices=get_args(Impl), action="append", help="(both)")
    parser.add_argument("--topology", default="v5e:16x16", help="(%(default)s)")
    parser.add_argument("--chunk", type=int, default=2048, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=24576, help="of a chip (%(default)s)")
    parser.add_argument("--width", type=int, default=768, help="(%(default)s)")
    parser.add_argument("--vocabulary", type=int, default=256_000, help="(%(default)s)")
    args = parser.parse_args()
    for impl in args.impl or get_args(Impl):
        print("\n".join(_estimate(args, impl)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
