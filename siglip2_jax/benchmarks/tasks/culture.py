"""Tasks of culture and fairness: tables 8 and 9 of SigLIP 2 (arXiv 2502.14786, section 3.5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from siglip2_jax.benchmarks.culture.data import DollarStreet, GeoDE
from siglip2_jax.benchmarks.culture.evaluators import IncomeZeroShot, RepresentationBias
from siglip2_jax.benchmarks.culture.geography import (
    dollar_street_few_shot,
    geode_few_shot,
    geode_zero_shot,
    landmarks_zero_shot,
)
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.classes import read_class_names

_TABLES = "images_v2_imagenet_train.csv", "images_v2_imagenet_test.csv"
_UNPACK = "unpack dataset_dollarstreet (mlcommons.org/datasets/dollar-street)"
_geode = partial(
    Task,
    folder="geode",
    required_files=("index.csv", "images"),
    setup_hint="index.csv and images from geodiverse-data-collection.cs.princeton.edu",
)


def _incomes(setting: Setting) -> IncomeZeroShot:
    return IncomeZeroShot(
        source=DollarStreet(str(setting.root)),
        classes=read_class_names(setting.root / "classnames.json", "imagenet1k"),
        cache=setting.cache,
        max_num_patches=setting.budget,
    )


def _bias(setting: Setting) -> RepresentationBias:
    return RepresentationBias(source=GeoDE(str(setting.root)), max_num_patches=setting.budget)


def _zero_shot(make: Callable[..., Evaluator]) -> Callable[[Setting], Evaluator]:
    return lambda setting: make(
        str(setting.root), cache=setting.cache, max_num_patches=setting.budget
    )


def _few_shot(make: Callable[..., Evaluator]) -> Callable[[Setting], Evaluator]:
    return lambda setting: make(str(setting.root), max_num_patches=setting.budget)


def _geode_place(
    place: Literal["country", "region"], path: str, *, max_num_patches: int
) -> Evaluator:
    return geode_few_shot(path, place, max_num_patches=max_num_patches)


TASKS: tuple[Task, ...] = (
    Task(
        name="dollar_street",
        folder="dollar_street",
        kind="zeroshot_classification",
        required_files=(*_TABLES, "classnames.json"),
        setup_hint=f"{_UNPACK}; classnames.json as for imagenet",
        make=_incomes,
        metric="top1",
    ),
    Task(
        name="dollar_street_10shot",
        folder="dollar_street",
        dataset="dollar_street",
        kind="fewshot",
        required_files=_TABLES,
        setup_hint=_UNPACK,
        make=_few_shot(dollar_street_few_shot),
        metric="10shot",
    ),
    _geode(
        name="geode",
        kind="zeroshot_classification",
        make=_zero_shot(geode_zero_shot),
        metric="top1",
    ),
    *(
        _geode(
            name=f"geode_{place}",
            kind="fewshot",
            make=_few_shot(partial(_geode_place, place)),
            metric="10shot",
        )
        for place in ("country", "region")
    ),
    Task(
        name="gldv2",
        kind="zeroshot_classification",
        folder="gldv2",
        required_files=("recognition_solution_v2.1.csv", "train_label_to_category.csv"),
        setup_hint="the test images and both tables from cvdfoundation/google-landmark",
        make=_zero_shot(landmarks_zero_shot),
        metric="top1",
    ),
    _geode(name="bias", kind="bias", make=_bias, metric="representation_bias"),
)
"""In the order of the tables."""
