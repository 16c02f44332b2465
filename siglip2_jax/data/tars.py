"""Webdataset tars, as img2dataset writes them, with random access.

A sample is the members that share a key, a member's path up to the first dot of its base name
(the convention of github.com/webdataset/webdataset): `key.jpg` or another image, `key.txt` with a
caption, `key.json` with fields and perhaps captions.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from siglip2_jax.data.example import as_captions, make_example, row_captions
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.tar_index import TarIndex, index_tar

_AHEAD = 32


@dataclass(frozen=True)
class Tars:
    """Webdataset tars. They are indexed once; the index is kept beside each as `<tar>.idx.json`.

    An index takes some 70 bytes of memory a sample; beyond some ten million samples, convert to
    ArrayRecord (`pack.pack`).

    Attributes:
      pattern: a tar, a directory of them, or a glob; local, uncompressed.
    """

    pattern: str

    def open(self) -> Examples:
        """Reads the tars' indices, and makes those that are missing or stale.

        Raises:
          ValueError: there are no tars, one is no tar, or they hold no images.
        """
        return _TarExamples(index_tars(self.pattern))


def index_tars(pattern: str, progress: Callable[[int, int], None] | None = None) -> list[TarIndex]:
    """Indexes tars ahead of use.

    Args:
      pattern: a tar, a directory of them, or a glob.
      progress: called after every tar with the number done and the number there are.

    Returns:
      The indices, in the order of the sorted paths.

    Raises:
      ValueError: there are no tars, one is no tar, or they hold no images.
    """
    paths = find_shards(pattern, ".tar")
    indices = []
    for index in thread_map(index_tar, paths, _AHEAD):
        indices.append(index)
        if progress:
            progress(len(indices), len(paths))
    if not any(map(len, indices)):
        raise ValueError(
            f"{pattern}: no image in {len(paths)} tar file{'s'[: len(paths) != 1]}; expected "
            "webdataset samples such as 000.jpg with 000.txt"
        )
    return indices


class _TarExamples:
    def __init__(self, indices: list[TarIndex]) -> None:
        self._indices = indices
        self._ends = list(accumulate(map(len, indices)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        tar = bisect.bisect_right(self._ends, index)
        start = self._ends[tar - 1] if tar else 0
        return _read_sample(self._indices[tar], index - start)


def _read_sample(index: TarIndex, row: int) -> dict[str, Any]:
    name = f"{index.path}:{index.keys[row].decode()}"
    # Opened anew each time: handles of thousands of tars would exceed the system's limit.
    handle = os.open(index.path, os.O_RDONLY)
    try:
        parts = [
            _read(handle, int(offset), int(size), name) if offset >= 0 else None
            for offset, size in index.spans[row].reshape(3, 2)
        ]
    finally:
        os.close(handle)
    image, text, raw = parts
    fields = json.loads(raw) if raw is not None else {}
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: its .json holds {type(fields).__name__}, expected an object.")
    captions = (*as_captions(text, name), *row_captions(fields, None, name))
    # img2dataset writes the same caption into both.
    return make_example(image or b"", tuple(dict.fromkeys(captions)), name, fields)


def _read(handle: int, offset: int, size: int, name: str) -> bytes:
    data = b""
    while len(data) < size:  # a system call gives at most 2 GiB, and network disks less
        piece = os.pread(handle, size - len(data), offset + len(data))
        if not piece:
            raise OSError(f"{name}: the tar has become shorter since it was opened.")
        data += piece
    return data
