"""TensorFlow Datasets, read without TensorFlow (tensorflow.org/datasets/data_source)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from google.protobuf.message import DecodeError

from siglip2_jax.data.example import as_captions, fill, make_example
from siglip2_jax.data.record_files import RecordExamples, RecordFiles
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.text import plain_text
from siglip2_jax.strings import Strings


@dataclass(frozen=True)
class Tfds:
    """A prepared dataset in the ArrayRecord format, with images stored as encoded files.

    Attributes:
      name: as `tfds.builder` takes it, such as "coco_captions/2014:1.1.0".
      split: such as "train" or "train[:90%]+validation".
      directory: where the dataset is: the directory of one version (with `dataset_info.json`), or
        a data directory of TFDS; None for TFDS's own.
      image: the field with the image.
      captions: the field with captions: a text, a sequence of them, or one in a dict or sequence of
        dicts, written as a path: "captions/text"; None for no captions.
      template: makes the caption of other fields instead: "a photo of a {label}". Class labels are
        filled in by name.
    """

    name: str
    split: str
    directory: str | None = None
    image: str = "image"
    captions: str | None = "captions"
    template: str | None = None

    def open(self) -> Examples:
        """Opens the prepared files; nothing is downloaded.

        Raises:
          ValueError: the dataset, split or a field is not there, or the format has no random
            access.
        """
        import tensorflow_datasets as tfds

        features, files = self._open(tfds)
        if not len(files):
            raise ValueError(f"{self._label} holds no examples")
        fields = [self.image]
        if self.template is None and self.captions is not None:
            fields.append(self.captions.split("/")[0])
        for field in fields:
            if field not in features:
                raise ValueError(
                    f"{self._label} has no field {field}; its fields are "
                    f"{', '.join(sorted(features))}"
                )
        classes = {
            key: tuple(feature.names)
            for key, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel)
        }
        texts = tuple(
            key for key, feature in features.items() if isinstance(feature, tfds.features.Text)
        )
        if self.template:
            fill(self.template, dict.fromkeys(features, 0), self._label)
        # Images are decoded by our own rules, and only those that are used.
        decoders = {
            key: tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Image)
        }
        return _TfdsExamples(
            files=files,
            source=self,
            features=features,
            decoders=decoders,
            classes=classes,
            texts=texts,
        )

    @property
    def _label(self) -> str:
        return f"{self.name}:{self.split}"

    def _open(self, tfds: Any) -> tuple[Any, RecordFiles]:
        """The features and the records."""
        directory = self.directory and epath.Path(self.directory)
        try:
            if directory and (directory / "dataset_info.json").is_file():
                builder = tfds.builder_from_directory(directory)
            else:
                builder = tfds.builder(self.name, data_dir=directory)
            if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
                raise ValueError(f"its format is {builder.info.file_format}")
            pieces = builder.info.splits[self.split].file_instructions
        except Exception as error:  # TFDS raises many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{self._label} cannot be opened in {self.directory or 'the TFDS directory'} "
                f"({reason}); expected a dataset prepared with file_format='array_record'"
            ) from error
        firsts, counts, totals = (
            np.array([(x.skip, x.take, x.examples_in_shard) for x in pieces], np.int64)
            .reshape(-1, 3)
            .T
        )
        paths = Strings.join(os.fspath(piece.filename) for piece in pieces)
        return builder.info.features, RecordFiles(paths, firsts, counts, totals)


@dataclass(frozen=True, kw_only=True)
class _TfdsExamples(RecordExamples):
    source: Tfds
    features: Any
    decoders: dict[str, Any]
    classes: dict[str, tuple[str, ...]]
    texts: tuple[str, ...]

    def name(self, index: int) -> str:
        return f"{self.source.name}:{self.source.split}[{index}]"

    def make(self, record: bytes, name: str) -> dict[str, Any]:
        source = self.source
        try:
            row = self.features.deserialize_example_np(record, decoders=self.decoders)
        except DecodeError as error:
            raise ValueError(f"the record is damaged ({error})") from error
        row.update({key: plain_text(row[key]) for key in self.texts})
        image = row.pop(source.image)
        if not isinstance(image, bytes):
            raise ValueError(f"{source.image} is {type(image).__name__}, expected encoded bytes.")
        captions: tuple[str, ...] = ()
        if source.template:
            classes = {key: x[row[key]] for key, x in self.classes.items() if row[key] >= 0}
            captions = (fill(source.template, row | classes, name),)
        elif source.captions is not None:
            captions = as_captions(_at(row, source.captions, name), name)
        return make_example(image, captions, name, row)


def _at(row: dict[str, Any], path: str, name: str) -> Any:
    value: Any = row
    for key in path.split("/"):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{name}: there is no field {path}.")
        value = value[key]
    return value
