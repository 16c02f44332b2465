"""The vision tower: patches in, patch tokens and one pooled vector out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import VisionConfig
from siglip2_jax.models.kernels.int8 import multiply_out
from siglip2_jax.models.kernels.linear import dense
from siglip2_jax.models.layers import Encoder
from siglip2_jax.models.pool import AttentionPool
from siglip2_jax.models.posemb import PositionTable
from siglip2_jax.sharding import gather, replicate
from siglip2_jax.types import Patches


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
        x = self._embed(image, masked, mask_token)
        tokens = self.encoder(x, jnp.asarray(image.valid))
        return tokens, multiply_out(jax.tree.map(replicate, self.pool))(tokens, image.valid)

    def hidden_states(
        self, image: Patches, counts: Sequence[int]
    ) -> tuple[Float[Array, "B N D"], ...]:
        """float32 patch tokens after the first so many blocks; see `Encoder.hidden_states`."""
        return self.encoder.hidden_states(self._embed(image), jnp.asarray(image.valid), counts)

    def _embed(
        self, image: Patches, masked: Array | None = None, mask_token: Array | None = None
    ) -> Array:
        """Embeds patches and adds their positions, for the first block."""
        # Padding may hold anything, NaN included; zeros keep every later value finite.
        valid = jnp.asarray(image.valid)
        pixels = jnp.where(valid[..., None], image.pixels, 0)
        x = dense(gather(self.embed, self.dtype), pixels)
        if masked is not None:
            assert mask_token is not None, "masked patches need a mask_token"
            x = jnp.where(masked[..., None], replicate(mask_token).astype(x.dtype), x)
        return (x + self.pos(jnp.asarray(image.yx), valid)).astype(self.dtype)
