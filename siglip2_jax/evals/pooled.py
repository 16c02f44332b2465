"""Pooled features of labelled images, for probes that classify whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.preprocess.decode import NamedImage


def readable(x: Float[np.ndarray, "n D"]) -> Bool[np.ndarray, " n"]:
    """True for rows that are finite throughout."""
    return np.asarray(np.isfinite(x).all(axis=1))


def labelled_features(
    model: Model, source: Source, label: str, *, max_num_patches: int = 256
) -> tuple[Float[np.ndarray, "n D"], list[str | int]]:
    """The pooling head's outputs before normalisation (big_vision's `pre_logits`), and labels.

    Args:
      model: gives the features; an unreadable image gets a row of NaN.
      source: the labelled set, read as a stream.
      label: field of an example that holds its class, a text or a number.
      max_num_patches: token budget at native resolution.

    Raises:
      ValueError: an example has no label.
    """
    opened, labels = source.open(), []

    def images() -> Iterator[NamedImage]:
        for i in range(len(opened)):
            example = opened[i]
            found = example.get(label)
            if not isinstance(found, str | int):
                raise ValueError(
                    f"{example['name']} has {found!r} as its {label}; expected a text or a whole "
                    "number, its class"
                )
            labels.append(found)
            yield NamedImage(example["image"], example["name"])

    x = model.embed_images(images(), max_num_patches=max_num_patches, normalize=False)
    return x, labels


def shared_classes(
    train: Sequence[str | int], test: Sequence[str | int]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Labels as numbers from 0, the same for both lists, in the order of sorted names."""
    number = {name: i for i, name in enumerate(sorted({*train, *test}, key=str))}
    train_y, test_y = ([number[name] for name in names] for names in (train, test))
    return np.array(train_y, np.int64), np.array(test_y, np.int64)
