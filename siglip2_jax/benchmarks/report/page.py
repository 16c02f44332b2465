"""The report of an evaluation as one self-contained HTML page (extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from siglip2_jax.benchmarks.report.plots import report_plots
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

_TEXT_COLUMNS = ("data set", "setting", "metric", "protocol")
_NAMES_SHOWN = 20


def report_page(results: Sequence[Result]) -> str:
    """Renders `page.html`.

    Args:
      results: at least one, in the order to show.

    Returns:
      HTML that refers to no other file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (dataset_name, parts, place, protocol, rows, setting)
    environment.globals.update({function.__name__: function for function in functions})
    models = by_model(results)
    names = ", ".join(dict.fromkeys(model for model, _ in models))
    return environment.get_template("page.html").render(
        title=f"Evaluation of {names}",
        summary=SUMMARY,
        columns=COLUMNS,
        text_columns=_TEXT_COLUMNS,
        models=models,
        names_shown=_NAMES_SHOWN,
        charts=report_plots(results),
    )
