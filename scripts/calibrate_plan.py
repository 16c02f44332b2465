"""Estimates of programs whose step time on TPUs is published, beside that time.

Compiles decoders of the sizes and settings that MaxText published times of (v5e, 256 chips), as
`siglip2 plan` compiles a config. The programs are written here; what they compute is what MaxText
computed at the commit that holds its table.

    python scripts/calibrate_plan.py [--only TEXT] [--write]

Each takes minutes and 3 GB (extra `tpu`, Linux x86). `--write` keeps the result for
`siglip2_jax.planner.calibration`, which puts it beside every table of times.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from siglip2_jax.outputs import write_whole
from siglip2_jax.planner.calibration import FILE, Calibration, Comparison
from siglip2_jax.planner.estimate import Estimate, chip_of, measure
from siglip2_jax.planner.hlo.program import Analysis
from siglip2_jax.planner.results import user_results
from siglip2_jax.planner.topology import topology_mesh

SOURCE = "https://github.com/AI-Hypercomputer/maxtext/blob/76bd53b0f/MaxText/configs/v5e/README.md"
TOPOLOGY = "v5e:16x16"
TOKENS = 2_048  # of a sequence
WORDS = 32_768
HEAD = 256
EPSILON = 1e-6
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(3e-5, b1=0.9, b2=0.95, weight_decay=0.1)
)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A published program: attention beside the MLP, layers computed again backwards.

    Attributes:
      name: what it is called where it is published.
      sequences: of a chip.
      width: of the residual stream.
      heads: of attention, each of 256.
      hidden: width of the MLP.
      layers: how many.
      mfu: published, of 197 TFLOP/s.
    """

    name: str
    sequences: int
    width: int
    heads: int
    hidden: int
    layers: int
    mfu: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters; those of layers have a second axis for them."""
        width, layers, inner = self.width, self.layers, (self.heads, HEAD)
        return {
            "table": (WORDS, width),
            "last_norm": (width,),
            "layers/norm": (width, layers),
            "layers/query": (width, layers, *inner),
            "layers/key": (width, layers, *inner),
            "layers/value": (width, layers, *inner),
            "layers/query_norm": (HEAD, layers),
            "layers/key_norm": (HEAD, layers),
            "layers/value_norm": (HEAD, layers),
            "layers/out": (self.heads, layers, HEAD, width),
            "layers/up": (width, layers, self.hidden),
            "layers/down": (self.hidden, layers, width),
        }

    @property
    def flops(self) -> float:
        """FLOPs of a step on one chip, as its authors count them."""
        parameters = sum(int(np.prod(shape)) for shape in self.shapes.values())
        tokens = self.sequences * TOKENS
        causal = 6 * self.heads * HEAD * self.layers * TOKENS
        return tokens * (6.0 * parameters + causal)

    @property
    def published(self) -> float:
        """Published seconds of a step."""
        return self.flops / (self.mfu * 197e12)


DECODERS = (
    Decoder("16B", 6, 5_120, 32, 32_768, 32, 0.6110),
    Decoder("32B", 4, 10_240, 32, 32_768, 32, 0.6686),
    Decoder("64B", 2, 10_240, 32, 32_768, 64, 0.5990),
)

Params = dict[str, jax.Array]


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32."""
    wide, scale = x.astype(jnp.float32), scale.astype(jnp.bfloat16)
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + EPSILON)).astype(jnp.bfloat16) * scale


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions of `[B, T, heads, HEAD]`."""
    rates = 10_000.0 ** -(jnp.arange(HEAD // 2) / (HEAD // 2))
    angles = (jnp.arange(TOKENS)[:, None] * rates)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    turned = first * cosine - second * sine, second * cosine + first * sine
    return jnp.concatenate(turned, axis=-1).astype(jnp.bfloat16)


def attend(mesh: Mesh, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention by JAX's flash kernel, with the published blocks."""
    sizes = flash.BlockSizes(
        block_q=512,
        block_k_major=512,
        block_k=512,
        block_b=min(2, query.shape[0] // mesh.size),
        block_q_major_dkv=512,
        block_k_major_dkv=512,
        block_q_dkv=512,
        block_k_dkv=512,
        block_q_dq=1024,
        block_k_dq=256,
        block_k_major_dq=512,
    )

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )
    def attend_here(*heads_first: jax.Array) -> jax.Array:
        ids = jnp.ones((heads_first[0].shape[0], TOKENS), jnp.int32)
        segments = flash.SegmentIds(ids, ids)
        return flash.flash_attention(
            *heads_first, segment_ids=segments, causal=True, block_sizes=sizes
        )

    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(attend_here(*heads_first), 1, 2)


def make_step(decoder: Decoder, mesh: Mesh) -> Any:
    """A training step: `(params, optimizer state), ids -> (the same, loss)`."""

    def split(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("fsdp")))

    def block(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x = split(x)
        inside = split(norm(x, weights["norm"]))
        mixed = {}
        for name in ("query", "key", "value"):
            kernel = weights[name].astype(jnp.bfloat16)
            heads = jnp.einsum("btd,dhk->bthk", inside, kernel)
            heads = heads if name == "value" else rotate(heads)
            mixed[name] = split(norm(heads, weights[f"{name}_norm"]))
        context = split(attend(mesh, mixed["query"], mixed["key"], mixed["value"]))
        attention = jnp.einsum("bthk,hkd->btd", context, weights["out"].astype(jnp.bfloat16))
        hidden = split(jax.nn.relu(inside @ weights["up"].astype(jnp.bfloat16)))
        mlp = split(hidden @ weights["down"].astype(jnp.bfloat16))
        return split(split(attention) + mlp + x), None

    def loss_of(params: Params, ids: jax.Array) -> jax.Array:
        one_hot = (ids[..., None] == jnp.arange(WORDS)).astype(jnp.bfloat16)
        x = split(one_hot @ params["table"].astype(jnp.bfloat16))
        layers = {
            name.removeprefix("layers/"): jnp.moveaxis(value, 1, 0)
            for name, value in params.items()
            if name.startswith("layers/")
        }
        x, _ = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), x, layers)
        x = norm(x, params["last_norm"]).astype(jnp.float32)
        logits = split(x @ params["table"].T / jnp.sqrt(decoder.width))
        targets = jax.nn.one_hot(jnp.roll(ids, -1, axis=1), WORDS)
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))

    def step(state: tuple[Params, Any], ids: jax.Array) -> tuple[Any, jax.Array]:
        params, memory = state
        loss, gradients = jax.value_and_grad(loss_of)(params, ids)
        updates, memory = OPTIMIZER.update(gradients, memory, params)
        return (optax.apply_updates(params, updates), memory), loss

    return step


def partition(name: str, shape: tuple[int, ...]) -> P:
    """Split of a parameter: the residual stream's width over all chips."""
    if name in ("layers/out", "layers/down", "table"):
        return P(*[None] * (len(shape) - 1), "fsdp")
    return P() if name.endswith(("query_norm", "key_norm", "value_norm")) else P("fsdp")


def lower(decoder: Decoder, mesh: Mesh) -> jax.stages.Lowered:
    """The step as a program for a mesh whose only axis is "fsdp"."""

    def place(x: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    params = {
        name: place(jax.ShapeDtypeStruct(shape, jnp.float32), partition(name, shape))
        for name, shape in decoder.shapes.items()
    }

    def like_params(path: tuple[Any, ...], x: Any) -> jax.ShapeDtypeStruct:
        names = (getattr(key, "key", None) for key in path)
        return next((params[name] for name in names if name in params), place(x, P()))

    memory = jax.eval_shape(OPTIMIZER.init, params)
    state = params, jax.tree_util.tree_map_with_path(like_params, memory)
    ids = np.empty((decoder.sequences * mesh.size, TOKENS), np.int32)
    shardings = jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, P())
    step = jax.jit(make_step(decoder, mesh), donate_argnums=0, out_shardings=shardings)
    return step.lower(state, place(ids, P("fsdp")))


def estimate(decoder: Decoder) -> tuple[Estimate, Analysis]:
    """Compiles a step and reads off its time; also what it is the sum of."""
    devices = topology_mesh(TOPOLOGY, replica=1).devices
    mesh = Mesh(devices.reshape(-1), ("fsdp",))
    name = f"MaxText's {decoder.name}"
    lowered = lower(decoder, mesh)
    analysis, sizes = measure(lowered, mesh, name, "take fewer sequences", user_results())
    plan = Estimate(
        batch_size=decoder.sequences * mesh.size,
        chips=mesh.size,
        chip=chip_of(mesh),
        memory=sizes,
        model_flops=decoder.flops,
        flops=analysis.flops,
        hbm_bytes=analysis.hbm_bytes,
        collectives=analysis.collectives,
        scheduled=analysis.seconds,
    )
    return plan, analysis


HEAD_LINE = "program  published s  estimate s  ratio  products s  of peak  FLOPs / model    GiB"


def row(decoder: Decoder, plan: Estimate, analysis: Analysis) -> str:
    """One program in the columns of `HEAD_LINE`."""
    products = [op for op in analysis.operations if op.flops and not op.kernel]
    seconds = sum(op.cycles or 0 for op in products) / analysis.clock_hz
    peak = sum(op.flops for op in products) / seconds / plan.chip.flops
    return (
        f"{decoder.name:<7}  {decoder.published:11.2f}  {plan.seconds:10.2f}  "
        f"{decoder.published / plan.seconds:5.2f}  {seconds:10.2f}  {peak:7.2f}  "
        f"{plan.flops / plan.model_flops:13.2f}  {plan.memory['peak'] / 2**30:5.2f}"
    )


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose name has this in it")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    args = parser.parse_args()
    decoders = [decoder for decoder in DECODERS if args.only in decoder.name]
    if not decoders or (args.write and args.only):
        parser.error("--only names no program, or there is --write, which needs all of them")
    print(HEAD_LINE, flush=True)
    programs = []
    for decoder in decoders:
        plan, analysis = estimate(decoder)
        print(row(decoder, plan, analysis), flush=True)
        name = f"MaxText {decoder.name}"
        programs.append(Comparison(name, SOURCE, decoder.published, plan.seconds))
    versions = {name: version(name) for name in ("jax", "libtpu")}
    command = "python scripts/calibrate_plan.py"
    calibration = Calibration("language models on v5e", command, versions, tuple(programs))
    print(calibration.note)
    if args.write:
        write_whole(FILE, json.dumps(dataclasses.asdict(calibration), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
