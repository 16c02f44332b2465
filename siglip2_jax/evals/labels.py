"""Labelled sets as they are published: a folder for each class, ReaL's labels, ObjectNet's map."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from siglip2_jax.data.example import make_example
from siglip2_jax.data.files import find_images, is_hidden
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.data.text import read_json, read_lines
from siglip2_jax.evals.classes import Classes

_log = logging.getLogger(__name__)
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class ClassFolders:
    """Images in one folder for each class, such as ImageNet's, ImageNet-v2's and ObjectNet's.

    Examples have the field `folder`, and `label`: the folder's place in the order of names, which
    for ImageNet's WordNet ids is the usual order; where all names are numbers, as in ImageNet-v2,
    the number itself.

    Attributes:
      path: a local directory.
      count: how many folders there must be, since one missing would shift the labels of others;
        None takes what there is.
    """

    path: str
    count: int | None = None

    def open(self) -> Examples:
        """Lists the images; they are read one by one later.

        Raises:
          ValueError: there is no folder or image, or not the right number of folders.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(f"{root}: no such directory (mount gs:// with gcsfuse)")
        folders = sorted(x.name for x in root.iterdir() if x.is_dir() and not is_hidden(x.name))
        if not folders or self.count not in (None, len(folders)):
            expected = "one for each class" if self.count is None else f"{self.count}"
            raise ValueError(f"{root}: found {len(folders)} folders, expected {expected}")
        numbered = all(name.isascii() and name.isdecimal() for name in folders)
        labels = {name: int(name) if numbered else i for i, name in enumerate(folders)}
        files = [(x, Path(x).relative_to(root).parts[0]) for x in find_images([str(root)])]
        rows = [(x, {"label": labels[name], "folder": name}) for x, name in files if name in labels]
        if not rows:
            raise ValueError(f"{root}: there is no image in its {len(folders)} folders")
        if beside := len(files) - len(rows):
            _log.warning("%s: images in no folder are passed over (%d)", root, beside)
        return _ClassFolders(rows)


class _ClassFolders:
    def __init__(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def without_image(self, index: int, /) -> dict[str, Any]:
        path, fields = self._rows[index]
        return make_example(b"", (), path, fields)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.without_image(index) | {"image": Path(self._rows[index][0]).read_bytes()}


@dataclass(frozen=True)
class ReaL:
    """ImageNet's validation images with the reassessed labels (Beyer et al., arXiv 2006.07159).

    Examples have the field `real`, a list of class numbers, which may be empty. Images are told by
    `ILSVRC2012_val_NNNNNNNN` in their field `file_name`, as of TFDS, or else in their names.

    Attributes:
      source: the images, in any order.
      path: `real.json` of google-research/reassessed-imagenet: a list of labels for each image.
    """

    source: Source
    path: str

    def open(self) -> Examples:
        """Opens the images and the labels.

        Raises:
          ValueError: the file of labels is missing or malformed; or as the source.
        """
        labels = read_json(self.path)
        if not (isinstance(labels, list) and all(_are_numbers(x) for x in labels)):
            raise ValueError(
                f"{self.path}: expected a list with a list of class numbers for each image"
            )
        return _ReaL(self.source.open(), labels, self.path)


def _are_numbers(x: Any) -> bool:
    return isinstance(x, list) and all(type(i) is int for i in x)


class _ReaL:
    def __init__(self, examples: Examples, labels: list[list[int]], path: str) -> None:
        self._examples, self._labels, self._path = examples, labels, path

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example = self._examples[index]
        name = str(example.get("file_name", example["name"]))
        if not (match := _VALIDATION.search(name)):
            raise ValueError(
                f"{name}: there is no ILSVRC2012_val_NNNNNNNN in its name, by which "
                f"{self._path} gives labels; keep the names of ImageNet's files"
            )
        number = int(match[1])
        if not 1 <= number <= len(self._labels):
            raise ValueError(f"{name}: {self._path} has labels for 1 to {len(self._labels)} only")
        return example | {"real": self._labels[number - 1]}


def objectnet_classes(
    mappings: str | PathLike[str], imagenet_names: tuple[str, ...] | None = None
) -> Classes:
    """The 113 classes that ObjectNet shares with ImageNet; labels are ObjectNet's folders.

    Barbu et al. 2019, "ObjectNet". Use them with the field `folder` of `ClassFolders`, and cut off
    the red border of 2 pixels that its images have.

    Args:
      mappings: the directory of that name in ObjectNet's archive.
      imagenet_names: of ImageNet's 1,000 classes. The choice is then between the ImageNet classes
        that are part of an ObjectNet class, and every part of the image's class is right. None
        chooses between ObjectNet's names, as CLIP Benchmark does.

    Raises:
      ValueError: a file is missing or malformed, or they do not fit together.
    """
    root = Path(mappings)
    label_of = _texts(root / "folder_to_objectnet_label.json", str)
    folder_of = {label: folder for folder, label in label_of.items()}
    parts = _texts(root / "objectnet_to_imagenet_1k.json", str)
    if missing := parts.keys() - folder_of.keys():
        raise ValueError(f"{root}: no folder is called {min(missing)!r}; the files do not fit")
    folders = sorted(folder_of[label] for label in parts)
    if imagenet_names is None:
        return Classes(tuple(label_of[folder] for folder in folders), tuple(folders))
    if not (root / "imagenet_to_label_2012_v2").is_file():
        raise ValueError(f"{root}/imagenet_to_label_2012_v2: no such file; expected a name a line")
    lines = read_lines(root / "imagenet_to_label_2012_v2")
    indices = _texts(root / "pytorch_to_imagenet_2012_id.json", int)
    try:
        number_of = {lines[line].strip(): int(number) for number, line in indices.items()}
        pairs = sorted(
            (number_of[name], folder_of[label])
            for label, names in parts.items()
            for name in names.split("; ")
        )
        names = tuple(imagenet_names[number] for number, _ in pairs)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{root}: the files do not fit together or with the {len(imagenet_names)} names of "
            f"ImageNet ({type(error).__name__} {error}); take all from one archive of ObjectNet"
        ) from error
    return Classes(names, tuple(folder for _, folder in pairs))


def _texts(path: Path, kind: type) -> dict[str, Any]:
    texts = read_json(path)
    if not (isinstance(texts, dict) and all(type(x) is kind for x in texts.values())):
        kinds = "texts" if kind is str else "numbers"
        raise ValueError(f"{path}: expected an object whose values are {kinds}")
    return texts
