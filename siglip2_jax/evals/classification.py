"""Zero-shot classification: how often an image is closest to the prompt of its own class."""

from __future__ import annotations

import dataclasses

import numpy as np

from siglip2_jax.data.example import RESERVED
from siglip2_jax.data.sources import Source
from siglip2_jax.evals.contrastive import recall_at
from siglip2_jax.evals.prompts import embed_labels
from siglip2_jax.inference import Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Top-1 accuracy by cosine similarity with one embedding per class.

    The protocol of CLIP (arXiv 2103.00020, section 3.1.4): a class's embedding is the normalised
    mean over the templates.

    Attributes:
      source: the labelled set; images that cannot be read count as wrong.
      label: field of an example that holds the name of its class; None takes its caption, such as
        `Folder(..., template="{name}")` makes of a row's field "name" (an example's own "name" is
        its file).
      classes: names of all classes; None means those that occur in `source`.
      templates: prompts with one `{}` for the name.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    source: Source
    label: str | None = None
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ("a photo of a {}",)
    name: str = "zero_shot"
    every: int = 1000
    max_num_patches: int = 256

    def __post_init__(self) -> None:
        if self.label in RESERVED:
            raise ValueError(
                f"ZeroShot.label is {self.label!r}, which no source's field can be called; take "
                "another field, or None and a source whose caption is the name of the class"
            )

    def __call__(self, model: Embedder) -> dict[str, float]:
        """`top1`, from 0 to 1; a tie with another class counts as wrong.

        Raises:
          ValueError: an example has no label, or one that is not among `classes`.
        """
        opened = self.source.open()
        examples = [opened[i] for i in range(len(opened))]
        labels = [self._label(example) for example in examples]
        classes = sorted(set(labels)) if self.classes is None else list(self.classes)
        if unknown := set(labels).difference(classes):
            raise ValueError(
                f"evaluator {self.name!r}: the label {min(unknown)!r} is none of its "
                f"{len(classes)} classes; add it to classes"
            )
        images = model.embed_images(
            [example["image"] for example in examples], max_num_patches=self.max_num_patches
        )
        scores = images @ embed_labels(model, classes, self.templates).T
        own = np.array(labels)[:, None] == np.array(classes)
        return {"top1": recall_at(np.nan_to_num(scores, nan=-2.0), own, 1)}

    def _label(self, example: dict) -> str:
        if self.label is not None:
            found = example.get(self.label)
        else:
            found = example["captions"][0] if len(example["captions"]) == 1 else None
        if not isinstance(found, str):
            place = "captions" if self.label is None else self.label
            raise ValueError(
                f"evaluator {self.name!r}: {example['name']} has {example.get(place)!r} as its "
                f"{place}; expected one text, the name of its class"
            )
        return found
