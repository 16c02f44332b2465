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
from siglip2_jax.preprocess.image import ImagePreprocessor, pad_and_stack
from siglip2_jax.progress import progress
from siglip2_jax.types import Features

IMAGES_AT_ONCE = 256
"""Of all hosts together: what they exchange at once, about 1 GB for four blocks of So400m."""

Found = tuple[Bool[np.ndarray, " _"], tuple[Features, ...]]
"""Which images could be read, and a row for each, meaningless where it could not."""


@runtime_checkable
class ImageModel(Model, Protocol):
    """A model that shows how it prepares images."""

    @property
    def preprocess(self) -> ImagePreprocessor:
        """Images to patches."""
        ...


class ImageFeatures(NamedTuple):
    """Features of those images that can be read.

    Attributes:
      features: of each block that was asked for, NumPy arrays.
      read: which images they are of, in order.
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
      blocks: of how many evenly spaced blocks; 0 means the tokens after the last LayerNorm.
      label: what is shown meanwhile.

    Raises:
      ValueError: the model has no such blocks, or does not show them.
    """
    shared = isinstance(model, Measured)
    processes = jax.process_count() if shared else 1
    size = max(1, IMAGES_AT_ONCE // processes)
    own = list(own_share(images, size) if shared else images)
    items, rounds = _prepared(model.preprocess, own, max_num_patches), []
    with progress(label) as show, _noted(model, len(images), len(own)) as notes:
        for start in range(0, len(images), size * processes):
            before = time.perf_counter()
            some = list(islice(items, size))
            notes.waited += time.perf_counter() - before
            notes.failed += [str(item) for item in some if isinstance(item, ImageError)]
            rows = size if processes > 1 else len(some)
            found = _encoded(model, some, rows, max_num_patches, blocks)
            done = min(start + size * processes, len(images))
            rounds.append(_gathered(found, done - start) if processes > 1 else found)
            show(done, len(images))
    good = np.concatenate([good for good, _ in rounds])
    parts = [jax.tree.map(lambda x, good=good: x[good], found) for good, found in rounds]
    return ImageFeatures(jax.tree.map(lambda *x: np.concatenate(x), *parts), good.nonzero()[0])


def _prepared(preprocess: Any, images: Sequence[str], budget: int) -> Iterator[Any]:
    """Patches and grid of each image, or why there are none."""

    def prepare(image: str) -> Any:
        try:
            return preprocess.to_patches(preprocess.open(image), budget)
        except ImageError as error:
            return error

    return thread_map(prepare, images, IMAGES_AT_ONCE)


def _encoded(model: Any, items: list[Any], rows: int, budget: int, blocks: int) -> Found:
    """Features of some images, filled up to a number of rows by images without any patch.

    `model` is an `ImageModel` and, where `blocks` are read, a `BlocksModel` too.
    """
    preprocess = model.preprocess
    nothing = np.zeros((0, 3 * preprocess.patch_size**2), np.float32), (0, 0)
    good = [not isinstance(item, ImageError) for item in items]
    filled = [item if ok else nothing for item, ok in zip(items, good, strict=True)]
    missing = rows - len(items)
    filled, good = filled + [nothing] * missing, good + [False] * missing
    image = pad_and_stack(filled, preprocess.num_tokens(budget))
    found = block_features(model, image, blocks) if blocks else (model.image_features(image),)
    return np.array(good), found


def _gathered(found: Found, total: int) -> Found:
    """The rows of all processes, in order; what fills up the last ones is cut off."""
    everyone = process_allgather(found)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total], everyone)


class _Notes:
    """Notes on one call: seconds waited for images, sentences on unreadable images."""

    def __init__(self) -> None:
        self.waited, self.failed = 0.0, list[str]()


@contextmanager
def _noted(model: ImageModel, count: int, own: int) -> Iterator[_Notes]:
    """Has a `Measured` model's notes say what was done, or warns of images."""
    notes, start = _Notes(), time.perf_counter()
    if not isinstance(model, Measured):
        yield notes
        for problem in notes.failed:
            warnings.warn(f"{problem}; the probe goes on without it", stacklevel=4)
        return
    images, embedded = model.images + count, model.embedded + own
    seconds, data_wait = model.seconds, model.data_wait
    yield notes
    model.images, model.embedded = images, embedded
    model.seconds = seconds + time.perf_counter() - start
    model.data_wait = data_wait + notes.waited
    notes.failed = gather_texts(notes.failed)
    model.failed += notes.failed
