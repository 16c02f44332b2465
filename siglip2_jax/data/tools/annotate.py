"""Adds regions to the rows of a folder: checked, resumable, read by `sources.Folder`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath
from PIL.Image import Image

from siglip2_jax.data.patience import patiently
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples, Folder
from siglip2_jax.data.text import read_rows
from siglip2_jax.data.tools.annotators import Annotator
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.outputs import open_output
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.resumable import Rows, claim, write_errors

_AHEAD = 8  # decoded images waiting
_ROWS_PER_PART = 256  # some take a second each


@dataclass(frozen=True)
class Summary:
    """Summary of an annotation job.

    Attributes:
      rows: how many rows.
      regions: how many regions they have together.
      skipped: how many rows were bad and left out; `<out>.errors.jsonl` lists them.
      resumed: how many rows an earlier, interrupted run had dealt with.
    """

    rows: int
    regions: int
    skipped: int
    resumed: int


@dataclass(frozen=True)
class Limits:
    """Limits on the regions that are kept of one image.

    Attributes:
      min_score: the lowest score, 0 to 1.
      count: the greatest number, the best scores first; None for all.
    """

    min_score: float = 0.1
    count: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, got {self.min_score}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"the number of regions must be at least 1, got {self.count}")


def annotate(
    source: Folder,
    out: str | os.PathLike[str],
    annotator: Annotator,
    limits: Limits | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Writes the rows of a folder with `regions` added; see `regions.read_regions`.

    `Folder(path, captions=out)` reads the result, with `out` relative to the folder or absolute. A
    row's own `regions` are replaced. Rows whose image is damaged, or that the annotator refuses,
    are left out and listed in `<out>.errors.jsonl`, `<out>` without its suffix. Until all rows are
    done, results are in `<out>.partial`, with which an interrupted job continues.

    Args:
      source: whose rows; each needs a caption field, as for training.
      out: the file of JSON lines to write, local; not written where all rows are bad.
      annotator: finds the regions.
      limits: which of them are kept; None for those with a score from 0.1 up.
      progress: called with the number of rows dealt with and the number there are.

    Raises:
      ValueError: the source cannot be opened, `out` exists already, or was begun with another
        source or other settings.
      OSError: a file cannot be written; a SourceError where an image cannot be read.
    """
    out, limits = Path(out), limits or Limits()
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name, or delete it to start anew")
    examples, rows = source.open(), _rows(source)
    partial = out.with_name(out.name + ".partial")
    way_out = f"choose another name, or delete {partial} to start anew"
    claim(partial / "settings.json", _settings(source, rows, annotator, limits), way_out)
    with Rows(partial, 0, rows_per_part=_ROWS_PER_PART) as store:
        resumed = len(store)
        for result in _results(examples, annotator, limits, resumed):
            store.add(None, json.dumps(result))
            if progress:
                progress(len(store), len(rows))
    summary = _finish(out, rows, [json.loads(note) for note in store.texts()], resumed)
    store.remove()
    return summary


def _rows(source: Folder) -> list[dict[str, Any]]:
    """The rows behind the source's examples, with all of their keys; opening it checked them."""
    rows = read_rows(epath.Path(source.path) / source.captions)
    return [row for _, row in rows if all(row.get(key) == value for key, value in source.where)]


def _settings(
    source: Folder, rows: list[dict[str, Any]], annotator: Annotator, limits: Limits
) -> dict[str, str]:
    """Settings that decide the results: compared before a job is continued."""
    return {
        "source": repr(source),
        "rows": fingerprint(rows),
        "annotator": repr(annotator),
        "limits": repr(limits),
    }


def _results(
    examples: Examples, annotator: Annotator, limits: Limits, start: int
) -> Iterator[dict[str, Any]]:
    """Results of the rows from `start` on: `regions`, or an `error` and the example's name."""

    def read(index: int) -> tuple[dict[str, Any], Image] | Exception:
        try:
            example = patiently(lambda: examples[index], f"row {index}")
            return example, decode(example["image"], name=example["name"])
        except ValueError as error:
            return error

    for result in thread_map(read, range(start, len(examples)), _AHEAD):
        if isinstance(result, Exception):
            yield {"error": str(result)}
            continue
        example, image = result
        try:
            regions = [x for x in annotator(image, example) if x.score >= limits.min_score]
        except ValueError as error:
            yield {"error": str(error)}
            continue
        regions.sort(key=lambda region: -region.score)
        yield {"regions": [region.as_dict() for region in regions[: limits.count]]}


def _finish(
    out: Path, rows: list[dict[str, Any]], results: list[dict[str, Any]], resumed: int
) -> Summary:
    """Writes the errors, then the rows."""
    errors = [
        {"index": index, "file": row["file"], "error": result["error"]}
        for index, (row, result) in enumerate(zip(rows, results, strict=True))
        if "error" in result
    ]
    write_errors(out.with_suffix(".errors.jsonl"), errors)
    good_rows = [
        {**row, "regions": result["regions"]}
        for row, result in zip(rows, results, strict=True)
        if "error" not in result
    ]
    if good_rows:
        with open_output(out) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in good_rows)
    return Summary(
        len(good_rows), sum(len(row["regions"]) for row in good_rows), len(errors), resumed
    )
