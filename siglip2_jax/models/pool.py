"""Attention pooling: the tokens of an image or a text in, one vector out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.config import Tower
from siglip2_jax.models.kernels.layer_norm import layer_norm
from siglip2_jax.models.kernels.linear import dense
from siglip2_jax.models.layers import Attention, Mlp


class AttentionPool(nnx.Module):
    """Pools tokens with one learned query (the MAP head), in float32.

    `a = attention(probe, tokens); a + mlp(norm(a))`: no norm on the probe and no residual from it.
    """

    def __init__(self, tower: Tower, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.probe = nnx.Param(init(rngs.params(), (1, 1, tower.width), jnp.float32))
        self.attn = Attention(tower.width, tower.num_heads, dtype=jnp.float32, rngs=rngs)
        self.norm = layer_norm(tower.width, rngs)
        self.mlp = Mlp(tower.width, tower.mlp_dim, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B N D"], valid: Bool[Array, "B N"]
    ) -> Float[Array, "B D"]:
        """Pools the valid tokens."""
        tokens = tokens.astype(jnp.float32)
        attn = self.attn
        query = attn.query(self.probe[...])[0, 0] * attn.query.out_features[-1] ** -0.5
        # All rows have the one query and each gives one value, so that projections come down to
        # a product of the query and one of the pooled tokens; there are no keys and no values.
        key = jnp.einsum("dhc,hc->dh", attn.key.kernel[...], query)
        assert attn.key.bias is not None and attn.value.bias is not None
        scores = tokens @ key + (attn.key.bias[...] * query).sum(-1)
        scores = jnp.where(valid[..., None], scores, jnp.finfo(scores.dtype).min)
        # A row without any valid token has weights of 0.
        weights = jax.nn.softmax(scores, axis=1) * valid[..., None]
        pooled = jnp.einsum("bnh,bnd->bhd", weights, tokens)
        value = jnp.einsum("bhd,dhc->bhc", pooled, attn.value.kernel[...])
        value += attn.value.bias[...] * weights.sum(1)[..., None]
        pooled = dense(attn.out, value.reshape(value.shape[0], -1))
        return pooled + self.mlp(self.norm(pooled))
