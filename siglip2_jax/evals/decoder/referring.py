"""Referring expressions: how often a decoder finds the box of what a phrase describes.

SigLIP 2's table 5 (arXiv 2502.14786, section 3.4.1): RefCOCO, RefCOCO+ and RefCOCOg, the share of
expressions whose box has an intersection over union of at least 0.5 with the true one, by a decoder
on the frozen encoder that was trained on all three sets together, as LocCa's (arXiv 2403.19596).
`expressions.held_out_images` says which photos must then be left out of training;
`refer_files.published_splits` gives the table's columns.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from PIL.Image import Image

from siglip2_jax.captioning import Ask, Captioner, Writing
from siglip2_jax.captioning.asks import first_ids
from siglip2_jax.data.prefetch import ahead
from siglip2_jax.evals.decoder.expressions import Expression, Expressions
from siglip2_jax.evals.decoder.iou import box_ious
from siglip2_jax.inference import DEFAULT_BATCH_SIZE
from siglip2_jax.preprocess.decode import ImageError, decode
from siglip2_jax.progress import Update

READ_AHEAD = 32
ENOUGH = 0.5 - 1e-9  # rounding of shares must not decide


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referring:
    """Acc@0.5 of one split.

    Every process locates all expressions.

    Attributes:
      source: the expressions, such as a `refer_files.Refer` or a `expressions.ExpressionFile`.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      batch_size: expressions per program call.
      writing: how the decoder writes.
    """

    source: Expressions
    name: str = "referring"
    every: int = 10_000
    max_num_patches: int = 256
    batch_size: int = DEFAULT_BATCH_SIZE
    writing: Writing = Writing()

    def __call__(self, model: Captioner, show: Update | None = None) -> dict[str, float]:
        """`acc@0.5` and `mean_iou`, from 0 to 1, and how many expressions have no box, and why.

        `unreadable` counts those whose photo cannot be read, each photo with a warning; `unparsed`
        those for which no box was written, among them the ones too long for the decoder. Both are
        wrong, with an intersection over union of 0.

        Args:
          model: locates.
          show: told how many photos have been read, of how many.
        """
        expressions = self.source.open()
        truth = np.array([x.box for x in expressions], np.float64)
        found = np.full_like(truth, np.nan)
        places: list[tuple[int, tuple[int, int]]] = []
        broken: set[str] = set()
        asks = _asks(model, expressions, places, broken, show)
        answers = model.stream(asks, self.writing, self.max_num_patches, self.batch_size)
        for done, answer in enumerate(answers):
            if isinstance(answer, ImageError):
                raise answer  # was decoded before: this is not about the file
            index, (width, height) = places[done]
            if answer.box is not None:
                left, top, right, bottom = answer.box
                found[index] = top / height, left / width, bottom / height, right / width
        overlap = box_ious(found, truth)
        unreadable = sum(x.image in broken for x in expressions)
        return {
            "acc@0.5": float(np.mean(overlap >= ENOUGH)),
            "mean_iou": float(np.mean(overlap)),
            "unparsed": float(np.isnan(found[:, 0]).sum() - unreadable),
            "unreadable": float(unreadable),
        }


def _asks(
    model: Captioner,
    expressions: Sequence[Expression],
    places: list[tuple[int, tuple[int, int]]],
    broken: set[str],
    show: Update | None,
) -> Iterator[Ask]:
    """What can be asked, photo after photo, each decoded once.

    Appends the index of each, and its photo's width and height, to `places`, and adds the paths of
    unreadable photos to `broken`.
    """
    photos: dict[str, list[int]] = {}
    for index, expression in enumerate(expressions):
        photos.setdefault(expression.image, []).append(index)
    images = ahead(partial(_read, model), photos, READ_AHEAD)
    for done, (path, image) in enumerate(zip(photos, images, strict=True), 1):
        if show is not None:
            show(done, len(photos))
        if isinstance(image, ImageError):
            warnings.warn(f"{image}; nothing is found in it", stacklevel=2)
            broken.add(path)
            continue
        for index in photos[path]:
            ask = Ask(image, phrase=expressions[index].text)
            try:
                first_ids(ask, image.size, model.tokenizer, model.boxes, model.config.length)
            except ValueError:  # blank or too long: it must not stop all the others
                continue
            places.append((index, image.size))
            yield ask


def _read(model: Captioner, path: str) -> Image | ImageError:
    preprocess = model.embedder.preprocess
    try:
        return decode(path, exif=preprocess.exif, max_pixels=preprocess.max_pixels)
    except ImageError as error:
        return error
