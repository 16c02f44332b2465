"""Columns of a database: those of files of embeddings, but for the reason of an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from siglip2_jax.data.items.item import Item
from siglip2_jax.inference.shards import schema

if TYPE_CHECKING:
    import pyarrow as pa

FIXED = tuple(name for name in schema.COLUMNS if name != "error")
"""Columns that every database has; those of metadata follow them."""


def columns(width: int, fields: Mapping[str, str]) -> pa.Schema:
    """Columns of a database.

    Args:
      width: E, the size of an embedding.
      fields: the type of each column of metadata, by its name.
    """
    import pyarrow as pa

    return pa.schema([x for x in schema.schema(width, "float16", fields) if x.name != "error"])


def rows_of(
    items: Sequence[Item], embeddings: Float[np.ndarray, "n E"], fields: Mapping[str, str]
) -> pa.Table:
    """Rows of items without an error, with their embeddings.

    Raises:
      ValueError: a field cannot be kept in the type of its column.
    """
    every = schema.schema(embeddings.shape[1], "float16", fields)
    return schema.table(items, embeddings, every).drop_columns("error")


def complete(table: pa.Table, every: pa.Schema) -> pa.Table:
    """The rows with all columns of a database, in order; those that they lack are null.

    Raises:
      ValueError: a column has another type there.
    """
    import pyarrow as pa

    arrays = []
    for column in every:
        if column.name not in table.column_names:
            arrays.append(pa.nulls(len(table), column.type))
            continue
        array = table[column.name]
        if array.type != column.type and column.name not in FIXED:
            raise ValueError(
                f"the column {column.name!r} holds {array.type} here and {column.type} in the "
                "database; keep it with that type, or leave it out"
            )
        arrays.append(array.cast(column.type))
    return pa.table(arrays, schema=every)
