"""Rows of a database as Arrow tables: fixed columns, and the metadata that items bring along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pyarrow as pa

FIXED = ("id", "content", "embedding", "width", "height", "caption")


def schema(width: int) -> pa.Schema:
    """Columns that every database has.

    Args:
      width: E, the size of an embedding.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), width), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("caption", pa.string()),
        ]
    )


def embedding_array(rows: Float[np.ndarray, "n E"]) -> pa.Array:
    """Embeddings as float16 lists of one size."""
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(rows, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])


def field_columns(
    fields: Sequence[Mapping[str, Any]], known: pa.Schema
) -> dict[str, pa.Array]:
    """Metadata as columns: those of the database, and new ones of the type of their values.

    Lists, mappings and bytes are kept as the text of their JSON.

    Args:
      fields: metadata of each row.
      known: the database's columns.

    Raises:
      ValueError: a name is that of a fixed column, or values are not of the column's type.
    """
    import pyarrow as pa

    names = dict.fromkeys(name for row in fields for name in row)
    for name in names:
        if name in FIXED:
            raise ValueError(
                f"the metadata column {name!r} has the name of a column that every database has "
                f"({', '.join(FIXED)}); leave it out or rename it"
            )
    columns = {}
    for name in names:
        values = [_plain(row.get(name)) for row in fields]
        type_ = known.field(name).type if name in known.names else None
        try:
            columns[name] = pa.array(values, type_)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            expected = "one type" if type_ is None else str(type_)
            raise ValueError(
                f"the metadata column {name!r} holds values that are not {expected} ({error}); "
                "leave it out, or make a new database"
            ) from error
        if pa.types.is_null(columns[name].type):  # no value yet tells its type
            del columns[name]
    return columns


def complete(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """The table with all columns, in order; those that it lacks are null."""
    import pyarrow as pa

    arrays = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in columns
    ]
    return pa.table(arrays, schema=columns)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return storable(value)


def storable(text: str) -> str:
    """The text with bytes that are no UTF-8, as in odd file names, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
