"""The captioning decoder: token ids and image tokens in, one vector a position out.

LocCa's decoder (arXiv 2403.19596) as SigLIP 2 uses it (arXiv 2502.14786, section 2.2): the text
tower's shape with cross-attention to the image tokens before pooling, and half its layers. Blocks
are those of CapPa (arXiv 2306.07915; big_vision `models/proj/cappa/cappa.py`): attention without
biases, learned positions, N(0, 1) token vectors, an untied output that starts at zero. CapPa's
output has a bias; this one has none. Attention starts as in the towers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.models.compute import Compute, run_blocks
from siglip2_jax.models.config import ModelConfig, Tower
from siglip2_jax.models.kernels.layer_norm import NormImpl, layer_norm, residual_layer_norm
from siglip2_jax.models.layers import Attention, Mlp
from siglip2_jax.models.text import TextPositions, TokenTable
from siglip2_jax.sharding import AXES, gather, has_mesh, replicate, reshape_rows

Cache = tuple[Float[Array, "*L B S H C"], Float[Array, "*L B S H C"]]
"""Keys and values of the positions of one caption an image."""
Memory = tuple[Float[Array, "*L B N H C"], Float[Array, "*L B N H C"]]
"""Keys and values of image tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Tower):
    """Sizes of the decoder.

    Attributes:
      vocab_size: V, entries to choose from; the token table has one more, the mask.
      length: S, the most tokens it reads.
      memory_dim: M, width of the image tokens.
      pad_id: what fills a caption up to S, and what stands before its first token.
    """

    vocab_size: int
    length: int = 64
    memory_dim: int
    pad_id: int = 0


def decoder_config(
    model: ModelConfig, *, depth: int | None = None, length: int = 64
) -> DecoderConfig:
    """The decoder of a model: its text tower's sizes, and half the layers, rounded down."""
    text = model.text
    return DecoderConfig(
        width=text.width,
        depth=max(1, text.depth // 2) if depth is None else depth,
        mlp_dim=text.mlp_dim,
        num_heads=text.num_heads,
        vocab_size=text.vocab_size,
        length=length,
        memory_dim=model.vision.width,
    )


class DecoderBlock(nnx.Module):
    """`x += attention(norm(x)); x += cross(norm(x), image); x += mlp(norm(x))`.

    The A rows of `x` are sequences, several for each of the B images.
    """

    def __init__(self, config: DecoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        shape = config.width, config.num_heads
        self.dtype = dtype = jnp.dtype(compute.dtype)
        self.norm: NormImpl = compute.norm
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.ln1 = layer_norm(config.width, rngs)
        self.attn = Attention(*shape, **options)
        self.ln2 = layer_norm(config.width, rngs)
        self.cross = Attention(
            *shape, input_width=config.memory_dim, impl=compute.attention, **options
        )
        self.ln3 = layer_norm(config.width, rngs)
        self.mlp = Mlp(config.width, config.mlp_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "A S D"],
        attend: Bool[Array, "A S S"],
        tokens: Float[Array, "B N M"],
        valid: Bool[Array, "B N"],
    ) -> Float[Array, "A S D"]:
        """Runs whole sequences; `attend` is true where a row may attend to a column."""
        x, y = residual_layer_norm(self.ln1, x, self.dtype, self.norm)
        x = checkpoint_name(x + self.attn(y, y, attend).astype(x.dtype), "x_mid")
        return self._look(x, self.cross.keys_values(tokens), valid)

    def extend(
        self,
        x: Float[Array, "B 1 D"],
        position: Int[Array, ""],
        cache: Cache,
        memory: Memory,
        valid: Bool[Array, "B N"],
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Runs one position, whose key and value join those of earlier ones."""
        x, y = residual_layer_norm(self.ln1, x, self.dtype, self.norm)
        pairs = zip(cache, self.attn.keys_values(y), strict=True)
        key, value = (jax.lax.dynamic_update_slice_in_dim(*pair, position, 1) for pair in pairs)
        attend = jnp.broadcast_to(jnp.arange(key.shape[1]) <= position, key.shape[:2])
        x = x + self.attn.read(y, key, value, attend).astype(x.dtype)
        return self._look(x, memory, valid), (key, value)

    def _look(self, x: Array, memory: Memory, valid: Array) -> Array:
        """Cross-attention and MLP; all sequences of an image share its keys and values."""
        rows, length, width = x.shape
        images = valid.shape[0]
        x, y = residual_layer_norm(self.ln2, x, self.dtype, self.norm)
        queries = reshape_rows(y, (images, rows // images * length, width))
        attended = reshape_rows(self.cross.read(queries, *memory, valid), x.shape)
        x = checkpoint_name(x + attended.astype(x.dtype), "x_mid")
        x, y = residual_layer_norm(self.ln3, x, self.dtype, self.norm)
        return x + self.mlp(y).astype(x.dtype)


class Decoder(nnx.Module):
    """Predicts captions of images, token after token or all at once (parallel prediction)."""

    def __init__(self, config: DecoderConfig, *, compute: Compute | None = None, rngs: nnx.Rngs):
        self.config = config
        self.compute = compute or Compute()
        self.dtype = dtype = jnp.dtype(self.compute.dtype)
        self.embed = TokenTable(config.vocab_size + 1, config.width, dtype=dtype, rngs=rngs)
        self.embed.table[...] *= config.width**0.5  # N(0, 1)
        self.pos = TextPositions(config.length, config.width, rngs=rngs)

        @jax.vmap
        def stack(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(config, compute=self.compute, rngs=rngs)

        self.blocks = stack(rngs.split(config.depth))
        self.norm = layer_norm(config.width, rngs)
        self.out = nnx.Linear(
            config.width,
            config.vocab_size,
            use_bias=False,
            kernel_init=nnx.initializers.zeros,
            dtype=dtype,
            preferred_element_type=jnp.float32,
            rngs=rngs,
        )

    def __call__(
        self,
        ids: Int[Array, "B R S"],
        tokens: Float[Array, "B N M"],
        valid: Bool[Array, "B N"],
        parallel: Bool[Array, "B R"],
    ) -> Float[Array, "B R S D"]:
        """Reads R captions of each image, as far as predicting each next token allows.

        Args:
          ids: what is to be predicted, padded on the right.
          tokens: image tokens after the tower's last norm.
          valid: which image tokens exist; others may hold anything, NaN included.
          parallel: captions predicted all at once, of which nothing is read. Their pads attend
            and are attended to: to hide them would tell the length.

        Returns:
          float32 vectors after the last norm; `logits` makes predictions of them.

        Raises:
          ValueError: the captions are longer than the decoder's positions.
        """
        batch, repeats, length = ids.shape
        if length > self.config.length:
            raise ValueError(
                f"captions have {length} tokens, the decoder has {self.config.length} positions; "
                "cut the captions or build the decoder with a larger length"
            )
        rows = reshape_rows(ids, (batch * repeats, length))
        at_once = reshape_rows(parallel, (batch * repeats,))[:, None]
        before = jnp.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=self.config.pad_id)
        x = self._embed(jnp.where(at_once, self.config.vocab_size, before))
        attend = jnp.tril(jnp.ones((length, length), bool)) | at_once[:, None]
        image = self._clean(tokens, valid)

        def layer(x: Array, block: DecoderBlock) -> tuple[Array, None]:
            return gather(block, self.dtype)(x, attend, image, valid), None

        x = self.norm(run_blocks(layer, x, self.blocks, self.compute.at_length(x.shape[1])))
        return reshape_rows(x, (batch, repeats, length, x.shape[-1]))

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 scores of all entries, for decoding; training uses `vocabulary_loss`."""
        return gather(self.out, self.dtype)(hidden)

    def image_memory(self, tokens: Float[Array, "B N M"], valid: Bool[Array, "B N"]) -> Memory:
        """Keys and values [L, B, N, H, C] of the image tokens in all layers."""
        image = self._clean(tokens, valid)

        def layer(_: None, block: DecoderBlock) -> tuple[None, Memory]:
            return None, gather(block.cross, self.dtype).keys_values(image)

        return jax.lax.scan(layer, None, self.blocks)[1]

    def empty_cache(self, batch: int) -> Cache:
        """Room for the keys and values [L, B, S, H, C] of `batch` captions in all layers."""
        config = self.config
        heads = config.num_heads, config.width // config.num_heads
        shape = (config.depth, batch, config.length, *heads)
        split = PartitionSpec(None, AXES) if has_mesh() else None
        return (
            jnp.zeros(shape, self.dtype, out_sharding=split),
            jnp.zeros(shape, self.dtype, out_sharding=split),
        )

    def extend(
        self,
        ids: Int[Array, " B"],
        position: Int[Array, ""],
        cache: Cache,
        memory: Memory,
        valid: Bool[Array, "B N"],
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Reads one more token of each caption.

        Args:
          ids: the tokens before those to predict: `config.pad_id` at position 0, then what was
            predicted.
          position: how many tokens were read before, from 0.
          cache: what `empty_cache` or the last call gave.
          memory: what `image_memory` gave.
          valid: which image tokens exist.

        Returns:
          float32 vectors for `logits`, and the cache with this position.
        """

        def layer(x: Array, at: tuple[DecoderBlock, Cache, Memory]):
            block, cache, memory = at
            return gather(block, self.dtype).extend(x, position, cache, memory, valid)

        x = self._embed(ids[:, None], position)
        x, cache = jax.lax.scan(layer, x, (self.blocks, cache, memory))
        return self.norm(x)[:, 0], cache

    def _embed(self, ids: Array, position: Array | int = 0) -> Array:
        table = replicate(self.pos.table[...])
        positions = jax.lax.dynamic_slice_in_dim(table, position, ids.shape[1])
        return (self.embed(ids) + positions).astype(self.dtype)

    def _clean(self, tokens: Array, valid: Array) -> Array:
        # Padding may hold anything, NaN included; zeros keep every later value finite.
        return jnp.where(valid[..., None], tokens, 0).astype(self.dtype)
