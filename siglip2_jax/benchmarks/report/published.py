"""Published numbers of a model on a data set, to put beside a number of our own."""

from __future__ import annotations

import dataclasses
from functools import cache

from siglip2_jax.benchmarks.report.tables import TABLES
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

DIGITS_IN_UNITS: dict[str, int] = {"rmse": 3, "angular_rmse": 2, "l2": 5}
"""Digits to show of metrics that are not shares: depths, angles in degrees, a penalty."""

LOWER_IS_BETTER: frozenset[str] = frozenset(
    {"rmse", "angular_rmse", "income_disparity", "representation_bias"}
)

_DATA_NOTES: dict[str, str] = {
    "objectnet": "protocol unpublished",
    "textcaps": "split and captions unpublished",
    "hiertext": "split and captions unpublished",
    "scicap": "split and captions unpublished",
    "screen2words": "split and captions unpublished",
    "xm3600": "mean over 36 languages",
    "bias": "objects and prompts unpublished",
}
_METRIC_NOTES: dict[str, str] = {
    "10shot": "penalty and seeds unpublished",
    "acc@0.5": "optimiser, epochs, batch and tokenizer unpublished",
    "miou": "linear head (secondary source)",
    "angular_rmse": "DPT head (secondary source)",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
      value: in per cent, or for the metrics of `DIGITS_IN_UNITS` in their unit.
      source: table and paper.
      note: what to know about it; may be empty.
    """

    value: float
    source: str
    note: str

    @property
    def origin(self) -> str:
        """The source with the note."""
        return "; ".join(filter(None, (self.source, self.note)))


def published(
    variant: str, dataset: str, metric: str, num_patches: int | None = None
) -> Published | None:
    """The published number, or None where there is none.

    Args:
      variant: name of a release, such as "B/16 NaFlex" or "SigLIP B/16 256".
      dataset: "imagenet", "imagenet_v2", "imagenet_real", "objectnet", "coco", "flickr30k",
        "xm3600", "textcaps", "hiertext", "scicap", "screen2words", "pascal_voc", "ade20k", "nyuv2",
        "navi", "refcoco_<val|testA|testB>", "refcocoplus_<val|testA|testB>",
        "refcocog_<val|test>", "dollar_street", "geode", "geode_country", "geode_region", "gldv2" or
        "bias".
      metric: our evaluators' name of the number, such as "top1" or "text_to_image@1".
      num_patches: token budget, which selects the row at native resolution; ignored at fixed.
    """
    budget = num_patches if variant.endswith(" NaFlex") else None
    return _index().get((variant, budget, dataset, metric))


@cache
def published_curve(variant: str, dataset: str, metric: str) -> dict[int, float]:
    """All published numbers of a variant by tokens, in increasing order: one at fixed resolution.

    Args:
      variant: as for `published`.
      dataset: as for `published`.
      metric: as for `published`.
    """
    sizes = {v.name: v.config.vision.num_patches for v in RELEASES + SIGLIP1_RELEASES}
    fixed = {name: tokens for name, tokens in sizes.items() if tokens is not None}
    points = {
        budget or fixed[name]: fact.value
        for (name, budget, *key), fact in _index().items()
        if (name, *key) == (variant, dataset, metric)
    }
    return dict(sorted(points.items()))


def in_units(metric: str, value: float) -> float:
    """An evaluator's number as papers give it: shares in per cent, errors in their unit.

    Args:
      metric: its name; a language before "/" does not matter.
      value: as the evaluator gave it.
    """
    return value if metric.rpartition("/")[2] in DIGITS_IN_UNITS else 100 * value


@cache
def _index() -> dict[tuple[str, int | None, str, str], Published]:
    numbers: dict[tuple[str, int | None, str, str], Published] = {}
    for table in TABLES:
        for variant, budget, dataset, metric, value in table.cells():
            note = _note(variant, dataset, metric)
            # Table 7 repeats figures of table 1, which goes first.
            numbers.setdefault(
                (variant, budget, dataset, metric), Published(value, table.source, note)
            )
    return numbers


def _note(variant: str, dataset: str, metric: str) -> str:
    notes = [_DATA_NOTES.get(dataset), _METRIC_NOTES.get(metric)]
    if metric == "rmse":
        head = "DPT head, relative depth" if dataset == "navi" else "linear head"
        notes.append(f"{head} (secondary source)")
    if variant == "B/16 NaFlex":
        notes.append("trained without ACID and self-distillation")
    elif variant.startswith("B/"):
        notes.append("trained with the ACID stage of section 2.5")
    return "; ".join(note for note in notes if note)
