"""The transformer both towers share: attention, MLP, pre-norm block, and the stack of blocks.

Follows SigLIP 2 as released (big_vision `models/vit.py`): pre-LayerNorm with eps 1e-6, GELU in its
tanh form, biases everywhere, no dropout. Parameters are float32; matrix products run in the
compute dtype and accumulate in float32, which on CPU is also what keeps bfloat16 on its own
instructions; LayerNorm statistics and softmax are float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.config import Tower
from siglip2_jax.models.kernels.attention import AttentionImpl, attend
from siglip2_jax.models.kernels.layer_norm import NormImpl, layer_norm, residual_layer_norm
from siglip2_jax.models.kernels.linear import dense, dense_each
from siglip2_jax.models.kernels.low_rank import merge_block
from siglip2_jax.models.kernels.rows import arrange
from siglip2_jax.sharding import gather

OfAllBlocks = Literal["none", "full", "dots"] | tuple[str, ...]
Remat = OfAllBlocks | float
ACTIVATIONS = ("qkv", "attn_out", "x_mid", "mlp_pre")
"""Activations of a block that the backward pass can find in memory, by name."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """Execution options (dtype, scan, remat, kernels); they do not affect parameters.

    Attributes:
      dtype: of matrix products in the towers, "float32" or "bfloat16".
      scan: run the blocks of a tower as a loop over stacked parameters; False unrolls them, which
        compiles slower and runs faster.
      remat: what the backward pass computes again: "none", "full" (keep only each block's input),
        "dots" (keep matrix products), names of the activations to keep, out of `ACTIVATIONS`, or
        the share of blocks, from the first one on, that are as with "full", the others as with
        "none".
      remat_up_to: in place of `remat` for sequences of at most so many tokens, as pairs from the
        shortest up: where a run has several lengths, each keeps what fits.
      attention: which program computes attention in the towers, by name or as a function; see
        `attention.attend`.
      norm: which computes LayerNorm in their blocks; see `layer_norm.branch`.
    """

    dtype: str = "float32"
    scan: bool = True
    remat: Remat = "none"
    remat_up_to: tuple[tuple[int, Remat], ...] = ()
    attention: AttentionImpl = "auto"
    norm: NormImpl = "auto"

    def __post_init__(self) -> None:
        for remat in (self.remat, *(remat for _, remat in self.remat_up_to)):
            if isinstance(remat, int | float):
                if not 0 <= remat <= 1:
                    raise ValueError(
                        f"Compute.remat is {remat:g}, expected a share of the blocks from 0 to 1"
                    )
            elif not isinstance(remat, str) and (unknown := set(remat) - set(ACTIVATIONS)):
                raise ValueError(
                    f"Compute.remat names {min(unknown)!r}, which blocks have not; expected some "
                    f"of {', '.join(ACTIVATIONS)}"
                )
        lengths = [length for length, _ in self.remat_up_to]
        if lengths != sorted(set(lengths)) or min(lengths, default=1) < 1:
            raise ValueError(
                "Compute.remat_up_to must have lengths from 1 up in growing order, got "
                f"{self.remat_up_to}"
            )

    def at_length(self, length: Any) -> Compute:
        """The options for sequences of so many tokens; a symbolic number counts as a long one."""
        known = self.remat_up_to if isinstance(length, int) else ()
        remat = next((remat for most, remat in known if length <= most), self.remat)
        return dataclasses.replace(self, remat=remat, remat_up_to=())


class Attention(nnx.Module):
    """Multi-head attention with separate query, key, value and out projections.

    What keys and values are made of may have another width than the queries, `input_width`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        input_width: int | None = None,
        use_bias: bool = True,
        impl: AttentionImpl = "auto",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int | tuple[int, int], outputs: int | tuple[int, int]):
            return nnx.LinearGeneral(
                inputs,
                outputs,
                axis=(-2, -1) if isinstance(inputs, tuple) else -1,
                use_bias=use_bias,
                kernel_init=nnx.initializers.xavier_uniform(),
                dtype=dtype,
                preferred_element_type=jnp.float32,
                rngs=rngs,
            )

        self.dtype = dtype
        self.impl: AttentionImpl = impl
        heads = (num_heads, width // num_heads)
        self.query = linear(width, heads)
        self.key = linear(input_width or width, heads)
        self.value = linear(input_width or width, heads)
        self.out = linear(heads, width)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        inputs: Float[Array, "B K M"],
        valid: Bool[Array, "B K"] | Bool[Array, "B Q K"] | None = None,
        length: int | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attends from `queries` to the valid `inputs`; the result is float32.

        Where they are the same, sequences of one `length` may lie side by side in each row.
        """
        if queries is inputs:
            query, key, value = self._project((self.query, self.key, self.value), queries)
            return self._attend(query, key, value, valid, length)
        return self.read(queries, *self.keys_values(inputs), valid)

    def keys_values(
        self, inputs: Float[Array, "B K M"]
    ) -> tuple[Float[Array, "B K H C"], Float[Array, "B K H C"]]:
        """Projects inputs to keys and values, in the compute dtype."""
        key, value = self._project((self.key, self.value), inputs)
        return key, value

    def read(
        self,
        queries: Float[Array, "B Q D"],
        key: Float[Array, "B K H C"],
        value: Float[Array, "B K H C"],
        valid: Bool[Array, "B K"] | Bool[Array, "B Q K"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attends from `queries` to the valid ones of given keys; the result is float32."""
        (query,) = self._project((self.query,), queries)
        return self._attend(query, key, value, valid)

    def _attend(
        self, query: Array, key: Array, value: Array, valid: Array | None, length: int | None = None
    ) -> Array:
        values = attend(query, key, value, valid, self.impl, length)
        values = checkpoint_name(values, "attn_out")
        return dense(self.out, values.reshape(*values.shape[:2], -1))

    def _project(self, linears: tuple[nnx.LinearGeneral, ...], x: Array) -> list[Array]:
        flat = [checkpoint_name(y, "qkv") for y in dense_each(linears, x)]
        return [
            y.reshape(*y.shape[:2], *linear.out_features)
            for y, linear in zip(flat, linears, strict=True)
        ]


class Mlp(nnx.Module):
    """Two dense layers with tanh-form GELU between."""

    def __init__(self, width: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                kernel_init=nnx.initializers.xavier_uniform(),
                bias_init=nnx.initializers.normal(1e-6),
                dtype=dtype,
                preferred_element_type=jnp.float32,
                rngs=rngs,
            )

        self.dtype = dtype
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the MLP to every token; the result is float32."""
        hidden = checkpoint_name(dense(self.fc1, x).astype(self.dtype), "mlp_pre")
        return dense(self.fc2, nnx.gelu(hidden, approximate=True))


class Block(nnx.Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(self, tower: Tower, *, compute: Compute, rngs: nnx.Rngs):
        self.dtype = dtype = jnp.dtype(compute.dtype)
        self.norm: NormImpl = compute.norm
        self.ln1 = layer_norm(tower.width, rngs)
        self.attn = Attention(
            tower.width, tower.num_heads, impl=compute.attention, dtype=dtype, rngs=rngs
        )
        self.ln2 = layer_norm(tower.width, rngs)
        self.mlp = Mlp(tower.width, tower.mlp_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        valid: Bool[Array, "B N"] | Bool[Array, "B N N"] | None,
        length: int | None = None,
    ) -> Float[Array, "B N D"]:
        """Runs the block on sequences of that length; the stream keeps the dtype of `x`."""
        x, y = residual_layer_norm(self.ln1, x, self.dtype, self.norm)
        x = checkpoint_name(x + self.attn(y, y, valid, length).astype(x.dtype), "x_mid")
        x, y = residual_layer_norm(self.ln2, x, self.dtype, self.norm)
        return x + self.mlp(y).astype(x.dtype)


class Encoder(nnx.Module):
    """A stack of blocks and a final LayerNorm; block parameters carry a leading depth axis."""

    def __init__(self, tower: Tower, *, compute: Compute, rngs: nnx.Rngs):
        self.compute = compute

        @jax.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(tower, compute=compute, rngs=rngs)

        self.blocks = stack(rngs.split(tower.depth))
        self.norm = layer_norm(tower.width, rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        valid: Bool[Array, "B N"] | Bool[Array, "B N N"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Runs all blocks and the final norm.

        Args:
          x: embedded tokens.
          valid: which tokens exist, or for each token which ones it may attend to; None means all.

        Returns:
          float32 tokens.
        """
        compute = self.compute.at_length(x.shape[1])
        rows = arrange(x, valid, compute.attention)
        if rows is not None:
            x, valid = rows.pack(x), None if valid is None else rows.pack(valid)
        layer = self._layer(valid, None if rows is None else rows.length)
        x = run_blocks(layer, x, self.blocks, compute)
        return self.norm(x if rows is None else rows.unpack(x))

    def hidden_states(
        self, x: Float[Array, "B N D"], valid: Bool[Array, "B N"] | None, counts: Sequence[int]
    ) -> tuple[Float[Array, "B N D"], ...]:
        """Tokens after the first so many blocks, for each of `counts`; before the final norm.

        Blocks after the last one needed do not run.

        Args:
          x: embedded tokens.
          valid: which tokens exist; None means all.
          counts: numbers of blocks, from 0 (`x` itself) to the depth, in any order.

        Returns:
          float32 tokens of each count.
        """
        layer, states, done = self._layer(valid), {0: x}, 0

        def run(i: Array, x: Array) -> Array:
            # By index: a slice of the stack would be a copy of the parameters.
            index = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            return layer(x, jax.tree.map(index, self.blocks))[0]

        for count in sorted(set(counts) - {0}):
            x = jax.lax.fori_loop(done, count, run, x, unroll=not self.compute.scan)
            states[count], done = x, count
        return tuple(states[count].astype(jnp.float32) for count in counts)

    def _layer(self, valid: Array | None, length: int | None = None) -> Layer:
        dtype = jnp.dtype(self.compute.dtype)

        def layer(x: Array, block: Block) -> tuple[Array, None]:
            return gather(merge_block(block), dtype)(x, valid, length), None

        return layer


Layer = Callable[[Array, Any], tuple[Array, None]]


def run_blocks(layer: Layer, x: Array, blocks: Any, compute: Compute) -> Array:
    """Runs tokens through stacked blocks.

    Args:
      layer: runs one block, given as a slice of `blocks`.
      x: what the first block reads.
      blocks: a pytree whose leaves have a leading depth axis.
      compute: as a loop or unrolled, and what the backward pass computes again.

    Returns:
      What the last block gives.
    """
    depth = jax.tree.leaves(blocks)[0].shape[0]
    for remat, first, last in _parts(compute.remat, depth):
        run = _rematerialised(layer, remat, compute.scan)
        if compute.scan:
            part = jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], blocks)
            x = jax.lax.scan(run, x, part)[0]
        else:
            for i in range(first, last):
                x, _ = run(x, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
    return x


def _parts(remat: Remat, depth: int) -> list[tuple[OfAllBlocks, int, int]]:
    """Runs of blocks under one policy: the policy, the first block, and the one after the last.

    Of a share, the first blocks are computed again: when their turn comes, the backward pass has
    freed what the later ones kept.
    """
    if not isinstance(remat, int | float):
        return [(remat, 0, depth)]
    again = round(remat * depth)
    parts: list[tuple[OfAllBlocks, int, int]] = [("full", 0, again), ("none", again, depth)]
    return [part for part in parts if part[1] < part[2]]


def _rematerialised(layer: Layer, remat: OfAllBlocks, scan: bool) -> Layer:
    """`layer` under one policy for all blocks."""
    policies = jax.checkpoint_policies
    # In a loop the passes are apart; unrolled, XLA would merge them and keep everything.
    again = functools.partial(jax.checkpoint, layer, prevent_cse=not scan)
    match remat:
        case "none":
            return layer
        case "full":
            return again()
        case "dots":
            return again(policy=policies.dots_saveable)
    return again(policy=policies.save_only_these_names(*remat))
