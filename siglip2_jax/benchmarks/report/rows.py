"""Rows of a report: each result in words and figures that pages only lay out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from siglip2_jax.benchmarks.report.published import (
    DIGITS_IN_UNITS,
    LOWER_IS_BETTER,
    Published,
    in_units,
    published,
)
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
"""The numbers that papers report, of which plots are drawn."""

COLUMNS: tuple[str, ...] = (
    "data set",
    "setting",
    "metric",
    "ours",
    "published",
    "difference",
    "images",
    "failed",
    "images/s",
    "data wait",
    "protocol",
)

SUMMARY = (
    "Shares are in per cent, depth errors in metres (relative on NAVI), angles in degrees. "
    "Published numbers are those of SigLIP 2, arXiv 2502.14786; where yours differs, see "
    "docs/if_your_number_differs.md. Images that do not decode count as wrong; data wait is the "
    "share of time in which the device waited for images."
)

NEAR = 0.3
"""Difference from the published number, in points or degrees, that counts as near."""
NEAR_RMSE = 0.01


@dataclasses.dataclass(frozen=True)
class Row:
    """A number beside the published one.

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
        """Our number minus the published one, in percentage points or the unit."""
        return None if self.theirs is None else self.value - self.theirs.value

    @property
    def verdict(self) -> Literal["near", "better", "worse"]:
        """The number beside the published one; "near" too where there is none."""
        tolerance = NEAR_RMSE if self.metric == "rmse" else NEAR
        if self.difference is None or abs(self.difference) <= tolerance + 1e-9:  # 0.3 is not exact
            return "near"
        lower = self.difference < 0
        return "better" if lower == (self.metric in LOWER_IS_BETTER) else "worse"

    def texts(self) -> tuple[str, str, str]:
        """Our number, the published one and the difference, as texts; a dash for none."""
        digits = DIGITS_IN_UNITS.get(self.metric, 2)
        number = f"{self.value:.{digits}f}"
        if self.theirs is None or self.difference is None:
            return number, "–", "–"
        value = self.theirs.value
        published_digits = digits if digits == 3 or round(value, 1) != value else 1
        return (
            number,
            f"{value:.{published_digits}f}",
            f"{self.difference:+.{digits}f}".replace("-", "−"),
        )


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
    tokens = result.protocol.get("num_patches")
    budget = tokens if isinstance(tokens, int) else None
    return published(result.model, result.dataset, metric, budget)


def parts(result: Result) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Numbers of parts, such as of languages.

    Returns:
      The metrics, and for each part a text for each metric: in per cent or its unit, or a dash.
    """
    by_part: dict[str, dict[str, str]] = {}
    for name, value in result.metrics.items():
        part, _, metric = name.rpartition("/")
        if part:
            by_part.setdefault(part, {})[metric] = f"{in_units(metric, value):.2f}"
    names = tuple(dict.fromkeys(name for texts in by_part.values() for name in texts))
    return names, {part: [texts.get(x, "–") for x in names] for part, texts in by_part.items()}


def setting(result: Result) -> str:
    """Input size of images: "224 px", or "256 tokens" at native resolution."""
    if (side := result.protocol.get("resolution")) is not None:
        return f"{side} px"
    tokens = result.protocol.get("num_patches")
    return "" if tokens is None else f"{tokens} tokens"


def protocol(result: Result) -> str:
    """The other settings of a number, on one line."""
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
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.model, result.pretrained), []).append(result)
    return groups
