"""Plots of our and the published numbers against the tokens of an image (extra `report`).

Like figure 3 of SigLIP 2 (arXiv 2502.14786): a line for native resolution, marks for the models of
fixed resolution.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from siglip2_jax.benchmarks.report.published import published_curve
from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.rows import HEADLINES, by_model, comparable, dataset_name, rows
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

_MEASURED = {"marker": "o"}
_NATIVE = {"color": "grey", "linestyle": "--", "marker": "."}
_FIXED = {"color": "grey", "linestyle": "none", "marker": "o", "markerfacecolor": "white"}


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
      name: in the legend.
      points: values by tokens, in increasing order of tokens.
      style: how matplotlib's `plot` draws them.
    """

    name: str
    points: dict[int, float]
    style: dict[str, Any]


def report_plots(results: Sequence[Result]) -> dict[str, str]:
    """A plot for each data set and headline number of which there is more than one point.

    Args:
      results: where one model has several for a data set and token budget, the last is drawn.

    Returns:
      SVG images as `data:` URLs, by their titles.
    """
    return {title: draw(title, lines) for title, lines in report_series(results).items()}


def report_series(results: Sequence[Result]) -> dict[str, list[Series]]:
    """Data of the plots of `report_plots`, by title."""
    plots = {}
    for name in dict.fromkeys(map(dataset_name, results)):
        dataset_results = [result for result in results if dataset_name(result) == name]
        for metric in HEADLINES:
            measured = list(_measured(dataset_results, metric))
            series = [*_published(dataset_results, metric), *measured]
            if measured and sum(len(line.points) for line in series) > 1:
                plots[f"{name} {metric}"] = series
    return plots


def draw(title: str, series: Sequence[Series]) -> str:
    """Draws a chart: tokens across on a logarithmic scale, values up.

    Args:
      title: above it.
      series: at least one point in all; later ones lie on top.

    Returns:
      An SVG image as a `data:` URL.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    for line in series:
        axes.plot(list(line.points), list(line.points.values()), label=line.name, **line.style)
    budgets = sorted({tokens for line in series for tokens in line.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(tokens) for tokens in budgets], rotation=60, fontsize="small")
    axes.set_xlabel("tokens of an image")
    axes.grid(color="0.9")
    legend = figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _measured(dataset_results: Sequence[Result], metric: str) -> Iterator[Series]:
    models = by_model(dataset_results)
    count = Counter(model for model, _ in models)
    for (model, pretrained), results in models.items():
        points = {
            int(tokens): row.value
            for result in results
            if (tokens := result.protocol.get("num_patches")) is not None
            for row in rows(result)
            if row.metric == metric
        }
        if points:
            weights = f" ({pretrained.rstrip('/').rpartition('/')[2]})" if count[model] > 1 else ""
            yield Series(f"ours, {model}{weights}", dict(sorted(points.items())), _MEASURED)


def _published(dataset_results: Sequence[Result], metric: str) -> Iterator[Series]:
    """For every size measured, such as B/16: native resolution as a line, fixed ones as marks."""
    dataset = dataset_results[0].dataset
    sizes = [result.model.rpartition(" ")[0] for result in dataset_results if comparable(result)]
    for size in dict.fromkeys(sizes):
        native, fixed = {}, {}
        for variant in RELEASES + SIGLIP1_RELEASES:
            if variant.name.rpartition(" ")[0] == size:
                curve = published_curve(variant.name, dataset, metric)
                (native if variant.config.native_resolution else fixed).update(curve)
        if native:
            yield Series(f"published, {size} NaFlex", native, _NATIVE)
        if fixed:
            fixed = dict(sorted(fixed.items()))
            yield Series(f"published, {size} at fixed resolution", fixed, _FIXED)
