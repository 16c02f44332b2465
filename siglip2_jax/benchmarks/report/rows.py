"""Rows of a report: each result in words and figures that pages only lay out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from siglip2_jax.benchmarks.report.advice import advise, elsewhere, near
from siglip2_jax.benchmarks.report.published import DIGITS_IN_UNITS, Published, in_units, published
from siglip2_jax.benchmarks.report.result import Result

HEADLINES: tuple[str, ...] = (
    "top1",
    "text_to_image@1",
    "image_to_text@1",
    "mean",
    "10shot",
    "miou",
    "rmse",
    "angular_rmse",
    "acc@0.5",
)
"""The numbers that papers report: they are drawn, and compared where another budget has them."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A number, and what is published of it.

    Attributes:
      metric: its name.
      value: in per cent or in its unit.
      theirs: the published number, if there is one.
    """

    metric: str
    value: float
    theirs: Published | None

    @property
    def difference(self) -> float | None:
        """Ours less theirs, in per cent points or the unit."""
        return None if self.theirs is None else self.value - self.theirs.value

    @property
    def agrees(self) -> bool:
        """True where the number and the published one are so near that nothing needs a look."""
        return self.difference is not None and near(self.metric, self.difference)

    def texts(self) -> tuple[str, str, str]:
        """Ours, theirs and the difference, as they are shown; a dash where there is none."""
        digits = DIGITS_IN_UNITS.get(self.metric, 2)
        ours = f"{self.value:.{digits}f}"
        if self.theirs is None or self.difference is None:
            return ours, "–", "–"
        value = self.theirs.value
        given = digits if digits == 3 or round(value, 1) != value else 1
        return ours, f"{value:.{given}f}", f"{self.difference:+.{digits}f}".replace("-", "−")


def comparable(result: Result) -> bool:
    """True where the papers' numbers are of this data: English, or XM3600's mean."""
    return result.language == "en" or result.dataset == "xm3600"


def rows(result: Result) -> list[Row]:
    """A row for each number of the whole data set, in the evaluator's order."""
    return [
        Row(name, in_units(name, value), _published(result, name))
        for name, value in result.metrics.items()
        if "/" not in name
    ]


def _published(result: Result, metric: str) -> Published | None:
    if not comparable(result):
        return None
    budget = result.protocol.get("num_patches")
    return published(result.model, result.dataset, metric, budget)


def parts(result: Result) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Numbers of parts, such as of languages.

    Returns:
      The metrics, and for each part a text for each metric: in per cent or its unit, or a dash.
    """
    found: dict[str, dict[str, str]] = {}
    for name, value in result.metrics.items():
        part, _, metric = name.rpartition("/")
        if part:
            found.setdefault(part, {})[metric] = f"{in_units(metric, value):.2f}"
    names = tuple(dict.fromkeys(name for texts in found.values() for name in texts))
    return names, {part: [texts.get(x, "–") for x in names] for part, texts in found.items()}


def advice(results: Sequence[Result]) -> dict[str, list[str]]:
    """Advice for numbers that differ from the published ones.

    Args:
      results: of one model.

    Returns:
      Sentences for each data set that has any, each once, after the settings that it is about
      unless these are all.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for sentence in _sentences(result):
            found.setdefault(dataset_name(result), {}).setdefault(sentence, []).append(
                setting(result)
            )
    count = Counter(map(dataset_name, results))
    return {
        name: [
            sentence if len(where) == count[name] else f"{', '.join(where)}: {sentence}"
            for sentence, where in sentences.items()
        ]
        for name, sentences in found.items()
    }


def _sentences(result: Result) -> list[str]:
    found: list[str] = []
    for row in rows(result) if comparable(result) else ():
        if row.theirs is not None:
            found.extend(advise(result, row.metric, row.theirs))
        elif row.metric in HEADLINES and (sentence := elsewhere(result, row.metric)):
            found.append(sentence)
    return list(dict.fromkeys(found))


def setting(result: Result) -> str:
    """Input size of images: "224 px", or "256 tokens" at native resolution."""
    if (side := result.protocol.get("resolution")) is not None:
        return f"{side} px"
    tokens = result.protocol.get("num_patches")
    return "" if tokens is None else f"{tokens} tokens"


def protocol(result: Result) -> str:
    """The rest of what a number depends on, on a line."""
    return ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in result.protocol.items()
        if name not in ("num_patches", "resolution") and value is not None
    )


def dataset_name(result: Result) -> str:
    """The data set, with its language unless that is English."""
    return result.dataset if result.language == "en" else f"{result.dataset} ({result.language})"


def place(result: Result) -> str:
    """Name of a result of a model: data set and setting."""
    return ", ".join(filter(None, (dataset_name(result), setting(result))))


def by_model(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by model and weights, in order."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.model, result.pretrained), []).append(result)
    return found
