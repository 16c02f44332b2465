"""Evaluators of geographic diversity: those of SigLIP 2's table 8 (arXiv 2502.14786).

The protocols are those of "No Filter" (Pouget et al., arXiv 2405.13777): objects and landmarks are
found zero-shot, countries and regions by few-shot regression. Templates, and which part of GeoDE is
learnt from, are choices made here. Zero-shot on Dollar Street is `evaluators.IncomeZeroShot`.
"""

from __future__ import annotations

from typing import Literal

from siglip2_jax.benchmarks.culture.data import (
    DOLLAR_STREET_TEST,
    DOLLAR_STREET_TRAIN,
    DollarStreet,
    GeoDE,
    Landmarks,
)
from siglip2_jax.evals.class_embeddings import ClassCache
from siglip2_jax.evals.fewshot import FewShot
from siglip2_jax.evals.prompts import CLIP_PAPER
from siglip2_jax.evals.zero_shot import ZeroShot


def geode_zero_shot(
    path: str, *, cache: ClassCache | None = None, max_num_patches: int = 256
) -> ZeroShot:
    """Zero-shot recognition of GeoDE's 40 objects.

    Args:
      path: as for `GeoDE`.
      cache: where class embeddings are kept.
      max_num_patches: token budget at native resolution.
    """
    return ZeroShot(
        source=GeoDE(path),
        label="object",
        templates=CLIP_PAPER,
        canonical=True,
        ties="first",
        cache=cache,
        name="geode",
        max_num_patches=max_num_patches,
    )


def landmarks_zero_shot(
    path: str, *, cache: ClassCache | None = None, max_num_patches: int = 256
) -> ZeroShot:
    """Zero-shot recognition of the landmarks in the test set of Google Landmarks v2.

    Names are whole: what follows a comma is often the town.

    Args:
      path: as for `Landmarks`.
      cache: where class embeddings are kept.
      max_num_patches: token budget at native resolution.
    """
    return ZeroShot(
        source=Landmarks(path),
        label="landmark",
        templates=("a photo of {}",),
        ties="first",
        cache=cache,
        name="gldv2",
        max_num_patches=max_num_patches,
    )


def dollar_street_few_shot(path: str, *, shots: int = 10, max_num_patches: int = 256) -> FewShot:
    """Few-shot recognition of a Dollar Street image's country, learnt on its training table.

    Args:
      path: as for `DollarStreet`.
      shots: images of each country to learn from.
      max_num_patches: token budget at native resolution.
    """
    return FewShot(
        train=DollarStreet(path, (DOLLAR_STREET_TRAIN,)),
        test=DollarStreet(path, (DOLLAR_STREET_TEST,)),
        label="country",
        shots=shots,
        name="dollar_street",
        max_num_patches=max_num_patches,
    )


def geode_few_shot(
    path: str, place: Literal["country", "region"], *, shots: int = 10, max_num_patches: int = 256
) -> FewShot:
    """Few-shot recognition of a GeoDE image's country or region.

    Images of countries with too few to learn from are left out, whichever the place.

    Args:
      path: as for `GeoDE`.
      place: what to tell.
      shots: images of each place to learn from.
      max_num_patches: token budget at native resolution.
    """
    return FewShot(
        train=GeoDE(path, "train", least=shots),
        test=GeoDE(path, "test", least=shots),
        label=place,
        shots=shots,
        name=f"geode_{place}",
        max_num_patches=max_num_patches,
    )
