"""Examples that a calibration is fitted to: images with their labels, or pairs with a verdict."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip2_jax.data.rows import read_csv
from siglip2_jax.data.text import read_rows
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.calibrate import Pairs
from siglip2_jax.evals.labels import ClassFolders
from siglip2_jax.evals.prompts import embed_labels

_YES, _NO = {"1", "true", "yes", "y"}, {"0", "false", "no", "n"}


class Judged(NamedTuple):
    """Images, texts, and which of their pairs match.

    Attributes:
      images: paths.
      texts: labels or captions.
      verdicts: (image, text) to whether they match, by their numbers.
      labels: True where the texts are labels, so that every pair of an image has a verdict.
    """

    images: list[str]
    texts: list[str]
    verdicts: dict[tuple[int, int], bool]
    labels: bool


def read_examples(path: str, labels: Sequence[str] = ()) -> Judged:
    """Reads examples of labels or of pairs.

    A directory has a folder of images for each label. A file has rows, in CSV with a header or in
    JSON lines: `image`, a path relative to the file, with `label` (or `labels`, a list), all that
    holds for the image; or with `text` and `match`, a verdict on this pair.

    Args:
      path: the directory, or a file that ends in .csv or .jsonl.
      labels: all labels of the set, in order; those of the examples if there are none.

    Raises:
      ValueError: a row is malformed, or has a label that is not in the set.
    """
    if os.path.isdir(path):
        opened = ClassFolders(path).open()
        rows = [opened.without_image(i) for i in range(len(opened))]  # type: ignore[attr-defined]
        return _labelled([(row["name"], [row["folder"]]) for row in rows], labels, path)
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path} has no rows; expected examples with their labels")
    if "match" in rows[0][1]:
        return _paired(rows, path)
    examples = []
    for where, row in rows:
        names = row.get("labels", row.get("label"))
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
            raise ValueError(
                f"{where}: expected a `label` (or `labels`, a list of texts), or `text` and "
                f"`match`; found {', '.join(row) or 'nothing'}"
            )
        examples.append((_image(row, path, where), names))
    return _labelled(examples, labels, path)


def score(
    model: Model, judged: Judged, templates: Sequence[str], *, max_num_patches: int
) -> tuple[Pairs, int]:
    """Cosines of all pairs with a verdict, and the number of images that could not be read."""
    rows = model.embed_images(judged.images, max_num_patches=max_num_patches)
    readable = np.asarray(np.isfinite(rows).all(axis=1))
    number = np.cumsum(readable) - 1
    if judged.labels:
        texts = embed_labels(model, judged.texts, templates)
    else:
        texts = model.embed_texts(judged.texts)
    places = np.array([x for x in judged.verdicts if readable[x[0]]], np.int64).reshape(-1, 2)
    verdicts = [verdict for (image, _), verdict in judged.verdicts.items() if readable[image]]
    cosines = np.einsum("ne,ne->n", rows[places[:, 0]], texts[places[:, 1]], dtype=np.float64)
    pairs = Pairs(cosines, np.array(verdicts, np.bool_), number[places[:, 0]])
    return pairs, int((~readable).sum())


def _labelled(
    examples: Sequence[tuple[str, list[str]]], labels: Sequence[str], path: str
) -> Judged:
    """Every image with every label: those of its rows match, all others do not."""
    names = list(labels) or sorted({x for _, found in examples for x in found})
    number = {name: i for i, name in enumerate(names)}
    holding: dict[str, set[str]] = {}
    for image, found in examples:
        for name in found:
            if name not in number:
                raise ValueError(
                    f"{path}: {image} has the label {name!r}, which is not among the {len(names)} "
                    "labels of the set"
                )
        holding.setdefault(image, set()).update(found)
    verdicts = {
        (i, number[name]): name in found
        for i, found in enumerate(holding.values())
        for name in names
    }
    return Judged(list(holding), names, verdicts, True)


def _paired(rows: Sequence[tuple[str, dict[str, Any]]], path: str) -> Judged:
    images: dict[str, int] = {}
    texts: dict[str, int] = {}
    verdicts = {}
    for where, row in rows:
        text, match = row.get("text"), str(row.get("match")).strip().lower()
        if not isinstance(text, str) or match not in _YES | _NO:
            raise ValueError(
                f"{where}: expected a `text`, and in `match` true or false; found {text!r:.40} and "
                f"{row.get('match')!r:.40}"
            )
        image = images.setdefault(_image(row, path, where), len(images))
        verdicts[image, texts.setdefault(text, len(texts))] = match in _YES
    return Judged(list(images), list(texts), verdicts, False)


def _image(row: dict[str, Any], path: str, where: str) -> str:
    image = row.get("image")
    if not isinstance(image, str) or not image:
        raise ValueError(f"{where}: expected an `image`, the path of a file, found {image!r:.40}")
    return str(Path(path).parent / image)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file, each with its place for messages."""
    if path.endswith(".jsonl"):
        for number, row in read_rows(path):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, found {row!r:.40}")
            yield f"{path}, line {number}", row
    elif path.endswith(".csv"):
        for number, row, _ in read_csv(path, ","):
            yield f"{path}, line {number}", row
    else:
        raise ValueError(
            f"{path}: expected a directory with a folder for each label, or a file of rows that "
            "ends in .csv or .jsonl"
        )
