"""Zero-shot classification: how often an image is closest to the prompts of its own class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

from siglip2_jax.data.example import RESERVED
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.evals.accuracy import Ties, embedding_metrics
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.class_embeddings import ClassCache, class_embeddings
from siglip2_jax.evals.classes import Classes, label_values
from siglip2_jax.evals.crops import check_share, cut_border, cut_centre
from siglip2_jax.evals.prompts import fill_prompts
from siglip2_jax.preprocess.decode import ImageSource, NamedImage
from siglip2_jax.progress import Update

READ_AHEAD = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Accuracy by cosine similarity with one embedding per class.

    The protocol of CLIP (arXiv 2103.00020, section 3.1.4): a class's embedding is the normalised
    mean over the templates. Published numbers of SigLIP on ImageNet, v2, ReaL and the like are
    big_vision's, which needs `templates=CLIP_PAPER, canonical=True, ties="first"` and CLIP's names
    of ImageNet's classes as `classes`.

    Attributes:
      source: the labelled set; images that cannot be read count as wrong.
      label: field of an example that holds its class: a name, a number, or a list of either, of
        which any is right; images with an empty list are left out. None takes the caption, such as
        `Folder(..., template="{name}")` makes of a row's field "name" (an example's own "name" is
        its file).
      classes: names of all classes, in the order of numbers; None means those that occur in
        `source`. `Classes` says what the data's labels mean, and leaves out images of others.
      templates: prompts with one `{}` for the name.
      canonical: lower case without punctuation, and only the first of several names.
      ties: whether a tie with another class is "wrong", or goes to the "first" of the two.
      border: pixels cut off at each side: 2 for ObjectNet.
      crop: share of each side that is then kept, about the centre; `crops.CENTRE` is that of
        big_vision's configuration.
      cache: where class embeddings are kept; not for use in training.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    source: Source
    label: str | None = None
    classes: tuple[str, ...] | Classes | None = None
    templates: tuple[str, ...] = ("a photo of a {}",)
    canonical: bool = False
    ties: Ties = "wrong"
    border: int = 0
    crop: float = 1.0
    cache: ClassCache | None = None
    name: str = "zero_shot"
    every: int = 1000
    max_num_patches: int = 256

    def __post_init__(self) -> None:
        if self.label in RESERVED:
            raise ValueError(
                f"ZeroShot.label is {self.label!r}, a reserved name; expected another field, or "
                "None and a source whose caption is the name of the class"
            )
        if self.border < 0:
            raise ValueError(f"ZeroShot.border is {self.border} pixels; expected 0 or more")
        check_share("ZeroShot", self.crop)
        if self.ties not in get_args(Ties):
            raise ValueError(f"ZeroShot.ties is {self.ties!r}; expected 'wrong' or 'first'")
        # Wrong prompts fail here, before any image is read.
        names = self.classes.names if isinstance(self.classes, Classes) else self.classes
        fill_prompts(("x",) if names is None else names, self.templates, canonical=self.canonical)

    def __call__(self, model: Model, show: Update | None = None) -> dict[str, float]:
        """`top1`, `top5` and, where every image has one label, `mean_per_class`, from 0 to 1.

        Images are read and embedded as a stream; of each only the embedding is kept.

        Args:
          model: embeds images and prompts.
          show: gets how many images have been read, and of how many.

        Raises:
          ValueError: an example has no label or one that is not among `classes`, or no example
            has a label that means a class.
        """
        opened = self.source.open()
        classes = Classes(self.classes) if isinstance(self.classes, tuple) else self.classes
        labels: list[tuple[Any, ...]] = []
        images = model.embed_images(
            self._images(opened, classes, labels, show), max_num_patches=self.max_num_patches
        )
        if not labels:
            raise ValueError(
                f"evaluator {self.name!r}: none of the {len(opened)} examples has a label that "
                f"means one of its classes; check label={self.label!r} and classes"
            )
        if classes is None:
            classes = Classes(tuple(sorted({x for label_set in labels for x in label_set})))
            labels = [classes.positions(label_set) for label_set in labels]
        rows = class_embeddings(
            model, classes.names, self.templates, canonical=self.canonical, cache=self.cache
        )
        return embedding_metrics(images, rows, labels, ties=self.ties)

    def _images(
        self,
        opened: Examples,
        classes: Classes | None,
        labels: list[tuple[Any, ...]],
        show: Update | None,
    ) -> Iterator[ImageSource]:
        """Images that have a label; appends the labels to `labels`."""
        read_example = partial(self._read, opened, classes)
        for done, (label_set, image) in enumerate(
            thread_map(read_example, range(len(opened)), READ_AHEAD), 1
        ):
            if show is not None:
                show(done, len(opened))
            if label_set:
                labels.append(label_set)
                yield image

    def _read(
        self, opened: Examples, classes: Classes | None, index: int
    ) -> tuple[tuple[Any, ...], ImageSource]:
        """An example's classes, by number or, where these are not known yet, by name; its image."""
        example = opened[index]
        label_set = self._labels(example)
        if classes is not None:
            try:
                label_set = classes.positions(label_set)
            except ValueError as error:
                raise ValueError(f"evaluator {self.name!r}: {error}") from error
        elif not all(isinstance(x, str) for x in label_set):
            raise ValueError(
                f"evaluator {self.name!r}: the label of {example['name']} is a number; give "
                "classes, the names in the order of numbers"
            )
        image = example["image"]
        if label_set:
            image = cut_centre(cut_border(image, self.border), self.crop)
        return label_set, NamedImage(image, example["name"])

    def _labels(self, example: dict[str, Any]) -> tuple[int | str, ...]:
        if self.label is not None:
            values = label_values(example.get(self.label))
        else:
            values = example["captions"] if len(example["captions"]) == 1 else None
        if values is None:
            place = "captions" if self.label is None else self.label
            raise ValueError(
                f"evaluator {self.name!r}: {example['name']} has {example.get(place)!r} as its "
                f"{place}; expected one text, the name of its class, or (not in captions) a "
                "number or a list"
            )
        return tuple(values)
