"""Rows to batches: what an example gives, written into the arrays of many; NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from siglip2_jax.data.prepare import Transform, Views
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import write_padded
from siglip2_jax.types import Batch, Patches


def collate(
    items: Sequence[Mapping[str, Any]], num_tokens: int, pixels: DTypeLike = np.float32
) -> Batch:
    """Stacks the arrays of examples.

    Args:
      items: what `Prepare` gave for each of B examples.
      num_tokens: N, the length that images are padded to.
      pixels: the dtype of patches.

    Returns:
      A batch of NumPy arrays; `fields` has the transforms' fields: arrays [B, ...], and `Patches`
      [B, V, N, P] of `Views`.

    Raises:
      ValueError: there are no items, an image has more patches than `num_tokens`, or the examples'
        fields differ in names, shapes or dtypes.
    """
    if not items:
        raise ValueError("A batch needs at least one image.")
    row = empty_row(items[0], num_tokens, pixels)
    out = jax.tree.map(lambda x: np.empty((len(items), *x.shape[1:]), x.dtype), row)
    for i, item in enumerate(items):
        write_row(item, out, i)
    return out


def empty_row(item: Mapping[str, Any], num_tokens: int, pixels: DTypeLike = np.float32) -> Batch:
    """A batch of one row of zeros, with the structure, shapes and dtypes of one that has `item`.

    Args:
      item: what `Prepare` gave for an example.
      num_tokens: N, the length that images are padded to.
      pixels: the dtype of patches.
    """

    def patches(length: int, values: int, *lead: int) -> Patches:
        shape = 1, *lead, length
        return Patches(
            pixels=np.zeros((*shape, values), pixels),
            yx=np.zeros((*shape, 2), np.int32),
            valid=np.zeros(shape, np.bool_),
        )

    def field(value: Any) -> Any:
        if isinstance(value, Views):
            return patches(value.num_tokens, value.images[0][0].shape[1], len(value.images))
        return jax.tree.map(lambda x: np.zeros((1, *np.shape(x)), np.asarray(x).dtype), value)

    names = sorted(item.keys() - {"image", "text"})
    return Batch(
        image=patches(num_tokens, item["image"][0].shape[1]),
        text=field(item["text"]),
        fields={name: field(item[name]) for name in names},
    )


def write_row(item: Mapping[str, Any], out: Batch, row: int) -> None:
    """Writes what `Prepare` gave for an example into one row of a batch.

    Raises:
      ValueError: an image has more patches than there is room for, or a field is missing, unknown,
        or of another shape or dtype.
    """
    if odd := (item.keys() - {"image", "text"}) ^ out.fields.keys():
        raise ValueError(
            f"only some examples of a batch have the field {min(odd)}; give it to all, those "
            "without any field of a source included"
        )
    write_padded(item["image"], out.image, row)
    _write("text", item["text"], out.text, row)
    for name, array in out.fields.items():
        _write(name, item[name], array, row)


def _write(name: str, value: Any, out: Any, row: int) -> None:
    """Writes an array, several, or views."""
    if isinstance(value, Views):
        views = Patches(out.pixels[row], out.yx[row], out.valid[row])
        if len(value.images) != len(views.pixels):
            raise ValueError(
                f"the field {name} has {len(value.images)} views in one example and "
                f"{len(views.pixels)} in others; give all the same number"
            )
        for i, image in enumerate(value.images):
            write_padded(image, views, i)
    elif isinstance(value, dict):
        if value.keys() != out.keys():
            raise ValueError(f"the field {name} has the keys {set(value)}, elsewhere {set(out)}")
        for key, part in value.items():
            _write(f"{name}/{key}", part, out[key], row)
    else:
        array = np.asarray(value)
        if (array.shape, array.dtype) != (out.shape[1:], out.dtype):
            raise ValueError(
                f"the field {name} is {array.dtype}{list(array.shape)} in one example and "
                f"{out.dtype}{list(out.shape[1:])} in others; give all the same shape and dtype"
            )
        out[row] = array


def blank_row(
    preprocess: ImagePreprocessor,
    text_length: int,
    transforms: Sequence[Transform],
    budget: int,
    pixels: str = "float32",
) -> Batch:
    """A batch of one row of zeros, with the structure, shapes and dtypes of all at a budget.

    It is that of a blank image, so that no data is read.

    Args:
      preprocess: how images become patches.
      text_length: T, the number of ids of a text.
      transforms: whose fields the batch has.
      budget: patches an image may have.
      pixels: the dtype of patches.
    """
    side = 2 * preprocess.patch_size
    example: dict[str, Any] = {"image": Image.new("RGB", (side, side)), "text": "", "captions": ()}
    example |= {"name": "blank", "budget": budget, "fields": {}}
    rng = np.random.default_rng(0)
    for transform in transforms:
        example = transform(example, rng)
    patch = np.zeros((1, preprocess.patch_size**2 * 3), np.float32), (1, 1)
    item = {**example["fields"], "image": patch, "text": np.zeros(text_length, np.int32)}
    return empty_row(item, preprocess.num_tokens(budget), pixels)
