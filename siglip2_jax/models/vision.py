"""The vision tower: patches in, patch tokens and one pooled vector out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.config import Tower, VisionConfig
from siglip2_jax.models.kernels.layer_norm import layer_norm
from siglip2_jax.models.kernels.linear import dense
from siglip2_jax.models.layers import Attention, Compute, Encoder, Mlp
from siglip2_jax.models.posemb import PositionTable
from siglip2_jax.sharding import gather, replicate
from siglip2_jax.types import Patches


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
        # All images have the one query and each gives one value, so that projections come down to
        # a product of the query and one of the pooled tokens; there are no keys and no values.
        key = jnp.einsum("dhc,hc->dh", attn.key.kernel[...], query)
        assert attn.key.bias is not None and attn.value.bias is not None
        scores = tokens @ key + (attn.key.bias[...] * query).sum(-1)
        scores = jnp.where(valid[..., None], scores, jnp.finfo(scores.dtype).min)
        # An image without any valid token has weights of 0.
        weights = jax.nn.softmax(scores, axis=1) * valid[..., None]
        pooled = jnp.einsum("bnh,bnd->bhd", weights, tokens)
        value = jnp.einsum("bhd,dhc->bhc", pooled, attn.value.kernel[...])
        value += attn.value.bias[...] * weights.sum(1)[..., None]
        pooled = dense(attn.out, value.reshape(len(value), -1))
        return pooled + self.mlp(self.norm(pooled))


class VisionTower(nnx.Module):
    """ViT over `Patches`; fixed and native resolution are one path.

    A convolution with stride equal to its size is a dense layer on flattened patches, and at the
    table's own grid the position resize is exactly the identity.
    """

    def __init__(self, config: VisionConfig, *, compute: Compute, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(compute.dtype)
        self.embed = nnx.Linear(
            config.patch_size**2 * 3,
            config.width,
            dtype=self.dtype,
            preferred_element_type=jnp.float32,
            rngs=rngs,
        )
        self.pos = PositionTable(config.grid, config.width, rngs=rngs)
        self.encoder = Encoder(config, compute=compute, rngs=rngs)
        self.pool = AttentionPool(config, rngs=rngs)

    def __call__(
        self,
        image: Patches,
        masked: Bool[Array, "B N"] | None = None,
        mask_token: Float[Array, " D"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B D"]]:
        """Encodes images.

        Args:
          image: a batch of patches.
          masked: patches to hide: `mask_token` stands in place of their embedding, before
            positions are added.
          mask_token: what stands there; needed with `masked`.

        Returns:
          float32 patch tokens after the last norm, and the pooled vector, not normalised.
        """
        # Padding may hold anything, NaN included; zeros keep every later value finite.
        valid = jnp.asarray(image.valid)
        pixels = jnp.where(valid[..., None], image.pixels, 0)
        x = dense(gather(self.embed, self.dtype), pixels)
        if masked is not None:
            assert mask_token is not None, "masked patches need a mask_token"
            x = jnp.where(masked[..., None], replicate(mask_token).astype(x.dtype), x)
        x = x + self.pos(jnp.asarray(image.yx), valid)
        tokens = self.encoder(x.astype(self.dtype), valid)
        return tokens, jax.tree.map(replicate, self.pool)(tokens, image.valid)
