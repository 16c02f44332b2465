"""Webdataset tars, as img2dataset writes them, with random access.

A sample is the members that share a key and stand together, a key being a member's path up to the
first dot of its base name (the convention of github.com/webdataset/webdataset): `key.jpg` or
another image, `key.txt` with a caption, `key.json` with fields and perhaps captions.

- A key that comes again after another one, or in the next of several joined archives, is another
  sample, called `key#2`.
- Two images, texts or JSON files of one key in a row are ambiguous: the sample is left out.
- Members with other suffixes, hidden ones, and images such as `key.mask.png` beside `key.jpg` are
  not read.
- Links, hard and symbolic, to members of the same tar are followed.

Where samples are left out, or a tar is damaged, one warning for each tar counts them and names the
first.
"""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.example import (
    ExampleError,
    SourceError,
    as_captions,
    make_example,
    row_captions,
)
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.tar_index import TarIndex, index_tar
from siglip2_jax.data.text import parse_json

_AHEAD = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tars:
    """Webdataset tars. They are indexed once; the index is kept beside each as `<tar>.idx.npz`.

    An index takes some 70 bytes of memory a sample; beyond some ten million samples, convert to
    ArrayRecord (`pack.pack`).

    Attributes:
      pattern: a tar, a directory of them, or a glob; local, uncompressed.
    """

    pattern: str

    def open(self) -> Examples:
        """Reads the tars' indices, and makes those that are missing or stale.

        Raises:
          ValueError: there are no tars, one is no tar, or they hold no samples.
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
      ValueError: there are no tars, one is no tar, or they hold no samples.
    """
    paths = find_shards(pattern, ".tar")
    indices = []
    for index in thread_map(index_tar, paths, _AHEAD):
        indices.append(index)
        if progress:
            progress(len(indices), len(paths))
    if not any(map(len, indices)):
        raise ValueError(
            f"{pattern}: no sample to use in {len(paths)} tar file{'s'[: len(paths) != 1]}; "
            "expected members such as 000.jpg with 000.txt, one after the other"
        )
    return indices


class _TarExamples:
    def __init__(self, indices: list[TarIndex]) -> None:
        self._indices = indices
        self._ends = list(accumulate(map(len, indices)))
        self._told: set[str] = set()  # tars of which one half-broken sample was logged

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def left_out(self) -> int:
        """Number of samples of the tars that are none of these."""
        return sum(index.left_out for index in self._indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        tar = bisect.bisect_right(self._ends, index)
        start = self._ends[tar - 1] if tar else 0
        path, spans = self._indices[tar].path, self._indices[tar].spans[index - start]
        name = f"{path}:{self._indices[tar].keys[index - start]}"
        image, text, row = _read_files(path, spans, name)
        captions, fields, problems = _read_captions(text, row, name)
        if problems and not captions:
            raise ExampleError(" ".join(problems), name)
        if problems and path not in self._told:
            self._told.add(path)
            _log.warning("%s Only its other file is used, as with all like it here.", problems[0])
        return make_example(image or b"", captions, name, fields)


def _read_files(path: str, spans: Int64[np.ndarray, 6], name: str) -> list[bytes | None]:
    """The image, text and JSON of a sample."""
    # Opened anew each time: handles of thousands of tars would exceed the system's limit.
    handle = os.open(path, os.O_RDONLY)
    try:
        return [
            _read(handle, int(offset), int(size), name) if offset >= 0 else None
            for offset, size in spans.reshape(3, 2)
        ]
    finally:
        os.close(handle)


def _read_captions(
    text: bytes | None, row: bytes | None, name: str
) -> tuple[tuple[str, ...], dict[str, Any], list[str]]:
    """Captions and fields of a sample, and sentences on the files that cannot be used."""
    captions, fields, problems = [], {}, []
    try:
        captions += as_captions(text, name)
    except ValueError as error:
        problems.append(str(error))
    try:
        fields = _read_fields(row, name)
        captions += row_captions(fields, None, name)
    except ValueError as error:
        problems.append(str(error))
    return tuple(dict.fromkeys(captions)), fields, problems  # img2dataset writes one into both


def _read_fields(row: bytes | None, name: str) -> dict[str, Any]:
    if row is None:
        return {}
    try:
        fields = parse_json(row)
    except ValueError as error:
        raise ValueError(f"{name}: its .json is {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: its .json holds {type(fields).__name__}, expected an object.")
    return fields


def _read(handle: int, offset: int, size: int, name: str) -> bytes:
    data = b""
    while len(data) < size:  # a system call gives at most 2 GiB, and network disks less
        piece = os.pread(handle, size - len(data), offset + len(data))
        if not piece:
            raise SourceError(
                f"{name}: the tar has become shorter since it was opened; put it back, or run the "
                "same command again to index it anew"
            )
        data += piece
    return data
