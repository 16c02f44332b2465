"""Captioning with a decoder (LocCa, arXiv 2403.19596; SigLIP 2, arXiv 2502.14786, section 2.2).

Three sentences are learned for each image: its caption; a referring expression, which describes a
region and then gives its box; and a grounded caption, which gives a box and then describes the
region. Each starts with a prefix that names the task and is given; everything after it, text and
box, is predicted. Half of the captions are predicted in parallel, from nothing but masks (CapPa,
arXiv 2306.07915).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.compute import Compute, Remat
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.decoder import Decoder, DecoderConfig, decoder_config
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.sharding import BATCH, has_mesh
from siglip2_jax.types import Batch

PARALLEL_TASK = "caption"
"""Name of the task that is predicted in parallel; phrases and boxes depend on each other."""


@dataclasses.dataclass(frozen=True)
class Captioning(Objective):
    """The decoder's loss on the sentences of any number of tasks.

    `batch.fields["targets"]` holds an int32 array [B, S] by the name of each task: sentences of S
    ids that end with EOS and are padded with 0; one that is all pad is absent.
    `batch.fields["prefix"]`, by task int32 [B], is the number of leading ids that are given and not
    in the loss.

    Attributes:
      weight: in the sum of losses.
      parallel: share of the captions that are predicted in parallel; other tasks never are.
      depth: L, blocks of the decoder; None is half of the text tower's, rounded down.
      length: S, positions of the decoder.
      chunk: tokens at a time on a device whose logits over the vocabulary are in memory.
      remat: what the decoder's backward pass computes again, as in `Compute`; None is what that of
        the towers does.
      tokens: the loss of a sentence is the "mean" of its tokens' cross-entropies, as in big_vision
        (`models/proj/cappa`), or their "sum", in which long sentences count for more.
      implementation: of the loss over the vocabulary, as `vocabulary_loss` has it.
    """

    weight: float = 1.0
    parallel: float = 0.5
    depth: int | None = None
    length: int = 64
    chunk: int = 2048
    remat: Remat | None = None
    tokens: Literal["mean", "sum"] = "mean"
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    towers = ("vision",)

    def __post_init__(self) -> None:
        if self.tokens not in ("mean", "sum"):
            raise ValueError(f'Captioning.tokens must be "mean" or "sum", got {self.tokens!r}')

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> Decoder:
        """The decoder."""
        if self.remat is not None:
            compute = dataclasses.replace(compute, remat=self.remat, remat_up_to=())
        return Decoder(self._config(model), compute=compute, rngs=rngs)

    def loss(self, head: Decoder, view: View) -> tuple[Array, dict[str, Array]]:
        """The mean over sentences of the mean, or sum, of the cross-entropies of their tokens.

        Absent sentences count as 0, so that it is a mean over examples. Reported are, by task, the
        mean over the sentences that are there of a token's mean and, with several tasks, their
        share.
        """
        assert view.batch is not None  # as examples are not compared
        fields = view.batch.fields
        tasks = sorted(fields["targets"])
        targets, prefix = (
            jnp.stack([fields[name][task] for task in tasks], axis=1)
            for name in ("targets", "prefix")
        )
        learned = targets != head.config.pad_id
        learned &= jnp.arange(targets.shape[2]) >= prefix[..., None]
        share = learned / jnp.maximum(learned.sum(axis=2, keepdims=True), 1)
        weights = learned if self.tokens == "sum" else share
        parallel = self._in_parallel(view.key, targets.shape[0], tasks)
        tokens, valid = jnp.asarray(view.features.tokens), jnp.asarray(view.features.valid)
        hidden = head(targets, tokens, valid, parallel)
        loss, losses = vocabulary_loss(
            hidden,
            head.out.kernel[...],
            targets,
            weights / (targets.shape[0] * targets.shape[1]),
            chunk=self.chunk,
            dtype=head.dtype,
            impl=self.implementation,
        )
        return loss, _report(tasks, jnp.sum(losses * share, axis=2), learned.any(axis=2))

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The decoder on all positions and image tokens, padding included, and all logits."""
        targets = batch.fields["targets"]
        images, length = next(iter(targets.values())).shape
        tokens = batch.image.valid.shape[-1]
        config = self._config(model)
        return 3 * images * _forward_flops(config, len(targets) * length, length, tokens)

    def _config(self, model: ModelConfig) -> DecoderConfig:
        return decoder_config(model, depth=self.depth, length=self.length)

    def _in_parallel(self, key: Array, images: int, tasks: Sequence[str]) -> Bool[Array, "B R"]:
        drawn = jax.random.bernoulli(key, self.parallel, (images, 1))
        drawn = drawn & np.array([task == PARALLEL_TASK for task in tasks])
        return jax.reshard(drawn, BATCH) if has_mesh() else drawn


def _report(
    tasks: Sequence[str], losses: Float[Array, "B R"], present: Bool[Array, "B R"]
) -> dict[str, Array]:
    count = present.sum(axis=0)
    means = losses.sum(axis=0) / jnp.maximum(count, 1)
    report = {task: means[i] for i, task in enumerate(tasks)}
    if len(tasks) > 1:
        report |= {f"{task}_present": count[i] / len(losses) for i, task in enumerate(tasks)}
    return report


def _forward_flops(config: DecoderConfig, queries: int, length: int, tokens: int) -> int:
    """Forward FLOPs of one image: matrix products, a multiply-add as 2, as in `models.flops`."""
    width = config.width
    projections = 2 * queries * width * width
    self_attention = 4 * projections + 2 * 2 * queries * length * width
    image = 2 * projections + 2 * 2 * tokens * config.memory_dim * width
    image += 2 * 2 * queries * tokens * width
    mlp = 2 * 2 * queries * width * config.mlp_dim
    return config.depth * (self_attention + image + mlp) + 2 * queries * width * config.vocab_size
