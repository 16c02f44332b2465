"""Images that a CSV table lists."""

from __future__ import annotations

import csv
import io
from os import PathLike
from typing import Any

from etils import epath

from siglip2_jax.data.example import make_example


def read_table(path: str | PathLike[str], columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as texts.

    Args:
      path: the file, local or `gs://`.
      columns: those that every row must have; others are kept too.

    Raises:
      ValueError: the file is missing or malformed, or lacks a column.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; expected CSV with the columns {', '.join(columns)}"
        )
    try:
        reader = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))
        header = reader.fieldnames or ()
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    if missing := [name for name in columns if name not in header]:
        raise ValueError(
            f"{path}: there is no column {missing[0]!r}, found {', '.join(header) or 'nothing'}"
        )
    for i, row in enumerate(rows, 1):
        if any(row[name] is None for name in columns):
            raise ValueError(f"{path}, row {i}: cut short; it has fewer cells than the header")
    return rows


class TableImages:
    """Opened examples: images in files, read one by one, with the fields of each."""

    def __init__(self, rows: list[tuple[epath.Path, dict[str, Any]]], table: epath.Path) -> None:
        """Takes the rows of a table.

        Args:
          rows: each image's path and fields.
          table: path of the table, for errors.

        Raises:
          ValueError: there is no row, or the first image is not there.
        """
        if not rows:
            raise ValueError(f"{table}: no row is selected; expected one for each image")
        if not rows[0][0].is_file():
            raise ValueError(
                f"{rows[0][0]}: no such image, the first of {len(rows)} in {table}; unpack the "
                "images there"
            )
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def without_image(self, index: int, /) -> dict[str, Any]:
        """An example whose `image` is empty."""
        path, fields = self._rows[index]
        return make_example(b"", (), str(path), fields)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.without_image(index) | {"image": self._rows[index][0].read_bytes()}
