"""Tables of paths of images with captions: CSV, TSV and JSON lines."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from etils import epath
from jaxtyping import Bool

from siglip2_jax.data.example import (
    ExampleError,
    as_captions,
    fill,
    make_example,
    naming,
)
from siglip2_jax.data.image_files import read_image
from siglip2_jax.data.rows import CsvRows, JsonRows, Keep, Rows, read_csv
from siglip2_jax.data.sources import Examples, find_repeats
from siglip2_jax.data.text import read_rows

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")


@dataclass(frozen=True)
class Table:
    """A table of images by their paths: `.csv` or `.tsv` with a header, or `.jsonl`.

    CSV is what Python's `csv` reads: fields may be quoted, and hold line breaks. Other columns
    become fields of the example, except the names in `example.RESERVED`.

    Attributes:
      path: the table, local or `gs://`.
      image: the column with the image's path: relative to the table's folder, absolute, `gs://` or
        `file://`. An example is named by it.
      caption: the column with the caption; in JSON lines perhaps a list of them. None for no
        captions.
      template: makes the caption of other columns instead: "a photo of a {name}".
    """

    path: str
    image: str = "image"
    caption: str | None = "caption"
    template: str | None = None

    def open(self) -> Examples:
        """Finds the rows; they and the images are read one by one later.

        Raises:
          ValueError: the table is missing or malformed, has no rows or lacks a column, or its
            images are on the web.
        """
        names: dict[str, None] = {}
        paths = array("q")

        def keep(number: int, row: Any) -> bool:
            if not isinstance(row, dict):
                raise ValueError(
                    f"{self.path}, line {number}: expected an object with columns, found "
                    f"{row!r:.60}"
                )
            names.update(dict.fromkeys(row))
            path = row.get(self.image)
            if isinstance(path, str) and path.startswith(("http://", "https://")):
                raise ValueError(
                    f"{self.path}, line {number}: {path:.80} is on the web; download the images "
                    "first, such as with img2dataset, and name the tars it writes"
                )
            paths.append(hash(path))
            return True

        rows = _open_rows(self.path, keep)
        if not len(rows):
            raise ValueError(f"{self.path}: there are no rows")
        wanted = [self.image]
        if self.template is None and self.caption is not None:
            wanted.append(self.caption)
        for column in wanted:
            if column not in names:
                raise ValueError(
                    f"{self.path} has no column {column!r}; its columns are {', '.join(names)}"
                )
        if self.template is not None:
            fill(self.template, rows[0], self.path)
        return _TableExamples(self, rows, find_repeats(np.array(paths, np.int64)))


def table_columns(path: str) -> list[str]:
    """The names of the columns that the first row of a table has; none where it has no rows.

    Raises:
      ValueError: there is no such file, or it is malformed.
    """
    delimiter = _DELIMITERS.get(PurePath(path).suffix.lower())
    rows = read_csv(path, delimiter) if delimiter else read_rows(path)
    with _expected(path):
        _, row, *_ = next(iter(rows), (0, {}))
    return list(row) if isinstance(row, dict) else []


def _open_rows(path: str, keep: Keep) -> Rows:
    delimiter = _DELIMITERS.get(PurePath(path).suffix.lower())
    with _expected(path):
        return CsvRows(path, delimiter, keep) if delimiter else JsonRows(path, keep)


@contextmanager
def _expected(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; expected {', '.join(SUFFIXES)}") from error


class _TableExamples:
    def __init__(self, source: Table, rows: Rows, repeats: Bool[np.ndarray, " n"]) -> None:
        self._source, self._rows, self._repeats = source, rows, repeats
        self._folder = os.fspath(epath.Path(source.path).parent)

    def __len__(self) -> int:
        return len(self._rows)

    def without_image(self, index: int, /) -> dict[str, Any]:
        return self._described(index)[0]

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example, path = self._described(index)
        with naming(example["name"]):
            return example | {"image": read_image(path)}

    def _described(self, index: int) -> tuple[dict[str, Any], str]:
        """An example without its image, and where that is."""
        source, row = self._source, self._rows[index]
        value = row.get(source.image)
        if not isinstance(value, str) or not value:
            name = f"{source.path}, row {index}"
            raise ExampleError(f"{name}: it has no path in {source.image}, found {value!r}", name)
        path = self._path(value)
        name = f"{path}#{index}" if self._repeats[index] else path
        with naming(name):
            if source.template is not None:
                captions: tuple[str, ...] = (fill(source.template, row, name),)
            else:
                captions = as_captions(row.get(source.caption), name) if source.caption else ()
            return make_example(b"", captions, name, row), path

    def _path(self, value: str) -> str:
        if value.startswith("file:"):
            return unquote(urlsplit(value).path)
        if "://" in value or os.path.isabs(value):
            return value
        return os.fspath(epath.Path(self._folder) / value)
