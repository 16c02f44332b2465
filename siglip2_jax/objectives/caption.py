"""Captioning with a decoder (LocCa, arXiv 2403.19596; SigLIP 2, arXiv 2502.14786, section 2.2).

Three sentences are learned for each image: its caption; a referring expression, which describes a
region and then gives its box; and a grounded caption, which gives a box and then describes the
region. Each starts with a prefix that names the task and is given; everything after it, text and
box, is predicted. Half of the captions are predicted in parallel, from nothing but masks (CapPa,
arXiv 2306.07915).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.decoder import Decoder, DecoderConfig, decoder_config
from siglip2_jax.models.layers import Compute
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.sharding import BATCH, has_mesh
from siglip2_jax.types import Batch

TASKS = ("caption", "refer", "ground")
"""Names of the tasks, in their order in a batch."""


@dataclasses.dataclass(frozen=True)
class Captioning(Objective):
    """The decoder's loss on `batch.fields["targets"]`, an int32 array [B, R, S].

    R of the `TASKS`, in their order, each a sentence of S ids that ends with EOS and is padded with
    0; one that is all pad is absent. `batch.fields["prefix"]`, int32 [B, R], is the number of
    leading ids that are given and not in the loss.

    Attributes:
      weight: in the sum of losses.
      parallel: share of captions, the first task, that are predicted in parallel.
      depth: L, blocks of the decoder; None is half of the text tower's, rounded down.
      length: S, positions of the decoder.
      chunk: tokens at a time on a device whose logits over the vocabulary are in memory.
    """

    weight: float = 1.0
    parallel: float = 0.5
    depth: int | None = None
    length: int = 64
    chunk: int = 1024
    towers = ("vision",)

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> Decoder:
        """The decoder."""
        return Decoder(self._config(model), compute=compute, rngs=rngs)

    def loss(self, head: Decoder, view: View) -> tuple[Array, dict[str, Array]]:
        """The mean over sentences of the mean cross-entropy of a sentence's tokens.

        Absent sentences count as 0, so that it is a mean over examples. Reported are the mean of
        each task over the sentences that are there and, with several tasks, their share.
        """
        targets = view.batch.fields["targets"]
        learned = targets != head.config.pad_id
        learned &= jnp.arange(targets.shape[2]) >= view.batch.fields["prefix"][..., None]
        share = learned / jnp.maximum(learned.sum(axis=2, keepdims=True), 1)
        hidden = head(
            targets, view.features.tokens, view.features.valid, self._in_parallel(view, targets)
        )
        loss, losses = vocabulary_loss(
            hidden,
            head.out.kernel[...],
            targets,
            share / (targets.shape[0] * targets.shape[1]),
            chunk=self.chunk,
            dtype=head.dtype,
        )
        return loss, _report(jnp.sum(losses * share, axis=2), learned.any(axis=2))

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The decoder on all positions and image tokens, padding included, and all logits."""
        images, sentences, length = batch.fields["targets"].shape
        tokens = batch.image.valid.shape[-1]
        config = self._config(model)
        return 3 * images * _forward_flops(config, sentences * length, length, tokens)

    def _config(self, model: ModelConfig) -> DecoderConfig:
        return decoder_config(model, depth=self.depth, length=self.length)

    def _in_parallel(self, view: View, targets: Array) -> Bool[Array, "B R"]:
        images, sentences, _ = targets.shape
        drawn = jax.random.bernoulli(view.key, self.parallel, (images, 1))
        drawn = drawn & (jnp.arange(sentences) == 0)
        return jax.reshard(drawn, BATCH) if has_mesh() else drawn


def _report(losses: Float[Array, "B R"], present: Bool[Array, "B R"]) -> dict[str, Array]:
    count = present.sum(axis=0)
    means = losses.sum(axis=0) / jnp.maximum(count, 1)
    report = {TASKS[i]: means[i] for i in range(len(means))}
    if len(means) > 1:
        report |= {f"{TASKS[i]}_present": count[i] / len(losses) for i in range(len(means))}
    return report


def _forward_flops(config: DecoderConfig, queries: int, length: int, tokens: int) -> int:
    """Forward FLOPs of one image: matrix products, a multiply-add as 2, as in `models.flops`."""
    width = config.width
    projections = 2 * queries * width * width
    own = 4 * projections + 2 * 2 * queries * length * width
    image = 2 * projections + 2 * 2 * tokens * config.memory_dim * width
    image += 2 * 2 * queries * tokens * width
    mlp = 2 * 2 * queries * width * config.mlp_dim
    return config.depth * (own + image + mlp) + 2 * queries * width * config.vocab_size
