"""Estimated time of the losses over a vocabulary or prototypes on TPU, by kernels and by XLA.

Compiles one loss with its gradient for a slice that is not there (extra `tpu`, Linux x86; some
minutes) and prints, for each implementation, one line in all and one for each of its longest
operations. Defaults are a chip's share of B/16 at batch 32,768 on 256 chips: three passes of the
decoder, and the hidden patches of masked prediction.

    python scripts/bench_large_softmax.py vocabulary [--impl xla|pallas] [--topology v6e:16x16]
    python scripts/bench_large_softmax.py prototypes
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any, Literal, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip2_jax.objectives.prototypes import distillation_loss
from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.planner.estimate import chip_of, measure
from siglip2_jax.planner.hlo.program import top
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.sharding import BATCH

Impl = Literal["xla", "pallas"]
WHOLE = PartitionSpec()


def _array(
    mesh: Mesh, *shape: int, dtype: Any = jnp.float32, spec: PartitionSpec = BATCH
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _vocabulary(mesh: Mesh, impl: Impl, rows: int | None, width: int | None) -> Any:
    """A program with the gradient by hidden states and kernel, lowered."""
    rows, width, entries = (rows or 24_576) * mesh.size, width or 768, 256_000
    array = functools.partial(_array, mesh)
    loss = functools.partial(vocabulary_loss, chunk=2048, dtype=jnp.bfloat16, impl=impl)
    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(lambda *x: gradients(*x)).lower(
        array(rows, width),
        array(width, entries, spec=PartitionSpec("fsdp", None)),
        array(rows, dtype=jnp.int32),
        array(rows),
    )


def _prototypes(mesh: Mesh, impl: Impl, rows: int | None, width: int | None) -> Any:
    """A program with the gradient by vectors and prototypes of the student, lowered."""
    rows, width, entries = (rows or 12_544) * mesh.size, width or 256, 65_536
    array = functools.partial(_array, mesh)

    def loss(*inputs: jax.Array) -> tuple[jax.Array, Any]:
        temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.04}
        match = distillation_loss(*inputs, **temperatures, chunk=512, impl=impl)
        return match.loss, match

    gradients = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    return jax.jit(lambda *x: gradients(*x)).lower(
        array(rows, 1, width),
        array(rows, width),
        *[array(width, entries, dtype=jnp.bfloat16, spec=WHOLE)] * 2,
        array(entries, spec=WHOLE),
        array(rows, 1),
    )


LOSSES = {"vocabulary": _vocabulary, "prototypes": _prototypes}


def _estimate(args: argparse.Namespace, impl: Impl) -> list[str]:
    mesh = topology_mesh(args.topology)
    chip = chip_of(mesh)
    with jax.set_mesh(mesh):
        lowered = LOSSES[args.loss](mesh, impl, args.rows, args.width)
    analysis, memory = measure(lowered, mesh, "the loss", "use fewer rows")
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
    parser.add_argument("loss", choices=LOSSES)
    parser.add_argument("--impl", choices=get_args(Impl), action="append", help="(both)")
    parser.add_argument("--topology", default="v5e:16x16", help="(%(default)s)")
    parser.add_argument("--rows", type=int, help="of a chip (24,576 or 12,544)")
    parser.add_argument("--width", type=int, help="(768 or 256)")
    args = parser.parse_args()
    for impl in args.impl or get_args(Impl):
        print("\n".join(_estimate(args, impl)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
