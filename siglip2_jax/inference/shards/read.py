"""Reading of the embeddings of a complete run, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from siglip2_jax.inference.shards.manifest import FOLDER, directory_of, read_manifest
from siglip2_jax.inference.shards.merge import read_merged
from siglip2_jax.inference.shards.schema import COLUMNS, check_pyarrow

if TYPE_CHECKING:
    import pyarrow


class Block(NamedTuple):
    """Consecutive items that have an embedding.

    Attributes:
      embeddings: their rows, as they were written.
      items: a pyarrow table of the other columns.
    """

    embeddings: Float[np.ndarray, "k E"]
    items: pyarrow.Table


class EmbeddingShards:
    """Embeddings of a complete run: rows in the order of the input, read a row group at a time.

    Attributes:
      settings: what decided the rows, from the manifest.
      images: number of items.
      errors: those of them without an embedding.
      width: E, the size of a row.
      fields: names of the columns that were kept of the source.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        """Opens a run.

        Raises:
          ValueError: it is not one, or not merged.
        """
        check_pyarrow()
        self._out = directory_of(out)
        self.settings = read_manifest(self._out)
        self._merged = read_merged(self._out)
        self.images, self.errors = self._merged.images, self._merged.errors
        self.width: int = self.settings["width"]
        self.fields: tuple[str, ...] = tuple(self.settings["fields"])

    def __len__(self) -> int:
        """Number of embeddings: of items without an error."""
        return self.images - self.errors

    @property
    def dtype(self) -> np.dtype:
        """Type of the embeddings, float16 or float32."""
        return np.dtype(self.settings["embedding"])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pyarrow.Table]:
        """All items, those with errors included, a row group at a time.

        Args:
          columns: which columns; None reads all.
        """
        from pyarrow.parquet import ParquetFile

        for name in self._merged.files:
            with (self._out / FOLDER / name).open("rb") as stream, ParquetFile(stream) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[Block]:
        """Items that have an embedding, a row group at a time.

        Args:
          columns: which columns beside the embedding; None reads all.
        """
        others = [*COLUMNS, *self.fields] if columns is None else list(columns)
        names = list(dict.fromkeys([*others, "embedding"]))
        for table in self.tables(names):
            good = table.filter(table["embedding"].is_valid())
            if len(good):
                kept = [name for name in others if name != "embedding"]
                yield Block(self._rows(good["embedding"]), good.select(kept))

    def embeddings(self) -> Float[np.ndarray, "n E"]:
        """All embeddings at once."""
        rows = np.empty((len(self), self.width), self.dtype)
        start = 0
        for block in self.blocks(()):
            rows[start : start + len(block.embeddings)] = block.embeddings
            start += len(block.embeddings)
        return rows

    def error_lines(self) -> Iterator[dict[str, Any]]:
        """The items without an embedding: id and error of each."""
        for table in self.tables(["id", "error"]):
            yield from table.filter(table["error"].is_valid()).to_pylist()

    def _rows(self, column: pyarrow.ChunkedArray) -> Float[np.ndarray, "k E"]:
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, self.width)


def read_shards(out: str | os.PathLike[str]) -> EmbeddingShards:
    """Opens the embeddings of a complete run, local or `gs://`.

    Raises:
      ValueError: the directory holds none, or was not merged.
    """
    return EmbeddingShards(out)
