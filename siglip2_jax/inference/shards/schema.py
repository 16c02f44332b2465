"""Columns of the files of embeddings, and their values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from siglip2_jax.data.items.item import Item

if TYPE_CHECKING:
    import pyarrow

EMBEDDING_TYPES = ("float16", "float32")
FIELD_TYPES = ("string", "int64", "float64", "bool")
COLUMNS = ("id", "content", "embedding", "width", "height", "caption", "error")
"""Columns that every file has; those of fields follow them."""

_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def check_pyarrow() -> None:
    """Refuses to write or read files of embeddings without their library.

    Raises:
      ValueError: the extra `search` is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "files of embeddings need pyarrow; pip install 'siglip2_jax[search]'"
        ) from error


def check_fields(fields: Mapping[str, str]) -> None:
    """Refuses columns of fields that cannot be kept.

    Args:
      fields: the type of each column, by its name.

    Raises:
      ValueError: a name is that of another column, or a type is none of `FIELD_TYPES`.
    """
    for name, kind in fields.items():
        if name in COLUMNS:
            raise ValueError(
                f"a column to keep is {name!r}, which every file of embeddings has already, made "
                f"from the image ({', '.join(COLUMNS)}); leave it out"
            )
        if kind not in FIELD_TYPES:
            raise ValueError(
                f"the column {name!r} has the type {kind!r}; expected {', '.join(FIELD_TYPES)}"
            )


def schema(width: int, embedding: str, fields: Mapping[str, str]) -> pyarrow.Schema:
    """The columns of a file.

    Args:
      width: E, the size of an embedding.
      embedding: one of `EMBEDDING_TYPES`.
      fields: the type of each column of a field, by its name.
    """
    import pyarrow as pa

    number = pa.float16() if embedding == "float16" else pa.float32()
    types = {"embedding": pa.list_(number, width), "width": pa.int32(), "height": pa.int32()}
    columns = [(name, types.get(name, pa.string())) for name in COLUMNS]
    return pa.schema([*columns, *((name, pa.type_for_alias(x)) for name, x in fields.items())])


def table(
    items: Sequence[Item], rows: Float[np.ndarray, "n E"], columns: pyarrow.Schema
) -> pyarrow.Table:
    """Items with their embeddings; an item with an error has none.

    Raises:
      ValueError: a field cannot be kept in the type of its column.
    """
    import pyarrow as pa

    bad = np.array([item.error is not None for item in items], np.bool_)
    number = np.float16 if pa.types.is_float16(columns.field("embedding").type.value_type) else None
    values = pa.array(rows.astype(number or np.float32).reshape(-1))
    arrays: dict[str, Any] = {
        "id": [_text(item.id) for item in items],
        "content": [item.content for item in items],
        "embedding": pa.FixedSizeListArray.from_arrays(
            values, rows.shape[1], mask=pa.array(bad) if bad.any() else None
        ),
        "width": [item.width or None for item in items],
        "height": [item.height or None for item in items],
        "caption": [_text(item.caption) for item in items],
        "error": [_text(item.error) for item in items],
    }
    for column in columns:
        if column.name not in arrays:
            kind = str(column.type)
            arrays[column.name] = [_field(item, column.name, kind) for item in items]
    return pa.Table.from_arrays(
        [
            x if isinstance(x, pa.Array) else pa.array(x, column.type)
            for x, column in zip(map(arrays.__getitem__, columns.names), columns, strict=True)
        ],
        schema=columns,
    )


def _text(value: str | None) -> str | None:
    """A text that is UTF-8; bytes of file names that are not are escaped."""
    return value and value.encode("utf-8", "backslashreplace").decode()


def _field(item: Item, name: str, kind: str) -> Any:
    """The value of a field in the type of its column."""
    value = item.fields.get(name)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None:
        return None
    try:
        if kind == "string":
            return _text(value if isinstance(value, str) else json.dumps(value, default=str))
        if kind == "bool":
            return value if isinstance(value, bool) else _TRUTHS[str(value).lower()]
        number = float(value) if kind == "double" else int(value)
        if kind == "int64" and not isinstance(value, str) and number != value:
            raise ValueError("not a whole number")
        return number
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{item.id}: the column {name!r} holds {value!r:.60}, expected {kind}; keep it as text "
            f"(--columns {name})"
        ) from error
