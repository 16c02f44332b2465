"""Reader of items: shards to batches of patches, prepared ahead by threads or processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from siglip2_jax.data.items.item import USUAL, Columns, ItemBatch, Shard
from siglip2_jax.data.items.known import Known
from siglip2_jax.data.items.work import ItemWork, Opened, Step
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.prepare import check_scaled_decode
from siglip2_jax.data.stores.client import Counts
from siglip2_jax.data.workers.steps import Steps
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.types import Patches

_AHEAD = 1  # shards that are opened before they are needed
_PIECE = 16  # items of a piece of work at most, where they are not read in blocks


def _copy(patches: Patches) -> Patches:
    return jax.tree.map(np.array, patches)


class ItemReader:
    """Iterator over the batches of shards, in order; a context manager, which ends its workers.

    A batch is `batch_size` consecutive items of one shard, the last one of a shard fewer: what is
    in a batch depends on the shard and on `batch_size` alone. An image that cannot be read is an
    item with an error; a shard that is no whole file of its kind has one such item alone. What is
    wrong with the machine, the network or a permission stops with a SourceError.

    Attributes:
      restarts: worker processes that were lost and started again.
      requests: those to stores.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        preprocess: ImagePreprocessor,
        *,
        columns: Columns = USUAL,
        max_num_patches: int = 256,
        batch_size: int = 32,
        workers: int = 0,
        threads: int = 2,
        prefetch: int = 2,
        scaled_decode: bool = False,
        pixels: str = "float32",
        known: Shaped[np.ndarray, " known"] | None = None,
        patience: float = PATIENCE,
        place: Callable[[Patches], Patches] = _copy,
    ) -> None:
        """Starts workers; nothing is read before the first batch is asked for.

        Args:
          shards: what to read, as `find_items` gives it, or some of it.
          preprocess: how images become patches.
          columns: what to keep of each item, the same as for `find_items`.
          max_num_patches: patches an image may have, at native resolution.
          batch_size: items of a batch.
          workers: processes that prepare items; 0 for threads alone. Processes start anew, so a
            script that uses them needs an `if __name__ == "__main__":` guard.
          threads: threads that prepare items, in each process.
          prefetch: batches prepared ahead; so many and one more are held in memory.
          scaled_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as `Prepare` says.
          pixels: the dtype in which patches travel. In "bfloat16" half as much does, and a model of
            that dtype gives the same, bit for bit.
          known: `content` of items that need not be decoded, as sorted array of dtype S32.
          patience: seconds that reading goes on trying what may pass.
          place: makes what is given of a batch's NumPy arrays, at once; must not return the arrays
            themselves, which are written again. Copies them unless told otherwise.

        Raises:
          ValueError: a number is too small, or `scaled_decode` would change what the model sees.
        """
        if workers < 0 or min(batch_size, threads, prefetch) < 1:
            raise ValueError(
                "batch_size, threads and prefetch must be at least 1 and workers at least 0, got "
                f"{batch_size}, {threads}, {prefetch} and {workers}"
            )
        if scaled_decode:
            check_scaled_decode(preprocess.antialiased, ())
        slots, hands = prefetch + 1, max(1, workers) * threads
        self._known = None if known is None else Known(known)
        self._work = ItemWork(
            Opened(shards, patience, threads + 1),
            preprocess,
            columns,
            max_num_patches,
            batch_size,
            max(1, min(_PIECE, batch_size // hands)),
            max(1, slots * batch_size // hands),
            threads,
            scaled_decode,
            self._known,
            patience,
            pixels,
        )
        self._place, self._shards = place, shards
        self.restarts, self.requests = 0, Counts()
        self._plan = self._read_ahead()
        self._steps, self._keys = itertools.tee(self._plan)
        self._team = Steps(
            self._work,
            self._keys,
            workers=workers,
            threads=threads,
            slots=slots,
            patience=patience,
        )

    def __enter__(self) -> ItemReader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[ItemBatch]:
        for step in self._steps:
            filled = self._team.take()
            patches = self._place(filled.batch)
            jax.block_until_ready(patches)  # on the devices: the buffer may be written again
            self._team.release(filled.slot)
            items = [item for outcome in filled.outcomes for item in outcome.items]
            self.restarts += filled.restarts
            self.requests = sum((x.requests for x in filled.outcomes), self.requests)
            yield ItemBatch(step.shard, step.first, step.total, items, patches)

    def close(self) -> None:
        """Ends all workers."""
        self._team.close()
        self._plan.close()
        if self._known is not None:
            self._known.close()

    def _read_ahead(self) -> Generator[Step, None, None]:
        """All batches; shards are opened before they are needed."""
        for shard in thread_map(self._work.measure, range(len(self._shards)), _AHEAD):
            yield from self._work.batches(shard)
