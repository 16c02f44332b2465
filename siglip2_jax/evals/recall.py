"""Ranks of partners among any number of images and texts, in blocks on the devices.

The scores of 100,000 images with 500,000 texts would be 200 GB; here one block of them exists at a
time. Two passes over the blocks: the first finds the score of every pair that belongs together, the
second counts the scores that come before it.

All passes run one compiled program, which makes a block's scores once (float32 products in full
precision) and reads all it returns from them. Blocks have the same shape and borders whatever the
number of devices, are never split, and what they return are single scores and integers. So a pair
has the same score in all passes, and ranks are the same to the last digit on one device and on
many of its kind; other kinds of device round scores differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32, Int64

from siglip2_jax.data.prefetch import batched
from siglip2_jax.sharding import Device

Ties = Literal["against", "half", "first"]

NEVER = np.iinfo(np.int64).max
"""The rank of an image or text without a partner, or whose score with it is NaN."""

IMAGE_BLOCK, TEXT_BLOCK = 2048, 8192
SMALLEST_BLOCK = 128


class Ranks(NamedTuple):
    """Number of others that come before the (best) partner: 0 is a hit at 1.

    Attributes:
      image_to_text: of each image, among the texts of other images; the best of its own counts.
      text_to_image: of each text, among the images that are not its own.
    """

    image_to_text: Int64[np.ndarray, " n"]
    text_to_image: Int64[np.ndarray, " m"]


def recall_ranks(
    images: Float32[np.ndarray, "n E"],
    texts: Float32[np.ndarray, "m E"],
    owner: Int[np.ndarray, " m"],
    *,
    image_block: int = IMAGE_BLOCK,
    text_block: int = TEXT_BLOCK,
    ties: Ties = "against",
    devices: Sequence[Device] | None = None,
) -> Ranks:
    """Ranks of all partners.

    A rank is the number of columns that are no partner and score higher than the best partner, or
    the same where ties come before it. Equal captions of two images are two texts, which tie.

    Rows of NaN are images that failed to decode: the rank of such an image and of its texts is
    `NEVER`, and it does not count in other ranks. An image without texts also has the rank `NEVER`.

    Args:
      images: embeddings of unit length.
      texts: embeddings of unit length.
      owner: which image each text belongs to, from 0 to n - 1, in any order.
      image_block: images of a block.
      text_block: texts of a block.
      ties: which others with exactly the partner's score come before it. "against": all, so that a
        model that gives everything the same score finds nothing. "half": half of them, rounded
        down. "first": those with a lower index, as in a stable sort; a model that gives
        everything the same score then finds the first.
      devices: text blocks are dealt to these, each of which holds all images; None means all of
        this process. On several hosts each process does the whole work.

    Raises:
      ValueError: there are no images or no texts, a text belongs to none of the images, or `ties`
        is none of these.
    """
    check_ties(ties)
    if not len(images) or not len(texts):
        raise ValueError(
            f"recall among {len(images)} images and {len(texts)} texts; expected at least one each"
        )
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(
            f"texts belong to images {owner.min()} to {owner.max()}; expected 0 to "
            f"{len(images) - 1}, as there are {len(images)} images"
        )
    blocks = _Blocks(
        images,
        texts,
        owner,
        (min(image_block, _up(len(images))), min(text_block, _up(len(texts)))),
        jax.local_devices() if devices is None else devices,
    )
    n, m = len(images), len(texts)
    inf_bars = np.full(n, np.inf, np.float32), np.full(m, np.inf, np.float32)
    no_turns, all_turns = (np.zeros(n, int), np.zeros(m, int)), (np.full(n, m), np.full(m, n))
    partner, _, _ = blocks.sweep(inf_bars, no_turns, partners_only=True)

    best = np.full(n, -np.inf, np.float32)
    np.fmax.at(best, owner, partner)  # passes over NaN
    tops = np.flatnonzero(partner >= best[owner])  # partners that tie for the best
    if ties == "first":
        earliest = np.full(n, m)
        np.minimum.at(earliest, owner[tops], tops)
        _, by_image, by_text = blocks.sweep((best, partner), (earliest, owner))
    else:
        _, by_image, by_text = blocks.sweep((best, partner), all_turns)
        # This counts partners too; those that tie for the best are taken off again.
        by_image, by_text = by_image - np.bincount(owner[tops], minlength=n), by_text - 1
    if ties == "half":
        _, higher_image, higher_text = blocks.sweep((best, partner), no_turns)
        by_image, by_text = (by_image + higher_image) // 2, (by_text + higher_text) // 2
    return Ranks(
        np.where(np.isfinite(best), by_image, NEVER),
        np.where(np.isfinite(partner), by_text, NEVER),
    )


def check_ties(ties: str) -> None:
    """Refuses an unknown rule.

    Raises:
      ValueError: it is none of `Ties`.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties is {ties!r}; expected 'against', 'half' or 'first'")


@jax.jit
def compare(
    images: Float32[Array, "R E"],
    texts: Float32[Array, "C E"],
    owner: Int32[Array, " C"],
    image_bar: Float32[Array, " R"],
    text_bar: Float32[Array, " C"],
    image_turn: Int32[Array, " R"],
    text_turn: Int32[Array, " C"],
) -> tuple[Float32[Array, " C"], Int32[Array, " R"], Int32[Array, " C"]]:
    """One block: the only program that makes scores.

    Args:
      images: embeddings; padding is NaN, which no comparison counts.
      texts: as `images`.
      owner: row of each text's image; outside the block where it is in another one.
      image_bar: what a score must exceed to count for its image; or equal, in a text
      image_turn: before this one.
      text_bar: what a score must exceed to count for its text; or equal, in an image
      text_turn: before this one.

    Returns:
      Each text's score with its image, `-inf` where that is elsewhere; how many scores count for
      each image; and for each text.
    """
    scores = jnp.einsum("re,ce->rc", images, texts, precision=jax.lax.Precision.HIGHEST)
    scores = jax.lax.optimization_barrier(scores)  # nothing below may make its own
    row, column = jnp.arange(len(images))[:, None], jnp.arange(len(texts))
    bar, before = image_bar[:, None], column < image_turn[:, None]
    for_image = (scores > bar) | ((scores == bar) & before)
    for_text = (scores > text_bar) | ((scores == text_bar) & (row < text_turn))
    return (
        jnp.where(row == owner, scores, -jnp.inf).max(axis=0),
        for_image.sum(axis=1, dtype=jnp.int32),
        for_text.sum(axis=0, dtype=jnp.int32),
    )


class _Blocks(NamedTuple):
    """All images with all texts, cut into blocks of `shape` that are dealt to devices."""

    images: np.ndarray
    texts: np.ndarray
    owner: np.ndarray
    shape: tuple[int, int]
    devices: Sequence[Device]

    def sweep(
        self,
        bars: tuple[np.ndarray, np.ndarray],
        turns: tuple[np.ndarray, np.ndarray],
        *,
        partners_only: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`compare` of all blocks, or of those with a partner, put together.

        Args:
          bars: of images and of texts.
          turns: of images, among all texts; and of texts, among all images.
          partners_only: whether blocks without a partner are passed over.
        """
        rows, columns = self.shape
        starts = range(0, len(self.texts), columns)
        devices = self.devices[: len(starts)]
        placed = [
            [jax.device_put(_cut(self.images, top, rows), device) for top in self._tops]
            for device in devices
        ]
        partner = np.full(len(self.texts), -np.inf, np.float32)
        above_image = np.zeros(len(self.images), np.int64)
        above_text = np.zeros(len(self.texts), np.int64)
        for group in batched(starts, len(devices)):
            # All devices get their work before the first is waited for.
            running = [
                self._column(start, device, images, bars, turns, partners_only)
                for start, device, images in zip(group, devices, placed, strict=False)
            ]
            for start, column in zip(group, running, strict=True):
                texts = slice(start, start + columns)
                for top, parts in column:
                    score, by_image, by_text = map(np.asarray, parts)
                    n, m = len(above_image[top : top + rows]), len(partner[texts])
                    partner[texts] = np.maximum(partner[texts], score[:m])  # keeps NaN
                    above_image[top : top + rows] += by_image[:n]
                    above_text[texts] += by_text[:m]
        return partner, above_image, above_text

    @property
    def _tops(self) -> range:
        return range(0, len(self.images), self.shape[0])

    def _column(
        self,
        start: int,
        device: Device,
        images: list[jax.Array],
        bars: tuple[np.ndarray, np.ndarray],
        turns: tuple[np.ndarray, np.ndarray],
        partners_only: bool,
    ) -> list[tuple[int, tuple[jax.Array, jax.Array, jax.Array]]]:
        """One block of texts with all images; each result with the first of its images."""
        rows, columns = self.shape
        texts = jax.device_put(_cut(self.texts, start, columns), device)
        bar = _cut(bars[1], start, columns)
        owner = _cut(self.owner, start, columns, fill=-1).astype(np.int32)
        turn = _cut(turns[1], start, columns, fill=0).astype(np.int32)
        results = []
        # The mesh of a training run may be in force; a block is on one device.
        with jax.set_mesh(Mesh(np.array([device]), ("one",))):
            for top, block in zip(self._tops, images, strict=True):
                inside = (owner >= top) & (owner < top + rows)
                if inside.any() or not partners_only:
                    image_bar = _cut(bars[0], top, rows)
                    image_turn = _cut(turns[0] - start, top, rows, fill=0).astype(np.int32)
                    parts = compare(
                        block, texts, owner - top, image_bar, bar, image_turn, turn - top
                    )
                    results.append((top, parts))
        return results


def _cut(x: np.ndarray, start: int, size: int, fill: int | float = np.nan) -> np.ndarray:
    """Rows from `start`, filled up to `size`."""
    part = x[start : start + size]
    return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


def _up(count: int) -> int:
    """Blocks of short sets: powers of two, so that sets of about one size share a program."""
    return max(SMALLEST_BLOCK, 1 << (count - 1).bit_length())
