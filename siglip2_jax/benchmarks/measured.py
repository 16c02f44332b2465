"""Model as `siglip2 eval` gives it to evaluators: shares work among hosts, and keeps counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from siglip2_jax.benchmarks.gather import gather_blocks, gather_texts
from siglip2_jax.data.prefetch import batched
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE, Embedder
from siglip2_jax.preprocess.decode import ImageError, ImageSource
from siglip2_jax.progress import Update
from siglip2_jax.resumable import Rows

T = TypeVar("T")


class Measuring:
    """Counts of one evaluation, and the share of its work that each process does.

    Each process works on every n-th block of the images, on its own devices, and all get all
    answers: evaluators on several hosts see what they see on one. Answers are saved in parts, so
    that the same evaluation, started again, goes on where it was.

    Attributes:
      failed: a sentence for each image that could not be read, in no particular order.
      images: number of images of all calls, also those answered before an interruption.
      embedded: number of images that this process has embedded itself.
      seconds: what that took.
      data_wait: seconds of them that the device waited for decoded images.
    """

    def __init__(self, model: Any, directory: str | os.PathLike[str] | None, batch_size: int):
        """Begins an evaluation, or goes on with it.

        Args:
          model: what is measured; its `data_wait`, if it has one, is noted.
          directory: where answers are kept until the evaluation is over, local or
            `gs://`; None keeps none.
          batch_size: images per program call.
        """
        self._model = model
        self._directory = directory
        self._batch_size = batch_size
        self._show: Update | None = None
        self._expected = 0
        self._calls = 0
        self.failed: list[str] = []
        self.images = self.embedded = 0
        self.seconds = self.data_wait = 0.0

    def report_to(self, show: Update, expected: int = 0) -> None:
        """Reports to `show` how many images are done, and of how many where that is known."""
        self._show, self._expected = show, expected

    def _begin(self, width: int) -> Rows:
        """Rows of this process for the next call, with those of an interrupted evaluation."""
        self._calls += 1
        prefix = f"{jax.process_index():05d}-{self._calls - 1:03d}-"
        return Rows(self._directory, width, prefix=prefix)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start, waited = time.perf_counter(), getattr(self._model, "data_wait", 0.0)
        yield
        self.seconds += time.perf_counter() - start
        self.data_wait += getattr(self._model, "data_wait", 0.0) - waited

    def _count(self, done: int, expected: int) -> None:
        """Counts one more image; this call has `done` by now, of `expected` in all."""
        self.embedded += 1
        if self._show is not None:
            done = self.images + done * jax.process_count()  # as if all were as fast
            self._show(min(done, expected or done), expected or done + 1)


class Measured(Measuring):
    """Wraps an embedder for one evaluation: evaluators see a `base.Model` that shares its work.

    Attributes:
      config, params, mesh, variant, preprocess, text_norm, dtype, weights: those of the embedder.
    """

    def __init__(
        self,
        model: Embedder,
        directory: str | os.PathLike[str] | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ):
        """Makes the measured model, with the settings of `Measuring`.

        Args:
          model: embeds images and texts; on several hosts it must run on local devices only.
          directory: where rows are kept until the evaluation is over, local or
            `gs://`; None keeps none.
          batch_size: images per program call.
        """
        super().__init__(model, directory, batch_size)
        self.config, self.params, self.mesh = model.config, model.params, model.mesh
        self.variant, self.preprocess = model.variant, model.preprocess
        self.text_norm, self.dtype, self.weights = model.text_norm, model.dtype, model.weights

    def embed_texts(self, texts: Any, **options: Any) -> Float[np.ndarray, "n E"]:
        """Embeds texts as `Embedder.embed_texts` does; every process embeds all of them."""
        return self._model.embed_texts(texts, **options)

    def embed_images(
        self,
        images: Iterable[ImageSource],
        *,
        max_num_patches: int = 256,
        batch_size: int | None = None,
        normalize: bool = True,
        on_error: str = "warn",
    ) -> Float[np.ndarray, "n E"]:
        """Embeds images; rows of unreadable images are NaN, without a warning each."""
        rows = self._begin(self._model.config.vision.width)
        counter = Counter(images)
        size = batch_size or self._batch_size
        remaining = islice(own_share(counter, size), len(rows), None)
        with self._timed():
            for row in self._model.stream_images(remaining, max_num_patches, size, normalize):
                if isinstance(row, ImageError):
                    if on_error == "raise":
                        raise row
                    rows.add(None, str(row))
                else:
                    rows.add(row)
                self._count(len(rows), self._expected)
            rows.save()
        self.images += counter.count
        self.failed += gather_texts(rows.texts())
        return gather_blocks(rows.rows(), counter.count, size)

    def image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Features as the model gives them; every host does the whole work."""
        with self._timed():
            features = self._model.image_features(*args, **kwargs)
        self.embedded += len(features.image)
        self.images += len(features.image)
        if self._show is not None:
            self._show(self.images, max(self.images, self._expected))
        return features


class Counter(Generic[T]):
    """Counts items as they are taken."""

    def __init__(self, items: Iterable[T]):
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.count += 1
            yield item


def own_share(items: Iterable[T], size: int, process: int | None = None) -> Iterator[T]:
    """Items of every n-th block, where n is the number of processes; reads all items.

    Args:
      items: of all processes.
      size: items of a block.
      process: whose share; None means this process's.
    """
    process = jax.process_index() if process is None else process
    for i, block in enumerate(batched(items, size)):
        if i % jax.process_count() == process:
            yield from block
