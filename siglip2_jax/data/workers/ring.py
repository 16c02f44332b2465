"""Step buffers in memory that processes share: arrays of a batch, written and read in place."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

import jax
import numpy as np

B = TypeVar("B")  # a batch: a tree of arrays
_ALIGNMENT = 128  # bytes; of every array, so that no two writers share a cache line


class SharedBytes:
    """Memory without a name, which ends with the last process that has it, however that ends.

    On Linux it is no file in /dev/shm, which containers keep at 64 MB. It may be handed to a
    process when that is started, and only then.
    """

    def __init__(self, size: int) -> None:
        """Takes `size` bytes, all 0; memory is used from the first write on."""
        self._use(_nameless(size), size)

    def _use(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._close = weakref.finalize(self, os.close, descriptor)
        self.bytes = mmap.mmap(descriptor, max(size, 1))

    def __getstate__(self) -> dict[str, Any]:
        return {"descriptor": DupFd(self._descriptor), "size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._use(state["descriptor"].detach(), state["size"])


def _nameless(size: int) -> int:
    """Descriptor of new memory that no name leads to."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("siglip2_jax")
    else:  # macOS: a file that is deleted already
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, max(size, 1))
    return descriptor


class Ring:
    """A number of buffers, each of which holds any of the batches to come. Shared like its bytes.

    Attributes:
      slots: how many there are.
    """

    def __init__(self, slots: int, size: int) -> None:
        """Takes memory for `slots` batches of at most `size` bytes (`batch_bytes`) each."""
        self.slots, self._size = slots, size
        self._memory = SharedBytes(slots * size)

    def batch(self, slot: int, row: B, rows: int) -> B:
        """The arrays of a batch in one of the buffers, as they were left there.

        Args:
          slot: which buffer.
          row: a batch of one example, of the same structure, dtypes and shapes.
          rows: how many the batch has.
        """
        offset = slot * self._size

        def place(leaf: np.ndarray) -> np.ndarray:
            nonlocal offset
            shape = (rows, *leaf.shape[1:])
            array = np.frombuffer(self._memory.bytes, leaf.dtype, np.prod(shape, dtype=int), offset)
            offset += _aligned(array.nbytes)
            return array.reshape(shape)

        return jax.tree.map(place, row)


def batch_bytes(row: Any, rows: int) -> int:
    """Memory of a buffer for so many rows like that of `row`, a batch of one example."""
    return sum(_aligned(rows * leaf.nbytes) for leaf in jax.tree.leaves(row))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
