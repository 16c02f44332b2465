"""Income disparity and representation bias, as in SigLIP 2's table 9 (arXiv 2502.14786)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from siglip2_jax.benchmarks.culture.fairness import (
    accuracy_by_group,
    first_share,
    income_disparity,
    representation_bias,
)
from siglip2_jax.data.sources import Source
from siglip2_jax.evals.accuracy import Ties, label_ranks
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.class_embeddings import ClassCache, class_embeddings
from siglip2_jax.evals.classes import Classes, label_values
from siglip2_jax.evals.prompts import CLIP_PAPER, embed_labels, fill_prompts
from siglip2_jax.preprocess.decode import NamedImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncomeZeroShot:
    """Zero-shot accuracy on Dollar Street, and how it differs over the homes' incomes.

    The choice is between all of ImageNet's classes; an answer is right if it is any class of the
    image.

    Attributes:
      source: examples with the fields `classes`, numbers of ImageNet's classes, and `income`:
        `DollarStreet`.
      classes: the names of ImageNet's 1,000 classes.
      templates: prompts with one `{}` for the name.
      canonical: as for `ZeroShot`.
      ties: likewise.
      groups: how many groups of income, with about as many images each.
      cache: where class embeddings are kept; not for use in training.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    source: Source
    classes: tuple[str, ...]
    templates: tuple[str, ...] = CLIP_PAPER
    canonical: bool = True
    ties: Ties = "first"
    groups: int = 4
    cache: ClassCache | None = None
    name: str = "dollar_street"
    every: int = 1000
    max_num_patches: int = 256

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ValueError(f"IncomeZeroShot.groups is {self.groups}; expected 2 or more")
        fill_prompts(self.classes, self.templates, canonical=self.canonical)

    def __call__(self, model: Model) -> dict[str, float]:
        """`top1`, `top5`, `income_disparity` and `top1_income_<i>`, the poorest first; 0 to 1.

        Images that cannot be read count as wrong.

        Raises:
          ValueError: an example lacks a field or has an unknown class, or all incomes are equal.
        """
        opened, classes = self.source.open(), Classes(self.classes)
        labels: list[tuple[int, ...]] = []
        incomes: list[float] = []

        def sources() -> Iterator[NamedImage]:
            for i in range(len(opened)):
                example = opened[i]
                numbers, income = label_values(example.get("classes")), example.get("income")
                if not numbers or not isinstance(income, int | float):
                    raise ValueError(
                        f"evaluator {self.name!r}: {example['name']} has the classes {numbers} and "
                        f"the income {income}; expected numbers"
                    )
                labels.append(classes.positions(numbers))
                incomes.append(income)
                yield NamedImage(example["image"], example["name"])

        images = model.embed_images(sources(), max_num_patches=self.max_num_patches)
        rows = class_embeddings(
            model, self.classes, self.templates, canonical=self.canonical, cache=self.cache
        )
        # Classes with the same prompts must tie to the last bit.
        unique, inverse = np.unique(rows, axis=0, return_inverse=True)
        scores = (images @ unique.T)[:, inverse.reshape(-1)]
        ranks = label_ranks(scores, labels, ties=self.ties)
        bounds = np.quantile(incomes, np.arange(1, self.groups) / self.groups)
        groups = np.searchsorted(bounds, incomes) + 1
        metrics = {f"top{k}": float(np.mean(ranks < k)) for k in (1, 5)}
        metrics["income_disparity"] = income_disparity(ranks < 1, groups)
        by_group = accuracy_by_group(ranks < 1, groups)
        return metrics | {f"top1_income_{group}": value for group, value in by_group.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentationBias:
    """Association bias: preference of object images for one of two prompts about people.

    The objects and prompts of the paper are unpublished.

    Attributes:
      source: images of objects without people, such as `GeoDE`.
      prompts: for men, and for women.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    source: Source
    prompts: tuple[str, str] = ("men", "women")
    name: str = "bias"
    every: int = 1000
    max_num_patches: int = 256

    def __call__(self, model: Model) -> dict[str, float]:
        """`representation_bias`, 0 to 1/2, and `first_share`, 0 to 1, the first prompt's share.

        Raises:
          ValueError: no image can be read.
        """
        opened = self.source.open()
        examples = (opened[i] for i in range(len(opened)))
        sources = (NamedImage(example["image"], example["name"]) for example in examples)
        images = model.embed_images(sources, max_num_patches=self.max_num_patches)
        scores = images @ embed_labels(model, self.prompts).T
        return {
            "representation_bias": representation_bias(scores[:, 0], scores[:, 1]),
            "first_share": first_share(scores[:, 0], scores[:, 1]),
        }
