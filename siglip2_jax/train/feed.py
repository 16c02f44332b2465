"""Batches that every process has, so that all stop at the same step where one has none."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.pipeline import HostBatch
from siglip2_jax.sharding import put_batch, replicate

BATCHES_WAITING = 2
"""Batches on the devices of several hosts beside that of the step that runs (of one host, one).

The next one waits until all hosts have said that they have it; the one after is being placed.
"""
_LOST = "another process of the run cannot read its data, and says why"


class NoBatch(SourceError):
    """Error for a step whose data some process cannot read; all processes raise it before it."""


def agreed(batches: Iterator[HostBatch], count: int, mesh: Mesh) -> Iterator[HostBatch]:
    """Yields batches as long as every process has one; to be called under the mesh.

    Devices tell one another, a step before a batch is needed, so that no step waits for that.

    Args:
      batches: of this process.
      count: how many there are, the same in every process.
      mesh: all devices.

    Raises:
      NoBatch: this process cannot read its data, or another one cannot.
    """
    if jax.process_count() == 1:
        try:
            yield from batches
        except SourceError as error:
            raise NoBatch(str(error)) from error
        return
    yield from _together(batches, count, mesh)


def _together(batches: Iterator[HostBatch], count: int, mesh: Mesh) -> Iterator[HostBatch]:
    """Yields each batch after the next one is there and all devices have said so."""
    error: SourceError | None = None
    waiting: tuple[HostBatch | None, jax.Array] | None = None

    def checked(batch: HostBatch | None, everywhere: jax.Array) -> HostBatch:
        if everywhere:
            assert batch is not None
            return batch
        raise NoBatch(str(error or _LOST)) from error

    for _ in range(count):
        batch = None
        try:
            batch = None if error else next(batches)
        except SourceError as raised:
            error = raised
        following = batch, _all(put_batch(np.full(len(mesh.local_devices), error is None), mesh))
        if waiting is not None:
            yield checked(*waiting)
        waiting = following
    if waiting is not None:
        yield checked(*waiting)


@jax.jit
def _all(flags: jax.Array) -> jax.Array:
    return jnp.all(replicate(flags))
