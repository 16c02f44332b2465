"""Results of `siglip2 eval` as lines of a model card."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from etils import epath

from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.rows import dataset_name, protocol, rows, setting
from siglip2_jax.checkpoints.model_card import Score
from siglip2_jax.data.text import parse_json

FILES = ("report.json", "results.json")


def read_scores(path: str | os.PathLike[str]) -> list[Score]:
    """Reads the scores of one model.

    Args:
      path: what `siglip2 eval --json` wrote, or the `report.json` of its `--out`.

    Raises:
      OSError: the file cannot be read.
      ValueError: it holds no results, or those of several models.
    """
    results = _read(path)
    models = list(dict.fromkeys(result.pretrained for result in results))
    if len(models) != 1:
        raise ValueError(
            f"{os.fspath(path)} holds results of {len(models)} models "
            f"({', '.join(models) or 'none'}), expected those of one; measure the model of SOURCE "
            "alone"
        )
    return _scores(results)


def find_scores(source: str, stage: str | None = None) -> tuple[epath.Path | None, list[Score]]:
    """Scores that lie beside a source and were measured with it, under the name that it has here.

    Args:
      source: what was given to `siglip2 eval`.
      stage: likewise.

    Returns:
      The file, None where there is no such, and its scores.
    """
    path = epath.Path(source)
    name = source if stage is None else f"{source}, stage {stage}"
    for file in ((path if path.is_dir() else path.parent) / x for x in FILES):
        with suppress(OSError, ValueError):  # a file of that name by another program
            if results := [x for x in _read(file) if x.pretrained == name]:
                return file, _scores(results)
    return None, []


def _read(path: str | os.PathLike[str]) -> list[Result]:
    """The results that have numbers."""
    try:
        content = parse_json(epath.Path(path).read_bytes())
        entries = content.get("results") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise ValueError("expected a list of results")
        results = [Result.from_json(entry) for entry in entries]
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is no file of `siglip2 eval`: {error}") from error
    return [result for result in results if result.missing is None]


def _scores(results: list[Result]) -> list[Score]:
    return [score for result in results for score in _of_result(result)]


def _of_result(result: Result) -> Iterator[Score]:
    for row in rows(result):
        value, published, _ = row.texts()
        yield Score(
            dataset=dataset_name(result),
            setting=setting(result),
            metric=row.metric,
            value=value,
            published=published,
            protocol=protocol(result),
        )
