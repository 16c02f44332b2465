"""Images of hits, by their ids alone: files, members of local tars, rows of local Parquet files."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from siglip2_jax.data.parquet import SUFFIX as PARQUET
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.tar.index import TarIndex, index_tar
from siglip2_jax.data.tar.samples import TarExamples
from siglip2_jax.data.tars import SUFFIX as TAR

_INSIDE = re.compile(rf"(.*(?:{re.escape(TAR)}|{re.escape(PARQUET)})):(.+)", re.S)


def read_hit(item: str) -> str | bytes | None:
    """The image file of an item: its path, or its bytes out of a tar or Parquet file.

    Args:
      item: the id, as an embedding run gives it: "cat.jpg", "shard.tar:000017" or
        "train.parquet:17".

    Returns:
      None where the id tells of no image that is here, as where a column was chosen as the id.

    Raises:
      ValueError: the file is there, and its content cannot be used.
      OSError: it cannot be read.
    """
    if item.startswith("gs://") or os.path.isfile(item):
        return item
    match = _INSIDE.fullmatch(item)
    if match is None or not os.path.isfile(match[1]):
        return None
    path, inner = match.groups()
    return _from_tar(path, inner) if path.endswith(TAR) else _from_parquet(path, inner)


def _from_tar(path: str, key: str) -> bytes | None:
    index, places = _tar(path, os.stat(path).st_mtime_ns)
    place = places.get(key)
    return None if place is None else TarExamples([index])[place]["image"]


@functools.lru_cache(8)
def _tar(path: str, mtime_ns: int) -> tuple[TarIndex, dict[str, int]]:
    """The index of a tar, and the place of each key in it."""
    index = index_tar(path)
    return index, {key: place for place, key in enumerate(index.keys)}


def _from_parquet(path: str, row: str) -> bytes | None:
    examples = _parquet(path, os.stat(path).st_mtime_ns)
    if examples is None or not row.isdecimal() or int(row) >= len(examples):
        return None
    return examples[int(row)]["image"]


@functools.lru_cache(8)
def _parquet(path: str, mtime_ns: int) -> Examples | None:
    """The rows of a Parquet file, by its column `image` or the first that can hold images."""
    from pyarrow import types
    from pyarrow.parquet import read_schema

    def holds_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
        return holds_bytes(kind)

    columns = [field.name for field in read_schema(path) if holds_images(field.type)]
    columns.sort(key=lambda name: name != "image")
    return Parquet(path, image=columns[0], caption=None).open() if columns else None
