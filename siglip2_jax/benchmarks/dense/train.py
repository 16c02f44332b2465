"""Training a dense probe on frozen features, and drawing maps with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Int

from siglip2_jax.benchmarks.dense.features import ImageFeatures
from siglip2_jax.benchmarks.dense.heads import Head
from siglip2_jax.benchmarks.dense.layer import Decoder, Weights, dropped
from siglip2_jax.progress import progress
from siglip2_jax.types import ArrayLike, Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe of a probe: AdamW with a linear warm-up, then a cosine to 0.

    Attributes:
      steps: in all.
      batch_size: images a step; fewer where there are not as many.
      learning_rate: at its highest.
      weight_decay: decoupled, multiplied with the learning rate.
      warmup: share of the steps, 0 up to 1.
      dropout: share of an image's features that are 0 in a step, 0 up to 1.
      clip: largest global norm of a gradient.
      seed: of initial weights, dropout and the order of images.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.04
    dropout: float = 0.0
    clip: float = 35.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"the probe's recipe has steps={self.steps} and batch_size={self.batch_size}; "
                "expected at least 1"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.dropout < 1):
            raise ValueError(
                f"the probe's recipe has warmup={self.warmup} and dropout={self.dropout}; expected "
                "shares from 0 up to, not including, 1"
            )

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW behind a clip."""
        rate = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.learning_rate,
            warmup_steps=int(self.warmup * self.steps),
            decay_steps=self.steps,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(rate, weight_decay=self.weight_decay),
        )


def train_head(
    decoder: Decoder,
    head: Head,
    features: Sequence[Features],
    truth: Sequence[np.ndarray],
    recipe: Recipe,
    label: str,
) -> Weights:
    """Trains the decoder; the same inputs always give the same weights on the same machine.

    Args:
      decoder: what is trained.
      head: the kind of map.
      features: whitened, of all training images, for each block that the decoder reads.
      truth: each image's label, of any size.
      recipe: how to train.
      label: of the progress bar.

    Raises:
      ValueError: no pixel has a label.
    """
    if not any(np.asarray(head.known(x)).any() for x in truth):
        raise ValueError(f"{label}: none of {len(truth)} training images has a labelled pixel")
    side, shape = _largest(features[0].grid), _largest([x.shape[:2] for x in truth])
    optimizer = recipe.optimizer()

    def loss(weights: Weights, batch: Any, labels: Array, size: Array, step: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(recipe.seed + 1), step)
        batch = [dropped(block, recipe.dropout, key) for block in batch]
        scores, grid = decoder.scores(weights, batch, side)
        return head.loss(scores, grid, size, labels, step)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, batch, labels, size, step):
        gradient = jax.grad(loss)(weights, batch, labels, size, step)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    weights = decoder.initial(features[0].pooled.shape[-1], head.channels, recipe.seed)
    state = optimizer.init(weights)
    with progress(label) as show:
        for step, indices in enumerate(_order(len(truth), recipe)):
            labels, size = _padded([truth[i] for i in indices], shape, head.void)
            batch = jax.tree.map(lambda x, indices=indices: x[indices], list(features))
            weights, state = update(weights, state, batch, labels, size, np.int32(step))
            show(step + 1, recipe.steps)
    return weights


def draw_maps(
    decoder: Decoder,
    head: Head,
    weights: Weights,
    images: ImageFeatures,
    truth: Sequence[np.ndarray],
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Predicts each image's map with a trained decoder, at its label's rows and columns.

    Args:
      decoder: the trained decoder.
      head: the head that it was trained with.
      weights: of the decoder.
      images: features of the readable images; other images get the head's worst answer.
      truth: each image's label.
      batch_size: images per program call.
    """
    readable = set(images.read.tolist())
    sizes = np.array([truth[i].shape[:2] for i in images.read], np.int32).reshape(-1, 2)
    maps = _drawn(decoder, head, weights, images.features, sizes, batch_size)
    for i, label in enumerate(truth):
        yield next(maps) if i in readable else head.worst(label)


def _drawn(
    decoder: Decoder,
    head: Head,
    weights: Weights,
    features: Sequence[Features],
    sizes: Int[np.ndarray, "n 2"],
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The answers for images that can be read."""
    if not len(sizes):
        return
    side, shape = _largest(features[0].grid), _largest(sizes)

    @jax.jit
    def draw(weights: Weights, batch: list[Features], size: Array) -> Array:
        scores, grid = decoder.scores(weights, batch, side)
        return head.answer(head.maps(scores, grid, size, shape))

    for start in range(0, len(sizes), batch_size):
        # The last batch is filled up with its last image: one program for all.
        indices = np.minimum(np.arange(start, start + batch_size), len(sizes) - 1)
        batch = jax.tree.map(lambda x, indices=indices: x[indices], list(features))
        maps = np.asarray(draw(weights, batch, sizes[indices]))
        for answer, (height, width) in zip(maps, sizes[start : start + batch_size], strict=False):
            yield answer[:height, :width]


def _order(count: int, recipe: Recipe) -> Iterator[np.ndarray]:
    """Indices of each step's images: every image once before any is seen again."""
    rng = np.random.default_rng(recipe.seed)
    size = min(recipe.batch_size, count)
    queue = np.zeros(0, np.int64)
    for _ in range(recipe.steps):
        if len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[:size]
        queue = queue[size:]


def _padded(
    truth: Sequence[np.ndarray], shape: tuple[int, int], void: int
) -> tuple[np.ndarray, Int[np.ndarray, "b 2"]]:
    """Labels of one shape, filled up with `void`, and how large each is."""
    labels = np.full((len(truth), *shape, *truth[0].shape[2:]), void, truth[0].dtype)
    for row, x in zip(labels, truth, strict=True):
        row[: x.shape[0], : x.shape[1]] = x
    return labels, np.array([x.shape[:2] for x in truth], np.int32)


def _largest(sizes: Sequence[tuple[int, ...]] | ArrayLike) -> tuple[int, int]:
    height, width = np.max(np.asarray(sizes), axis=0)
    return int(height), int(width)
