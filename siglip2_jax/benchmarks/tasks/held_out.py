"""Selection of the rows of a file of JSON lines to measure on."""

from __future__ import annotations

from pathlib import Path

from siglip2_jax.data.text import read_rows

SPLITS = "test", "val", "validation"


def held_out(path: Path) -> tuple[tuple[str, str], ...]:
    """The condition on rows, for `Folder.where`: the test split, else validation, else none.

    Raises:
      ValueError: a row is not JSON, or no row is of these splits although rows have splits.
    """
    splits: set[str] = set()
    for _, row in read_rows(path):
        if isinstance(row, dict) and isinstance(row.get("split"), str):
            splits.add(row["split"])
    for split in SPLITS:
        if split in splits:
            return (("split", split),)
    if splits:
        raise ValueError(
            f"{path}: its splits are {', '.join(sorted(splits))}; expected {', '.join(SPLITS)} "
            "among them, or no splits"
        )
    return ()
