"""The transformer both towers share: attention, MLP, pre-norm block, and the stack of blocks.

Follows SigLIP 2 as released (big_vision `models/vit.py`): pre-LayerNorm with eps 1e-6, GELU in its
tanh form, biases everywhere, no dropout. Parameters are float32; matrix products run in the
compute dtype and accumulate in float32, which on CPU is also what keeps bfloat16 on its own
instructions; LayerNorm statistics and softmax are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.compute import Compute, Layer, run_blocks
from siglip2_jax.models.config import Tower
from siglip2_jax.models.kernels.attention import AttentionImpl, attend
from siglip2_jax.models.kernels.layer_norm import NormImpl, layer_norm, residual_layer_norm
from siglip2_jax.models.kernels.linear import dense, dense_each
from siglip2_jax.models.kernels.low_rank import merge_block
from siglip2_jax.models.kernels.rows import arrange, in_sequences, in_whole_rows
from siglip2_jax.sharding import gather, platform, reshape_rows


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
        self.heads = num_heads
        heads = (num_heads, width // num_heads)
        self.query = linear(width, heads)
        self.key = linear(input_width or width, heads)
        self.value = linear(input_width or width, heads)
        self.out = linear(heads, width)

    def __call__(
        self,
        queries: Float[Array, "R Q D"],
        inputs: Float[Array, "R K M"],
        valid: Bool[Array, "B N"] | Bool[Array, "B L N"] | None = None,
        length: int | None = None,
        sequences: tuple[int, int] | None = None,
    ) -> Float[Array, "R Q D"]:
        """Attends from `queries` to the valid `inputs`; the result is float32.

        Where they are the same, sequences of one `length` may lie side by side in each row, or
        tokens of `sequences`, so many of so many tokens, in rows of another length.
        """
        if queries is inputs:
            linears = self.query, self.key, self.value
            query, key, value = self._project(linears, queries, sequences)
            rows = None if sequences is None else queries.shape[:2]
            return self._attend(query, key, value, valid, length, rows)
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
        self,
        query: Array,
        key: Array,
        value: Array,
        valid: Array | None,
        length: int | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> Array:
        values = attend(query, key, value, valid, self.impl, length)
        values = checkpoint_name(values, "attn_out")
        values = values.reshape(*values.shape[:2], -1)
        if rows is not None:
            values = reshape_rows(values, (*rows, values.shape[2]))
        return dense(self.out, values)

    def _project(
        self,
        linears: tuple[nnx.LinearGeneral, ...],
        x: Array,
        sequences: tuple[int, int] | None = None,
    ) -> list[Array]:
        flat = [checkpoint_name(y, "qkv") for y in dense_each(linears, x)]
        if sequences is not None:
            flat = in_sequences(flat, sequences, self.heads)
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
        rows = in_whole_rows(x)
        hidden = checkpoint_name(dense(self.fc1, rows).astype(self.dtype), "mlp_pre")
        if platform() == "tpu":
            # Where it need not be kept, XLA would make one program of both products, which takes
            # up to twice as long as the two.
            hidden = jax.lax.optimization_barrier(hidden)
        y = dense(self.fc2, nnx.gelu(hidden, approximate=True))
        return y if rows is x else reshape_rows(y, x.shape)


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
        x: Float[Array, "R M D"],
        valid: Bool[Array, "B N"] | Bool[Array, "B N N"] | None,
        length: int | None = None,
        sequences: tuple[int, int] | None = None,
    ) -> Float[Array, "R M D"]:
        """Runs the block on rows as `Attention` reads them; the stream keeps the dtype of `x`."""
        x, y = residual_layer_norm(self.ln1, x, self.dtype, self.norm)
        attended = self.attn(y, y, valid, length, sequences)
        x = checkpoint_name(x + attended.astype(x.dtype), "x_mid")
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
            x = run_blocks(self._layer(valid, rows.length), x, self.blocks, compute)
            return self.norm(rows.unpack(x))
        whole, (images, tokens, _) = in_whole_rows(x), x.shape
        if whole is x:
            return self.norm(run_blocks(self._layer(valid), x, self.blocks, compute))
        layer = self._layer(valid, sequences=(images, tokens))
        return self.norm(reshape_rows(run_blocks(layer, whole, self.blocks, compute), x.shape))

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

    def _layer(
        self,
        valid: Array | None,
        length: int | None = None,
        sequences: tuple[int, int] | None = None,
    ) -> Layer:
        dtype = jnp.dtype(self.compute.dtype)

        def layer(x: Array, block: Block) -> tuple[Array, None]:
            return gather(merge_block(block), dtype)(x, valid, length, sequences), None

        return layer
