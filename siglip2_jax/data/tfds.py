"""TensorFlow Datasets, read without TensorFlow (tensorflow.org/datasets/data_source)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from etils import epath

from siglip2_jax.data.example import as_captions, fill, make_example, naming
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.text import plain_text


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
        dicts, written as a path: "captions/text".
      template: makes the caption of other fields instead: "a photo of a {label}". Class labels are
        filled in by name.
    """

    name: str
    split: str
    directory: str | None = None
    image: str = "image"
    captions: str = "captions"
    template: str | None = None

    def open(self) -> Examples:
        """Opens the prepared files; nothing is downloaded.

        Raises:
          ValueError: the dataset, split or a field is not there, or the format has no random
            access.
        """
        import tensorflow_datasets as tfds

        features, data = self._open(tfds)
        if not len(data):
            raise ValueError(f"{self._label} holds no examples")
        fields = [self.image] if self.template else [self.image, self.captions.split("/")[0]]
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
        return _TfdsExamples(data, self, classes, texts)

    @property
    def _label(self) -> str:
        return f"{self.name}:{self.split}"

    def _open(self, tfds: Any) -> tuple[Any, Any]:
        """The features and the data source."""
        directory = self.directory and epath.Path(self.directory)
        try:
            if directory and (directory / "dataset_info.json").is_file():
                builder = tfds.builder_from_directory(directory)
            else:
                builder = tfds.builder(self.name, data_dir=directory)
            features = builder.info.features
            # Images are decoded by our own rules, and only those that are used.
            decoders = {
                key: tfds.decode.SkipDecoding()
                for key, feature in features.items()
                if isinstance(feature, tfds.features.Image)
            }
            return features, builder.as_data_source(split=self.split, decoders=decoders)
        except Exception as error:  # TFDS raises many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{self._label} cannot be opened in {self.directory or 'the TFDS directory'} "
                f"({reason}); expected a dataset prepared with file_format='array_record'"
            ) from error


class _TfdsExamples:
    def __init__(
        self,
        data: Any,
        source: Tfds,
        classes: dict[str, tuple[str, ...]],
        texts: tuple[str, ...],
    ) -> None:
        self._data, self._source, self._classes, self._texts = data, source, classes, texts

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        source = self._source
        name = f"{source.name}:{source.split}[{index}]"
        with naming(name):
            try:
                row = self._data[index]
            except RuntimeError as error:
                raise ValueError(f"the record cannot be read ({error}).") from error
            row.update({key: plain_text(row[key]) for key in self._texts})
            image = row.pop(source.image)
            if not isinstance(image, bytes):
                raise ValueError(
                    f"{source.image} is {type(image).__name__}, expected encoded bytes."
                )
            if source.template:
                classes = {key: x[row[key]] for key, x in self._classes.items() if row[key] >= 0}
                captions = (fill(source.template, row | classes, name),)
            else:
                captions = as_captions(_at(row, source.captions, name), name)
            return make_example(image, captions, name, row)


def _at(row: dict[str, Any], path: str, name: str) -> Any:
    value: Any = row
    for key in path.split("/"):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{name}: there is no field {path}.")
        value = value[key]
    return value
