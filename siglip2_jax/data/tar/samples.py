"""Samples of tars as examples: read by their positions, captions and fields parsed."""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Sequence
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
from siglip2_jax.data.files import read_at
from siglip2_jax.data.patience import of_file
from siglip2_jax.data.tar.index import TarIndex
from siglip2_jax.data.text import parse_json

_log = logging.getLogger(__name__)


class TarExamples:
    """Examples of local tars by their indices, each read by itself."""

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
        return make_sample(path, name, _read_files(path, spans, name), self._told)


def make_sample(
    path: str, name: str, files: Sequence[bytes | None], told: set[str]
) -> dict[str, Any]:
    """The example of a sample.

    Args:
      path: the tar.
      name: the example's name.
      files: the image, text and JSON of the sample.
      told: tars of which one half-broken sample was logged.

    Raises:
      ExampleError: neither its text nor its JSON can be used.
    """
    image, text, row = files
    captions, fields, problems = _read_captions(text, row, name)
    if problems and not captions:
        raise ExampleError(" ".join(problems), name)
    if problems and path not in told:
        told.add(path)
        _log.warning("%s Only its other file is used, as with all like it here.", problems[0])
    return make_example(image or b"", captions, name, fields)


def _read_files(path: str, spans: Int64[np.ndarray, 6], name: str) -> list[bytes | None]:
    """The image, text and JSON of a sample."""
    # Opened anew each time: handles of thousands of tars would exceed the system's limit.
    handle = os.open(path, os.O_RDONLY)
    try:
        with of_file(path):
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
    data = read_at(handle, offset, size)
    if len(data) < size:
        raise SourceError(
            f"{name}: the tar has become shorter since it was opened; put it back, or run the "
            "same command again to index it anew"
        )
    return data
