"""Footers of Parquet files: their rows, row groups and columns, and where these lie."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from siglip2_jax.data.stores.manifest import Entry
from siglip2_jax.data.stores.store import File, Store

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

_TAIL = 1 << 16  # bytes that hold the footer of most files
_LARGE = 1 << 28
_log = logging.getLogger(__name__)


def check_pyarrow() -> None:
    """Refuses to read Parquet without its library.

    Raises:
      ValueError: the extra `remote` is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow; pip install 'siglip2_jax[remote]'") from error


def index_rows(file: File, store: Store) -> tuple[Entry, FileMetaData]:
    """Finds the number of rows of a file, and its footer.

    Raises:
      ValueError: it is no Parquet.
      SourceError: it cannot be read.
    """
    tail = store.read(file, max(0, file.size - _TAIL))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > file.size:
        raise ValueError(f"{file.path} is not a whole Parquet file; it does not end in a footer")
    if length > len(tail):
        tail = store.read(file, file.size - length)
    footer = parse_footer(tail[-length:], file.path)
    none = np.zeros(0, np.uint32)
    return Entry(file, footer.num_rows, file.size - length, none, {}), footer


def usual_group(footer: FileMetaData, path: str) -> int:
    """The size of most row groups of a file, which is that of a block.

    Row groups that are very large are warned of.
    """
    sizes = Counter(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    usual = max(1, sizes.most_common(1)[0][0]) if sizes else 1
    largest = max(
        (footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)), default=0
    )
    if largest > _LARGE:
        _log.warning(
            "%s has row groups of %d rows, %d MB, each of which is read whole; `siglip2 data pack "
            "--parquet` makes smaller blocks",
            *(path, usual, largest >> 20),
        )
    return usual


def parse_footer(data: bytes, path: str) -> FileMetaData:
    """The footer of a file.

    Raises:
      ValueError: it is damaged.
    """
    import pyarrow
    from pyarrow.parquet import read_metadata

    try:
        return read_metadata(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error})") from error


def column_ranges(
    footer: FileMetaData, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Bytes from and to of the parts of a row group's columns."""
    row_group = footer.row_group(group)
    for i in range(row_group.num_columns):
        part = row_group.column(i)
        if part.path_in_schema.partition(".")[0] in columns:
            start = min(filter(None, (part.dictionary_page_offset, part.data_page_offset)))
            yield start, start + part.total_compressed_size


def label_names(footer: FileMetaData) -> dict[str, list[str]]:
    """Names of the labels of each column with class labels, as `datasets` writes them."""
    metadata = footer.schema.to_arrow_schema().metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
