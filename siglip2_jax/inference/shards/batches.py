"""Embeddings of batches of items as they are read: decoding and the model overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Shaped

from siglip2_jax.data.items.item import Item, ItemBatch, Shard
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.data.workers.machine import usable_cores, worker_count
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.programs import fill, most_rows, place, programs, run_batch
from siglip2_jax.inference.shards.manifest import Options
from siglip2_jax.preprocess.decode import ImageError

_THREADS = 2  # of each worker process


def batch_rows(model: Embedder, options: Options) -> int:
    """Rows of a program call, on all devices of a model."""
    devices = 1 if model.mesh is None else model.mesh.size
    tokens = model.preprocess.num_tokens(options.max_num_patches)
    return devices * most_rows(options.batch_size, tokens)


def open_reader(
    model: Embedder,
    shards: Sequence[Shard],
    options: Options,
    known: Shaped[np.ndarray, " known"] | None = None,
) -> ItemReader:
    """Opens the reader of shards whose batches are made for a model and placed on its devices.

    Args:
      model: what embeds.
      shards: what to read.
      options: those of the run; all batches are filled up to `batch_rows`.
      known: contents that need no embedding, as `ItemReader` takes them.
    """
    batch_size = batch_rows(model, options)
    return ItemReader(
        shards,
        model.preprocess,
        columns=options.columns,
        max_num_patches=options.max_num_patches,
        batch_size=batch_size,
        workers=(workers := worker_count(options.workers)),
        threads=_THREADS if workers else usable_cores(),
        scaled_decode=options.scaled_decode,
        pixels=model.dtype,
        known=known,
        place=lambda patches: place(fill(patches, batch_size), model.mesh),
    )


def embed_batches(
    model: Embedder, batches: Iterable[ItemBatch], strict: bool = False
) -> Iterator[tuple[ItemBatch, Float[np.ndarray, "n E"]]]:
    """Gives each batch with its rows, which come one batch later.

    So a device has the next batch before the rows of one are taken from it. A row depends on its
    image and on the shape of the batch, not on the other images.

    Args:
      model: what embeds.
      batches: on its devices.
      strict: stop at an item with an error.

    Raises:
      ImageError: an item has an error, and it is strict.
    """
    embed_image = programs(model.config, model.dtype).embed_image
    program, before = partial(embed_image, normalize=True), None
    for batch in batches:
        if strict:
            _refuse_errors(batch.items)
        if _is_known(batch.items):
            rows = np.zeros((len(batch.items), model.config.vision.width), np.float32)
        else:
            rows = run_batch(program, model.params, batch.patches, model.mesh)
        if before is not None:
            yield _taken(*before)
        before = batch, rows
    if before is not None:
        yield _taken(*before)


def _is_known(items: Sequence[Item]) -> bool:
    """True where what can be embedded is known; most batches are, when a database is updated."""
    good = [item.known for item in items if item.error is None]
    return len(good) > 0 and all(good)


def _taken(batch: ItemBatch, rows: jax.Array | np.ndarray) -> tuple[ItemBatch, np.ndarray]:
    return batch, np.asarray(rows)[: len(batch.items)]


def _refuse_errors(items: Sequence[Item]) -> None:
    for item in items:
        if item.error is not None:
            raise ImageError(item.error)
