"""Running a program over any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from siglip2_jax.sharding import BATCH, device_put_global

T = TypeVar("T")


def run_rows(mesh: Mesh | None, program: Callable[[T], Any], rows: T, size: int) -> Any:
    """The outputs for all rows, as NumPy arrays.

    Args:
      mesh: where rows are split over; None runs on one device.
      program: compiled; its outputs have the rows' leading axis, whole on every device.
      rows: a pytree of NumPy arrays with one leading axis, not empty.
      size: rows of a call; the last ones are filled up with zeros.
    """
    total = len(jax.tree.leaves(rows)[0])
    devices = 1 if mesh is None else mesh.size
    size = -(-min(size, total) // devices) * devices

    def fill(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)])

    parts = []
    for start in range(0, total, size):
        batch = jax.tree.map(lambda x, s=start: fill(np.asarray(x)[s : s + size]), rows)
        if mesh is None:
            outputs = program(batch)
        else:
            with jax.set_mesh(mesh):
                split = partial(device_put_global, sharding=NamedSharding(mesh, BATCH))
                outputs = program(jax.tree.map(split, batch))
        parts.append(jax.tree.map(lambda x, n=total - start: np.asarray(x)[:n], outputs))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
