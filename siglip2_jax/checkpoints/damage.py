"""Damage of a run's checkpoints: files that are missing, cut off or overwritten.

Files that describe arrays have checksums, and so have indices within their data. Values have
digests in the record, so that other ones are noticed where changed bytes still decompress.
Checkpoints of early releases have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax.checkpoints.arrays import (
    DamagedTree,
    describe_arrays,
    list_arrays,
    read_array,
    read_description,
)
from siglip2_jax.checkpoints.digest import digest
from siglip2_jax.checkpoints.table import ConversionError, Shape

RECORD = "_CHECKPOINT_METADATA"
DIGESTS, SEAL = "digests", "seal"  # of a record: of arrays by tree and path, and of itself
NEEDED = ("step", "stage", "stages", "position", "bad_examples")  # of a record, to resume
THREADS = 8  # that read arrays, each of which is in memory meanwhile


def find_damage(step: epath.Path, part: int = 0, parts: int = 1) -> str | None:
    """Phrase for the missing or damaged part of a checkpoint; None if the checkpoint is whole.

    Args:
      step: directory of the checkpoint.
      part: reads the arrays of this part alone, from 0 up.
      parts: number of parts, such as processes that share the work.

    Raises:
      OSError: the store cannot be read.
    """
    try:
        record = _read_record(step)
        trees = read_description(step, RECORD).get("item_handlers")
        if not trees or not isinstance(trees, dict):
            return "it has no record"
        if lacking := [name for name in NEEDED if name not in record]:
            return f"its record lacks {lacking[0]!r}"
        if trees.keys() != record.get(DIGESTS, trees).keys():
            return "its record is of other trees"
        for tree in sorted(trees):
            _check_tree(step, tree, record, part, parts)
    except DamagedTree as damage:
        return str(damage)
    return None


def read_record(step: epath.Path) -> dict[str, Any]:
    """Record that a run saved beside the arrays of a checkpoint; opens none of them.

    Raises:
      ConversionError: it is missing or damaged.
    """
    with _reported(step):
        return _read_record(step)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a digest of itself."""
    return {**record, SEAL: _seal(record)}


def _read_record(step: epath.Path) -> dict[str, Any]:
    """Record of a checkpoint, as it was saved.

    Raises:
      DamagedTree: it is missing or damaged.
    """
    record = read_description(step, RECORD).get("custom_metadata")
    if not record or not isinstance(record, dict):
        raise DamagedTree("it has no record")
    if {SEAL, DIGESTS} & record.keys() and record.get(SEAL) != _seal(record):
        raise DamagedTree("its record is not the one that was saved")
    return record


def _seal(record: Mapping[str, Any]) -> str:
    """Digest of a record without its seal."""
    text = json.dumps({key: x for key, x in record.items() if key != SEAL}, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def read_shapes(step: epath.Path, tree: str) -> dict[str, tuple[Shape, np.dtype]]:
    """Reads shapes and dtypes of the arrays of a tree of a checkpoint, by path.

    Raises:
      ConversionError: the checkpoint is damaged.
    """
    with _reported(step):
        return describe_arrays(step / tree, list_arrays(step, tree))


@contextlib.contextmanager
def _reported(step: epath.Path) -> Iterator[None]:
    """Raises damage as a ConversionError that names the checkpoint."""
    try:
        yield
    except DamagedTree as damage:
        raise ConversionError([f"the checkpoint is damaged ({damage})"], str(step)) from None


def read_whole(step: epath.Path, tree: str, path: str, record: Mapping[str, Any]) -> np.ndarray:
    """Reads an array of a tree of a checkpoint, and checks its values.

    Raises:
      DamagedTree: it is missing or damaged.
      OSError: the store cannot be read.
    """
    array = read_array(step / tree, path)
    expected = record.get(DIGESTS, {}).get(tree, {}).get(path)
    if expected is not None and digest(array) != expected:
        raise DamagedTree(f"values of {tree}/{path} are not those that were saved")
    return array


def _check_tree(
    step: epath.Path, tree: str, record: Mapping[str, Any], part: int, parts: int
) -> None:
    """Reads the description of a tree of a checkpoint, and its share of the arrays."""
    paths = list_arrays(step, tree)
    if set(paths) != set(record.get(DIGESTS, {}).get(tree, paths)):
        raise DamagedTree(f"{tree}/ lists other arrays than were saved")

    def read(path: str) -> None:
        read_whole(step, tree, path, record)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(read, paths[part::parts]))
