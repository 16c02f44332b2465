"""The text tower: token ids in, one vector out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import TextConfig
from siglip2_jax.models.kernels.int8 import Int8, multiply_out
from siglip2_jax.models.layers import Encoder
from siglip2_jax.models.pool import AttentionPool
from siglip2_jax.sharding import gather, lookup, replicate


class TokenTable(nnx.Module):
    """One vector per vocabulary entry."""

    def __init__(self, vocab_size: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        init = nnx.initializers.normal(width**-0.5)
        self.table = nnx.Param(init(rngs.params(), (vocab_size, width), jnp.float32))

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks ids up, in the compute dtype."""
        table = self.table[...]
        if isinstance(table, Int8):
            parts = (table.values, jnp.int8), (table.scale, jnp.float32)
            return Int8(*(lookup(part, ids, dtype) for part, dtype in parts)).astype(self.dtype)
        return lookup(table, ids, self.dtype)


class TextPositions(nnx.Module):
    """One learned vector per position."""

    def __init__(self, length: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        self.table = nnx.Param(init(rngs.params(), (length, width), jnp.float32))


class TextTower(nnx.Module):
    """Bidirectional transformer that pools the last position, or all by attention.

    There is no padding mask and every text has exactly `config.length` tokens: the released
    models were trained to read the padding. The paper (section 2.1) says both towers pool by
    attention; the released code and weights pool the last position, usually a pad.
    """

    def __init__(self, config: TextConfig, *, compute: Compute, rngs: nnx.Rngs):
        self.length = config.length
        self.dtype = jnp.dtype(compute.dtype)
        self.embed = TokenTable(config.vocab_size, config.width, dtype=self.dtype, rngs=rngs)
        self.pos = TextPositions(config.length, config.width, rngs=rngs)
        self.encoder = Encoder(config, compute=compute, rngs=rngs)
        self.head = nnx.Linear(config.width, config.embed_dim, rngs=rngs)
        self.pool = AttentionPool(config, rngs=rngs) if config.pool == "map" else None

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Encodes texts.

        Args:
          ids: right-padded token ids.

        Returns:
          float32 vectors, not normalised.

        Raises:
          ValueError: the texts do not have exactly the model's length.
        """
        if ids.shape[-1] != self.length:
            raise ValueError(
                f"texts have {ids.shape[-1]} tokens, the text tower reads exactly {self.length}; "
                f"pad on the right (or cut, keeping EOS last) to {self.length}"
            )
        x = self.embed(ids) + replicate(self.pos.table[...])
        tokens = self.encoder(x.astype(self.dtype))
        pooled = tokens[:, -1]
        if self.pool is not None:
            pooled = multiply_out(jax.tree.map(replicate, self.pool))(
                tokens, jnp.ones(tokens.shape[:2], bool)
            )
        return multiply_out(gather(self.head, jnp.float32))(pooled)
