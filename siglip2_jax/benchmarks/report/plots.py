"""Plots of our and the published numbers against the tokens of an image.

Like figure 3 of SigLIP 2 (arXiv 2502.14786): a line for native resolution, marks for the models of
fixed resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from siglip2_jax.benchmarks.report.plot import GREY, PALETTE, Series, plot
from siglip2_jax.benchmarks.report.published import published_curve
from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.rows import HEADLINES, by_model, comparable, dataset_name, rows
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES


def report_plots(results: Sequence[Result]) -> list[str]:
    """An SVG for each data set and headline number of which there is more than one point.

    Args:
      results: where one model has several for a data set and token budget, the last is drawn.
    """
    plots = []
    for name in dict.fromkeys(map(dataset_name, results)):
        own = [result for result in results if dataset_name(result) == name]
        for metric in HEADLINES:
            ours = list(_measured(own, metric))
            series = [*_published(own, metric), *ours]
            if ours and sum(len(one.points) for one in series) > 1:
                plots.append(plot(f"{name} {metric}", series))
    return plots


def _measured(own: Sequence[Result], metric: str) -> Iterator[Series]:
    models = by_model(own)
    count = Counter(model for model, _ in models)
    for i, ((model, pretrained), results) in enumerate(models.items()):
        points = {
            int(tokens): row.value
            for result in results
            if (tokens := result.protocol.get("num_patches")) is not None
            for row in rows(result)
            if row.metric == metric
        }
        if points:
            weights = f" ({pretrained.rstrip('/').rpartition('/')[2]})" if count[model] > 1 else ""
            colour = PALETTE[i % len(PALETTE)]
            yield Series(f"ours, {model}{weights}", tuple(sorted(points.items())), colour)


def _published(own: Sequence[Result], metric: str) -> Iterator[Series]:
    """For every size measured, such as B/16: native resolution as a line, fixed ones as marks."""
    dataset = own[0].dataset
    sizes = [result.model.rpartition(" ")[0] for result in own if comparable(result)]
    for size in dict.fromkeys(sizes):
        native, fixed = {}, {}
        for variant in RELEASES + SIGLIP1_RELEASES:
            if variant.name.rpartition(" ")[0] == size:
                curve = published_curve(variant.name, dataset, metric)
                (native if variant.config.native_resolution else fixed).update(curve)
        if native:
            yield Series(f"published, {size} NaFlex", tuple(native.items()), GREY, "dashed")
        if fixed:
            marks = tuple(sorted(fixed.items()))
            yield Series(f"published, {size} at fixed resolution", marks, GREY, "marks")
