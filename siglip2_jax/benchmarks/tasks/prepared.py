"""Datasets prepared by TensorFlow Datasets, where images in folders would do too."""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from siglip2_jax.data.example import CAPTION_FIELDS
from siglip2_jax.data.sources import Source
from siglip2_jax.data.tfds import Tfds
from siglip2_jax.evals.labels import ClassFolders

INFO = "dataset_info.json"
"""File that marks the directory of a dataset's version."""

IMAGENET = "imagenet2012"
IMAGENET_V2 = "imagenet_v2/matched-frequency"


def or_prepared(folder: str, dataset: str) -> tuple[str, str]:
    """Required files: the folder, or a version of the dataset beside it."""
    return folder, f"{dataset}/[0-9]*/{INFO}"


def how_prepared(dataset: str) -> str:
    """Sentence on the alternative of `or_prepared`."""
    return f"or put TFDS's {dataset} there instead (file_format='array_record')"


def imagenet_images(root: Path, folder: str, dataset: str, split: str) -> Source:
    """Images of ImageNet's classes; `label` of an example is its class's place in their order.

    Args:
      root: the task's directory.
      folder: in it, with a folder for each of the 1,000 classes; read where it is there.
      dataset: else its highest version there: TFDS numbers the same classes in the same order.
      split: of that.
    """
    versions = [info.parent for info in root.glob(or_prepared(folder, dataset)[1])]
    if (root / folder).is_dir() or not versions:
        return ClassFolders(str(root / folder), count=1000)
    version = max(versions, key=lambda path: [int(x) for x in re.findall(r"\d+", path.name)])
    return Tfds(dataset, split, str(version), template="{label}")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Any prepared dataset.

    Attributes:
      root: the directory of one version.
    """

    root: Path

    @cached_property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """The field with the class, a number, and the names of the classes.

        That is the one class label among the fields, or of several the one called `label`.

        Raises:
          ValueError: no field or several may be the class, or the dataset cannot be opened.
        """
        import tensorflow_datasets as tfds

        fields, kind = self._info.features, tfds.features.ClassLabel
        label_fields = sorted(key for key, feature in fields.items() if isinstance(feature, kind))
        if len(label_fields) != 1 and "label" not in label_fields:
            raise ValueError(
                f"{self.root}: its class labels are {', '.join(label_fields) or 'none'}, among the "
                f"fields {', '.join(sorted(fields))}; expected one, or one called label"
            )
        label = "label" if "label" in label_fields else label_fields[0]
        return label, tuple(fields[label].names)

    def labelled(self, splits: tuple[str, ...]) -> Tfds:
        """The first of the splits that exists and has labels: many test splits come without.

        Raises:
          ValueError: no such split exists, or as `labels`.
        """
        label, _ = self.labels
        for split in self._splits(splits):
            source = Tfds(self._info.name, split, str(self.root), template=f"{{{label}}}")
            if source.open()[0][label] >= 0:
                return source
        raise ValueError(
            f"{self.root}: the examples of its splits {', '.join(self._splits(splits))} have no "
            f"class in {label}; prepare a split with classes"
        )

    def captioned(self, splits: tuple[str, ...]) -> Tfds:
        """The first of the splits that exists, with its captions.

        They are in `captions`, `caption` or `text`, or, as in coco_captions, in a `text` in it.

        Raises:
          ValueError: there is no such split or field, or the dataset cannot be opened.
        """
        import tensorflow_datasets as tfds

        fields = self._info.features
        field = next((key for key in CAPTION_FIELDS if key in fields), None)
        if field is None:
            raise ValueError(
                f"{self.root}: its fields are {', '.join(sorted(fields))}; expected "
                f"{', '.join(CAPTION_FIELDS)} among them"
            )
        item = getattr(fields[field], "feature", fields[field])  # of a sequence
        path = f"{field}/text" if isinstance(item, tfds.features.FeaturesDict) else field
        return Tfds(self._info.name, self._splits(splits)[0], str(self.root), captions=path)

    def _splits(self, names: tuple[str, ...]) -> list[str]:
        splits = self._info.splits
        if available := [split for split in names if split in splits]:
            return available
        raise ValueError(
            f"{self.root}: its splits are {', '.join(splits) or 'none'}; expected "
            f"{' or '.join(names)} among them"
        )

    @cached_property
    def _info(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(self.root).info
        except Exception as error:  # TFDS raises many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{self.root} cannot be opened ({reason}); expected a version of a dataset as TFDS "
                "prepares it"
            ) from error


def is_prepared(root: Path) -> bool:
    """True for the directory of a version of a TFDS data set."""
    return (root / INFO).is_file()
