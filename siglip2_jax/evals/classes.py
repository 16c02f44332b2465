"""Names of classes and templates, from the files in which they are published.

The names themselves are not part of the package. CLIP Benchmark (LAION-AI/CLIP_benchmark) has them
in several languages, with templates; Babel-ImageNet (Geigle et al. 2023, arXiv 2306.08658) in 93.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from siglip2_jax.data.text import read_json, read_lines


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes to choose between, where labels of the data differ from their names.

    Attributes:
      names: what prompts are made of.
      labels: for each class, the data's label that means it: a number or a text. A label may mean
        several classes; images whose labels mean none are left out. None: the data's labels are
        the names, or numbers of names, and every one must be there.
    """

    names: tuple[str, ...]
    labels: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("there are no class names; give at least one")
        if self.labels is not None and len(self.labels) != len(self.names):
            raise ValueError(
                f"there are {len(self.names)} class names and {len(self.labels)} labels; expected "
                "one label for each name"
            )

    def positions(self, labels: Iterable[int | str]) -> tuple[int, ...]:
        """The classes that labels mean: numbers from 0, each once.

        Raises:
          ValueError: `self.labels` is None and a label is no class.
        """
        classes = {i for label in labels for i in self._positions_of(label)}
        return tuple(sorted(classes))

    def _positions_of(self, label: int | str) -> tuple[int, ...]:
        if self.labels is None and isinstance(label, int):
            positions = (label,) if 0 <= label < len(self.names) else ()
        else:
            positions = self._index.get(label, ())
        if not positions and self.labels is None:
            raise ValueError(
                f"the label {label!r} is not one of the {len(self.names)} classes; add it to them"
            )
        return positions

    @cached_property
    def _index(self) -> dict[int | str, tuple[int, ...]]:
        index: dict[int | str, tuple[int, ...]] = {}
        for i, label in enumerate(self.names if self.labels is None else self.labels):
            index[label] = (*index.get(label, ()), i)
        return index


def label_values(field: Any) -> tuple[int | str, ...] | None:
    """The labels in an example's field: a text, a number or several; None if it holds others."""
    value = field.tolist() if isinstance(field, np.ndarray | np.generic) else field
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    valid = all(isinstance(x, str | int) and not isinstance(x, bool) for x in values)
    return values if valid else None


def read_class_names(path: str | PathLike[str], dataset: str | None = None) -> tuple[str, ...]:
    """Class names in order.

    Args:
      path: a text file with a name a line; or a `.json` file with a list of names, or, as
        `en_classnames.json` of CLIP Benchmark, with an object of lists.
      dataset: which list of the object, such as "imagenet1k"; None where there is only one.

    Raises:
      ValueError: the file is missing or malformed, or has no such list.
    """
    if not str(path).endswith(".json"):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; expected a class name a line")
        return tuple(line.strip() for line in read_lines(Path(path)))
    names = read_json(path)
    if isinstance(names, dict):
        names = _entry(names, dataset, path)
    if not _is_list_of(names, str) or not names:
        raise ValueError(f"{path}: expected a list of texts, found {json.dumps(names)[:60]}")
    return tuple(names)


def read_templates(path: str | PathLike[str], dataset: str | None = None) -> tuple[str, ...]:
    """Templates, with `{}` for the name: files as for `read_class_names`.

    CLIP Benchmark's `{c}` is turned into `{}`; Babel-ImageNet's file has languages for datasets.

    Raises:
      ValueError: as `read_class_names`, or a template has not one place for the name.
    """
    templates = tuple(x.replace("{c}", "{}") for x in read_class_names(path, dataset))
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"{path}: the template {template!r} has {template.count('{}')} places for the "
                "class name; expected one {} or {c}"
            )
    return templates


def read_babel(path: str | PathLike[str], language: str) -> Classes:
    """The classes of ImageNet that have a name in a language, with those names.

    Images of other classes are left out, as the benchmark does.

    Args:
      path: `babel_imagenet.json`: for each language, class indices and their names.
      language: as the file calls it, such as "DE".

    Raises:
      ValueError: the file is missing or malformed, or lacks the language.
    """
    languages = read_json(path)
    if not isinstance(languages, dict):
        raise ValueError(f"{path}: expected an object with a key for each language")
    entry = _entry(languages, language, path)
    pair = isinstance(entry, list) and len(entry) == 2
    if not (pair and _is_list_of(entry[0], int) and _is_list_of(entry[1], str)):
        raise ValueError(
            f"{path}: {language} holds {json.dumps(entry)[:60]}; expected a list of class indices "
            "and a list of their names"
        )
    indices, names = entry
    if len(indices) != len(names) or len(set(indices)) != len(indices):
        raise ValueError(
            f"{path}: {language} has {len(names)} names for {len(set(indices))} different classes "
            f"({len(indices)} indices); expected one name for each"
        )
    return Classes(tuple(names), tuple(indices))


def _entry(lists: dict[str, Any], key: str | None, path: str | PathLike[str]) -> Any:
    if key is None and len(lists) == 1:
        return next(iter(lists.values()))
    if key not in lists:
        problem = "it holds several lists" if key is None else f"there is no {key!r}"
        raise ValueError(f"{path}: {problem}; choose one of {', '.join(sorted(lists))}")
    return lists[key]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(x) is kind for x in value)
