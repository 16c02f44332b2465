"""Pooled features of labelled images, for probes that classify whole images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Described, Examples
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.crops import cut_centre
from siglip2_jax.preprocess.decode import NamedImage

READ_AHEAD = 32


def readable(x: Float[np.ndarray, "n D"]) -> Bool[np.ndarray, " n"]:
    """True for rows that are finite throughout."""
    return np.asarray(np.isfinite(x).all(axis=1))


def labelled_features(
    model: Model, examples: Examples, label: str, *, max_num_patches: int = 256, crop: float = 1.0
) -> tuple[Float[np.ndarray, "n D"], list[str | int]]:
    """The pooling head's outputs before normalisation (big_vision's `pre_logits`), and labels.

    Args:
      model: gives the features; an unreadable image gets a row of NaN.
      examples: the labelled set, read as a stream.
      label: field of an example that holds its class, a text or a number.
      max_num_patches: token budget at native resolution.
      crop: share of each side that is kept, about the centre.

    Raises:
      ValueError: an example has no label.
    """
    labels: list[str | int] = []

    def read() -> Iterator[dict[str, Any]]:
        for i in range(len(examples)):
            example = examples[i]
            labels.append(_label(example, label))
            yield example

    return _embed(model, read(), max_num_patches, crop), labels


def chosen_features(
    model: Model,
    examples: Examples,
    rows: Sequence[int],
    *,
    max_num_patches: int = 256,
    crop: float = 1.0,
) -> Float[np.ndarray, "n D"]:
    """`labelled_features` of some examples; no other example is read."""
    return _embed(model, (examples[i] for i in rows), max_num_patches, crop)


def read_labels(examples: Examples, label: str, count: int) -> list[str | int]:
    """The labels of the first `count` examples, without their images where the source can do so.

    Raises:
      ValueError: an example has no label.
    """
    rows = range(min(count, len(examples)))
    if isinstance(examples, Described):
        return [_label(examples.without_image(i), label) for i in rows]
    return [_label(x, label) for x in thread_map(examples.__getitem__, rows, READ_AHEAD)]


def shared_classes(
    train: Sequence[str | int], test: Sequence[str | int]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Labels as numbers from 0, the same for both lists: numbers in their order, then texts."""
    names = sorted({*train, *test}, key=lambda name: (isinstance(name, str), name))
    number = {name: i for i, name in enumerate(names)}
    train_y, test_y = ([number[name] for name in names] for names in (train, test))
    return np.array(train_y, np.int64), np.array(test_y, np.int64)


def _embed(
    model: Model, examples: Iterable[dict[str, Any]], max_num_patches: int, crop: float
) -> Float[np.ndarray, "n D"]:
    images = (NamedImage(cut_centre(x["image"], crop), x["name"]) for x in examples)
    return model.embed_images(images, max_num_patches=max_num_patches, normalize=False)


def _label(example: Mapping[str, Any], label: str) -> str | int:
    value = example.get(label)
    if not isinstance(value, str | int):
        raise ValueError(
            f"{example['name']} has {value!r} as its {label}; expected a text or a whole number, "
            "its class"
        )
    return value
