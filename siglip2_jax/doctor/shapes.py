"""Shapes at which a config runs each fast program, and the settings that choose the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

from siglip2_jax.config import ResolvedStage, TrainConfig
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import Tower
from siglip2_jax.models.decoder import decoder_config
from siglip2_jax.models.kernels.attention import AttentionImpl
from siglip2_jax.models.kernels.layer_norm import NormImpl
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.distillation import Distillation
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.types import Patches

_IMAGES = 8  # of one device: enough for kernels that take several at a time


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Sequences that attend, to themselves or to others.

    Attributes:
      images: how many.
      queries: tokens of each that ask.
      keys: tokens of each that answer.
      heads: of the attention.
      size: of a head.
      masked: some keys do not exist.
      dtype: of all.
      impl: setting of the attention.
    """

    images: int
    queries: int
    keys: int
    heads: int
    size: int
    masked: bool
    dtype: str
    impl: AttentionImpl

    def __str__(self) -> str:
        length = (
            f"{self.queries}" if self.queries == self.keys else f"{self.queries} to {self.keys}"
        )
        return f"{length} tokens, {self.heads} heads of {self.size}, {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Streams:
    """Residual streams that are normalised.

    Attributes:
      images: how many.
      tokens: of each.
      width: of a token.
      dtype: of all.
      impl: setting of LayerNorm.
    """

    images: int
    tokens: int
    width: int
    dtype: str
    impl: NormImpl

    def __str__(self) -> str:
        return f"{self.tokens} tokens of {self.width}, {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Hidden states whose next token is predicted.

    Attributes:
      tokens: how many.
      width: of a hidden state.
      entries: of the vocabulary.
      dtype: of the products.
      impl: setting of the loss.
    """

    tokens: int
    width: int
    entries: int
    dtype: str
    impl: str

    def __str__(self) -> str:
        return f"{self.entries:,} entries, {self.tokens:,} states of {self.width}, {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Vectors that are compared over prototypes.

    Attributes:
      rows: how many vectors.
      width: of a vector.
      prototypes: how many.
      temperatures: of student and teacher.
      dtype: of the products.
      impl: setting of the loss.
    """

    rows: int
    width: int
    prototypes: int
    temperatures: tuple[float, float]
    dtype: str
    impl: str

    def __str__(self) -> str:
        return f"{self.prototypes:,}, {self.rows:,} rows of {self.width}, {self.dtype}"


Shape = Sequences | Streams | Vocabulary | Prototypes


def shapes_of(config: TrainConfig, devices: int) -> dict[Shape, tuple[str, ...]]:
    """Shapes of all stages, for a run on so many devices, and the paths of their settings."""
    places: dict[Shape, tuple[str, ...]] = {}
    for stage, resolved in zip(config.stages, config.resolved, strict=True):
        compute = "compute" if stage.compute is None else f"stages.{stage.name}.compute"
        for shape, objective in _of_stage(resolved, devices):
            path = f"stages.{stage.name}.objectives.{objective}" if objective else compute
            if path not in places.get(shape, ()):
                places[shape] = (*places.get(shape, ()), path)
    return places


def _of_stage(stage: ResolvedStage, devices: int) -> Iterator[tuple[Shape, str | None]]:
    """Shapes, each with the objective whose they are, if they are of one."""
    text, vision, compute = stage.model.text, stage.model.vision, stage.compute
    masked = stage.model.native_resolution
    for budget in stage.lengths.budgets:
        batch_size = stage.lengths.batch_size(budget, stage.batch_size)
        share = max(1, batch_size // devices)
        images = min(_IMAGES, share)
        batch = abstract_batch(stage, budget, batch_size)
        tokens = batch.image.valid.shape[-1]
        views = jax.tree.leaves(batch.fields, is_leaf=lambda x: isinstance(x, Patches))
        lengths = {x.valid.shape[-1] for x in views if isinstance(x, Patches)}
        towers = [(vision, tokens, masked), (text, text.length, False)]
        towers += [(vision, length, masked) for length in sorted(lengths - {tokens})]
        for tower, length, some in towers:
            yield _sequences(compute, tower, images, length, length, some), None
            yield Streams(images, length, tower.width, compute.dtype, compute.norm), None
        for name, x in stage.objectives.items():
            if isinstance(x, Captioning) and x.weight:
                sizes = decoder_config(stage.model, depth=x.depth, length=x.length)
                states = min(x.chunk, share * sizes.length)
                yield _sequences(compute, sizes, images, sizes.length, tokens, masked), None
                loss = states, sizes.width, sizes.vocab_size, compute.dtype, x.implementation
                yield Vocabulary(*loss), name
            if isinstance(x, Distillation) and x.weight:
                sizes = min(x.chunk, share), x.bottleneck, x.prototypes
                temperatures = x.student_temperature, x.teacher_temperature
                yield Prototypes(*sizes, temperatures, compute.dtype, x.implementation), name


def _sequences(
    compute: Compute, tower: Tower, images: int, queries: int, keys: int, masked: bool
) -> Sequences:
    heads = tower.num_heads, tower.width // tower.num_heads
    return Sequences(images, queries, keys, *heads, masked, compute.dtype, compute.attention)
