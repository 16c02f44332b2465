"""The report of an evaluation: our numbers beside the published, as JSON, Markdown and HTML."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.rows import (
    COLUMNS,
    SUMMARY,
    by_model,
    dataset_name,
    parts,
    place,
    protocol,
    rows,
    setting,
)
from siglip2_jax.outputs import write_whole


def write_report(results: Sequence[Result], out_dir: str | os.PathLike[str]) -> epath.Path:
    """Writes `report.json`, `report.md` and, with the extra `report`, `report.html`.

    Each is written in one step; the page refers to no other file.

    Args:
      results: in the order to show, of one or several models.
      out_dir: made if it does not exist; local or `gs://`.

    Returns:
      The page, or without the extra the Markdown.

    Raises:
      ValueError: there are no results.
    """
    if not results:
        raise ValueError("a report got no results; measure at least one data set")
    folder = epath.Path(out_dir)
    write_whole(folder / "report.json", json.dumps(_data(results), indent=1, ensure_ascii=False))
    markdown, page = folder / "report.md", folder / "report.html"
    write_whole(markdown, "\n".join(_markdown(results)))
    try:
        from siglip2_jax.benchmarks.report.page import report_page
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "matplotlib"):
            raise
        page.unlink(missing_ok=True)  # of other results
        return markdown
    write_whole(page, report_page(results))
    return page


def _data(results: Sequence[Result]) -> dict[str, Any]:
    """All results in CLIP Benchmark's schema, and what is compared."""
    return {
        "results": [result.to_json() for result in results],
        "rows": [
            {
                "model": result.model,
                "pretrained": result.pretrained,
                "dataset": result.dataset,
                "language": result.language,
                "setting": setting(result),
                "metric": row.metric,
                "ours": row.value,
                "published": row.theirs and row.theirs.value,
                "difference": row.difference,
                "source": row.theirs and row.theirs.source,
                "note": row.theirs and row.theirs.note,
            }
            for result in results
            for row in rows(result)
        ],
    }


def _markdown(results: Sequence[Result]) -> Iterator[str]:
    yield f"# Evaluation\n\n{SUMMARY}\n"
    for (model, pretrained), model_results in by_model(results).items():
        yield f"## {model}\n\nWeights: `{pretrained}`\n"
        yield _line(*COLUMNS)
        yield _line(*("-" for _ in COLUMNS))
        for result in model_results:
            yield from _lines(result)
        yield ""
        for result in model_results:
            yield from _notes(result)


def _lines(result: Result) -> Iterator[str]:
    """Rows of the table; the first has the cells that hold for all of a result's numbers."""
    dataset = dataset_name(result)
    if result.missing is not None:
        empty = ("–",) * (len(COLUMNS) - 3)
        yield _line(dataset, setting(result), *empty, f"no data: {result.missing}")
        return
    speed = (
        str(result.images),
        str(len(result.failed)),
        f"{result.images_per_s:.1f}",
        f"{result.data_wait:.0%}",
        protocol(result),
    )
    for i, row in enumerate(rows(result)):
        cells = ("",) * len(speed) if i else speed
        yield _line(dataset, setting(result), row.metric, *row.texts(), *cells)


def _notes(result: Result) -> Iterator[str]:
    """Notes under a table: images that failed, numbers of parts."""
    if result.failed:
        names = ", ".join(f"`{name}`" for name in result.failed)
        yield f"Images of {place(result)} that did not decode: {names}\n"
    metrics, by_part = parts(result)
    if by_part:
        yield _line(place(result), *metrics)
        yield _line("-", *("-" for _ in metrics))
        yield from (_line(part, *texts) for part, texts in by_part.items())
        yield ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
