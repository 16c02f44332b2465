"""Ranks of partners among any number of images and texts, in blocks on the devices.

The scores of 100,000 images with 500,000 texts would be 200 GB; here one block of them exists at a
time. Two passes over the blocks: the first finds the score of every pair that belongs together, the
second counts who scores at least as high.

Both passes run one compiled program, which makes a block's scores once (float32 products in full
precision) and reads all it returns from them. Blocks have the same shape and borders whatever the
number of devices, are never split, and what they return are single scores and integers. So a pair
has the same score in both passes, and ranks are the same to the last digit on one device and on
many of its kind; other kinds of device round scores differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32, Int64

from siglip2_jax.data.prefetch import batched
from siglip2_jax.sharding import Device

NEVER = np.iinfo(np.int64).max
"""The rank of what has no partner, or whose score with it is not a number."""

IMAGE_BLOCK, TEXT_BLOCK = 2048, 8192
SMALLEST_BLOCK = 128


class Ranks(NamedTuple):
    """Number of others that score at least as high as the (best) partner: 0 is a hit at 1.

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
    devices: Sequence[Device] | None = None,
) -> Ranks:
    """Ranks of all partners, ties counting against them.

    A rank is the number of columns that are no partner and score at least as high as the best
    partner. Equal captions of two images are two texts: each loses to the other.

    Rows of NaN are images that failed to decode: the rank of such an image and of its texts is
    `NEVER`, and it stands in nobody's way. So is the rank of an image without texts.

    Args:
      images: embeddings of unit length.
      texts: embeddings of unit length.
      owner: which image each text belongs to, from 0 to n - 1, in any order.
      image_block: images of a block.
      text_block: texts of a block.
      devices: text blocks are dealt to these, each of which holds all images; None means all of
        this process. On several hosts each process does the whole work.

    Raises:
      ValueError: there are no images or no texts, or a text belongs to none of the images.
    """
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
    nobody = np.full(len(images), np.inf, np.float32), np.full(len(texts), np.inf, np.float32)
    partner, _, _ = blocks.sweep(*nobody, partners_only=True)

    best = np.full(len(images), -np.inf, np.float32)
    np.fmax.at(best, owner, partner)  # passes over NaN
    _, above_image, above_text = blocks.sweep(best, partner, partners_only=False)
    # The second pass counts partners too; those that tie for the best are taken off again.
    own = np.bincount(owner[partner >= best[owner]], minlength=len(images))
    return Ranks(
        np.where(np.isfinite(best), above_image - own, NEVER),
        np.where(np.isfinite(partner), above_text - 1, NEVER),
    )


@jax.jit
def compare(
    images: Float32[Array, "R E"],
    texts: Float32[Array, "C E"],
    owner: Int32[Array, " C"],
    image_bar: Float32[Array, " R"],
    text_bar: Float32[Array, " C"],
) -> tuple[Float32[Array, " C"], Int32[Array, " R"], Int32[Array, " C"]]:
    """One block: the only program that makes scores.

    Args:
      images: embeddings; padding is NaN, which no comparison counts.
      texts: as `images`.
      owner: row of each text's image; outside the block where it is in another one.
      image_bar: what a score must reach to count for its image.
      text_bar: the same for its text.

    Returns:
      Each text's score with its image, `-inf` where that is elsewhere; how many scores reach the
      bar of each image; and of each text.
    """
    scores = jnp.einsum("re,ce->rc", images, texts, precision=jax.lax.Precision.HIGHEST)
    scores = jax.lax.optimization_barrier(scores)  # nothing below may make its own
    mine = jnp.arange(len(images))[:, None] == owner
    return (
        jnp.where(mine, scores, -jnp.inf).max(axis=0),
        (scores >= image_bar[:, None]).sum(axis=1, dtype=jnp.int32),
        (scores >= text_bar).sum(axis=0, dtype=jnp.int32),
    )


class _Blocks(NamedTuple):
    """All images with all texts, cut into blocks of `shape` that are dealt to devices."""

    images: np.ndarray
    texts: np.ndarray
    owner: np.ndarray
    shape: tuple[int, int]
    devices: Sequence[Device]

    def sweep(
        self, image_bar: np.ndarray, text_bar: np.ndarray, *, partners_only: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`compare` of all blocks, or of those with a partner, put together."""
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
                self._column(start, device, images, image_bar, text_bar, partners_only)
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
        image_bar: np.ndarray,
        text_bar: np.ndarray,
        partners_only: bool,
    ) -> list[tuple[int, tuple[jax.Array, jax.Array, jax.Array]]]:
        """One block of texts with all images; each result with the first of its images."""
        rows, columns = self.shape
        texts = jax.device_put(_cut(self.texts, start, columns), device)
        bar = _cut(text_bar, start, columns)
        owner = self.owner[start : start + columns].astype(np.int32)
        owner = np.pad(owner, (0, columns - len(owner)), constant_values=-1)
        found = []
        # The mesh of a training run may be in force; a block is on one device.
        with jax.set_mesh(Mesh(np.array([device]), ("one",))):
            for top, block in zip(self._tops, images, strict=True):
                inside = (owner >= top) & (owner < top + rows)
                if inside.any() or not partners_only:
                    own_bar = _cut(image_bar, top, rows)
                    found.append((top, compare(block, texts, owner - top, own_bar, bar)))
        return found


def _cut(x: np.ndarray, start: int, size: int) -> np.ndarray:
    """Rows from `start`, filled up with NaN to `size`."""
    part = x[start : start + size]
    return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (x.ndim - 1), constant_values=np.nan)


def _up(count: int) -> int:
    """Blocks of short sets: powers of two, so that sets of about one size share a program."""
    return max(SMALLEST_BLOCK, 1 << (count - 1).bit_length())
