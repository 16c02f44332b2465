"""Features of images for dense probes: unreadable images left out, the work split among hosts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Bool, Int

from siglip2_jax.benchmarks.dense.blocks import block_features
from siglip2_jax.benchmarks.gather import gather_texts
from siglip2_jax.benchmarks.measured import Measured, own_share
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.evals.base import Model
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.progress import progress
from siglip2_jax.types import Features

IMAGES_AT_ONCE = 256
"""Of all hosts together: what they exchange at once, about 1 GB for four blocks of So400m."""

Encoded = tuple[Bool[np.ndarray, " _"], tuple[Features, ...]]
"""True for readable images, and a row for each image, meaningless for an unreadable one."""


@runtime_checkable
class ImageModel(Model, Protocol):
    """A model that shows how it prepares images."""

    @property
    def preprocess(self) -> ImagePreprocessor:
        """Images to patches."""
        ...


class ImageFeatures(NamedTuple):
    """Features of the readable images.

    Attributes:
      features: of each block, NumPy arrays.
      read: index of each readable image, in order.
    """

    features: tuple[Features, ...]
    read: Int[np.ndarray, " k"]


def read_features(
    model: ImageModel, images: Sequence[str], *, max_num_patches: int, blocks: int, label: str
) -> ImageFeatures:
    """Reads images on threads and runs the tower on them.

    Images that cannot be read are listed in `failed` of a `Measured` model, and warned of with any
    other. On several hosts each does its share for a `Measured` model, whose parameters are on
    local devices, and all get all features; other models run on all hosts together.

    Args:
      model: gives features.
      images: paths, at least one; all of them may be unreadable.
      max_num_patches: token budget at native resolution.
      blocks: number of evenly spaced blocks; 0 means the tokens after the last LayerNorm.
      label: of the progress bar.

    Raises:
      ValueError: the model has fewer blocks, or does not expose its parameters.
    """
    shared = isinstance(model, Measured)
    processes = jax.process_count() if shared else 1
    size = max(1, IMAGES_AT_ONCE // processes)
    paths = list(own_share(images, size) if shared else images)
    items, rounds = _prepared(model.preprocess, paths, max_num_patches), []
    with progress(label) as show, _noted(model, len(images), len(paths)) as notes:
        for start in range(0, len(images), size * processes):
            before = time.perf_counter()
            batch = list(islice(items, size))
            notes.waited += time.perf_counter() - before
            notes.failed += [str(item) for item in batch if isinstance(item, ImageError)]
            rows = size if processes > 1 else len(batch)
            encoded = _encoded(model, batch, rows, max_num_patches, blocks)
            end = min(start + size * processes, len(images))
            rounds.append(_gathered(encoded, end - start) if processes > 1 else encoded)
            show(end, len(images))
    readable = np.concatenate([mask for mask, _ in rounds])
    parts = [jax.tree.map(lambda x, mask=mask: x[mask], features) for mask, features in rounds]
    features = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return ImageFeatures(features, readable.nonzero()[0])


def _prepared(preprocess: Any, images: Sequence[str], budget: int) -> Iterator[Any]:
    """Patches and grid of each image, or the error of an unreadable one."""

    def prepare(image: str) -> Any:
        try:
            return preprocess.to_patches(preprocess.open(image), budget)
        except ImageError as error:
            return error

    return thread_map(prepare, images, IMAGES_AT_ONCE)


def _encoded(model: Any, items: list[Any], rows: int, budget: int, blocks: int) -> Encoded:
    """Features of a batch of images, padded to a number of rows by images without patches.

    `model` is an `ImageModel` and, where `blocks` are read, a `BlocksModel` too.
    """
    preprocess = model.preprocess
    empty = np.zeros((0, 3 * preprocess.patch_size**2), np.float32), (0, 0)
    padded = items + [None] * (rows - len(items))
    readable = [not (item is None or isinstance(item, ImageError)) for item in padded]
    patches = [item if ok else empty for item, ok in zip(padded, readable, strict=True)]
    image = pad_and_stack(patches, preprocess.num_tokens(budget))
    features = block_features(model, image, blocks) if blocks else (model.image_features(image),)
    return np.array(readable), features


def _gathered(encoded: Encoded, total: int) -> Encoded:
    """The rows of all processes, in order, without the padding at the end."""
    all_rows = process_allgather(encoded)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total], all_rows)


class _Notes:
    """Notes on one call: seconds waited for images, sentences on unreadable images."""

    def __init__(self) -> None:
        self.waited, self.failed = 0.0, list[str]()


@contextmanager
def _noted(model: ImageModel, count: int, share: int) -> Iterator[_Notes]:
    """Updates the counts of a `Measured` model, or warns of unreadable images of any other.

    `count` images are read by all processes, `share` of them by this one.
    """
    notes, start = _Notes(), time.perf_counter()
    if not isinstance(model, Measured):
        yield notes
        for problem in notes.failed:
            warnings.warn(f"{problem}; the probe goes on without it", stacklevel=4)
        return
    images, embedded = model.images + count, model.embedded + share
    seconds, data_wait = model.seconds, model.data_wait
    yield notes
    model.images, model.embedded = images, embedded
    model.seconds = seconds + time.perf_counter() - start
    model.data_wait = data_wait + notes.waited
    notes.failed = gather_texts(notes.failed)
    model.failed += notes.failed
