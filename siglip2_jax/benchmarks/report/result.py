"""Result of an evaluation, a file for each, in the schema of CLIP Benchmark.

LAION-AI/CLIP_benchmark (`clip_benchmark/cli.py`) writes an object of `dataset`, `model`,
`pretrained`, `task`, `metrics` and `language`, from which its `build` makes tables. Ours has the
same, with its names for data sets and numbers where it has any, and all fields under our names in
`siglip2_jax`, which is the part that is read back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

Task = Literal[
    "zeroshot_classification",
    "zeroshot_retrieval",
    "image_caption_selection",
    "fewshot",
    "linear_probe",
    "segmentation",
    "depth",
    "normals",
    "captioning",
    "referring",
    "bias",
]
Setting = str | int | float | bool | None

CLIP_DATASETS: dict[str, str] = {
    "imagenet": "imagenet1k",
    "imagenet_v2": "imagenetv2",
    "objectnet": "objectnet",
    "coco": "mscoco_captions",
    "flickr30k": "flickr30k",
    "xm3600": "crossmodal3600",
}
"""Names of CLIP Benchmark for data sets that papers report; other data sets keep our names."""

CLIP_METRICS: dict[str, dict[str, str]] = {
    "zeroshot_classification": {
        "top1": "acc1",
        "top5": "acc5",
        "mean_per_class": "mean_per_class_recall",
    },
    # There, "image retrieval" is to find an image by a text.
    "zeroshot_retrieval": {f"text_to_image@{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)}
    | {f"image_to_text@{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)},
    "image_caption_selection": {"mean": "acc"},
    "linear_probe": {"top1": "lp_acc1"},
}
"""Names of CLIP Benchmark for our numbers, by task; other numbers keep our names."""

_SECTION = "siglip2_jax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One data set, measured once with one model and one protocol.

    Attributes:
      dataset: such as "imagenet"; `published.published` lists those with published numbers.
      task: what was measured.
      model: name of the released variant, such as "B/16 256", or "custom".
      pretrained: where the weights come from, as the user gave it.
      language: code of the data's language.
      metrics: our evaluators' numbers, from 0 to 1 where they are shares; empty if the data is
        missing.
      protocol: what the numbers depend on besides model and data. The report knows
        `num_patches` (tokens of an image; the budget at native resolution), `resolution` (side in
        pixels, None at native resolution), `preproc`, `text_norm`, `dtype`, `weights`, and for some
        tasks `templates` (a name, or the prompts), `canonical`, `ties`, `border`, `crop` and
        `full_stop`.
      failed: names of images that did not decode; they count as wrong.
      images: how many were measured, those that failed included.
      seconds: of wall-clock time.
      images_per_s: images embedded per second.
      data_wait: share of the time in which the device waited for images, from 0 to 1.
      missing: if the data is not there, a sentence on how to get it.
    """

    dataset: str
    task: Task
    model: str
    pretrained: str
    language: str = "en"
    metrics: dict[str, float]
    protocol: dict[str, Setting]
    failed: tuple[str, ...] = ()
    images: int = 0
    seconds: float = 0.0
    images_per_s: float = 0.0
    data_wait: float = 0.0
    missing: str | None = None

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(
                f"result of {self.dataset}: task is {self.task!r}; expected one of "
                f"{', '.join(get_args(Task))}"
            )
        if bool(self.metrics) == (self.missing is not None):
            raise ValueError(
                f"result of {self.dataset}: it has {len(self.metrics)} numbers and missing is "
                f"{self.missing!r}; expected numbers, or a sentence on how to get the data"
            )
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"result of {self.dataset}: {name} is {value}; expected a number")
        if not 0 <= self.data_wait <= 1:
            raise ValueError(
                f"result of {self.dataset}: data_wait is {self.data_wait}; expected a share from "
                "0 to 1"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data in CLIP Benchmark's schema, with all of this under `siglip2_jax`."""
        names = CLIP_METRICS.get(self.task, {})
        return {
            "dataset": CLIP_DATASETS.get(self.dataset, self.dataset),
            "model": self.model,
            "pretrained": self.pretrained,
            "task": self.task,
            "metrics": {names.get(name, name): value for name, value in self.metrics.items()},
            "language": self.language,
            _SECTION: dataclasses.asdict(self) | {"failed": list(self.failed)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`.

        Raises:
          ValueError: `data` was not written by `to_json`.
        """
        section = data.get(_SECTION)
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(section, Mapping) or section.keys() != fields:
            content = sorted(section) if isinstance(section, Mapping) else section
            raise ValueError(
                f"a result's {_SECTION!r} is {content!r:.80}; expected the fields that "
                "`siglip2 eval` writes there, so measure again with it"
            )
        return cls(**{**section, "failed": tuple(section["failed"])})
