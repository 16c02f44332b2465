"""The DPT decoder: blocks of the tower as maps of four scales, fused from coarse to fine.

Ranftl et al., arXiv 2103.13413, section 3, as in transformers' `DPTNeck` and
`DPTDepthEstimationHead`, with the sizes of DINOv2's depth decoder (arXiv 2304.07193): maps of an
eighth of the tower's width to all of it, 256 channels when fused. The pooled vector takes the place
of the readout token (SigLIP 2, arXiv 2502.14786, section 3.3.1). Probe3D (arXiv 2404.08636), whose
protocol of NAVI the paper's decoder follows according to secondary sources, has the same blocks
and fusion at one scale.

Images of a batch may have different grids: before every convolution what lies outside an image is
set to 0, which is what a convolution sees beyond the border of an image alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siglip2_jax.benchmarks.dense.grids import bilinear, on_grid
from siglip2_jax.benchmarks.dense.layer import Weights
from siglip2_jax.types import Features

FACTORS = 4, 2, 1, 0.5
"""Factor by which each block's map is finer than the grid of patches, the first block's first."""


class Map(NamedTuple):
    """Values on padded grids; all finite.

    Attributes:
      x: the values.
      size: rows and columns of each image.
    """

    x: Float[Array, "B H W C"]
    size: Int[Array, "B 2"]


@dataclasses.dataclass(frozen=True)
class DPT:
    """Reads four evenly spaced blocks; scores come on grids about 16 times finer than patches.

    Attributes:
      fused: channels of the maps when they are fused; half of them afterwards, then 32.
    """

    fused: int = 256
    blocks: ClassVar[int] = len(FACTORS)

    def initial(self, width: int, channels: int, seed: int) -> Weights:
        """Weights as torch initialises its layers, `U(-1, 1) / sqrt(fan in)`, and no biases."""
        weights, key = {}, jax.random.key(seed)
        for i, (path, shape, outputs) in enumerate(self._shapes(width, channels)):
            limit = math.prod(shape[:-1]) ** -0.5
            draw = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1, maxval=1)
            weights[path] = limit * draw
            if not path.endswith("/level"):
                weights[f"{path}/bias"] = jnp.zeros(outputs)
        return weights

    def _shapes(self, width: int, channels: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Path, shape and number of outputs of every layer."""
        fused, half = self.fused, self.fused // 2
        for k, factor in enumerate(FACTORS):
            size = max(1, width * 2**k // 8)
            yield f"{k}/readout", (2 * width, width), width
            yield f"{k}/project", (width, size), size
            if factor > 1:
                yield f"{k}/resize", (size, int(factor) ** 2 * size), size
            elif factor < 1:
                yield f"{k}/resize", (3, 3, size, size), size
            yield f"{k}/level", (3, 3, size, fused), fused
            # Nothing coarser joins the coarsest map.
            for unit in ("skip", "join")[k == len(FACTORS) - 1 :]:
                for i in range(2):
                    yield f"{k}/{unit}/{i}", (3, 3, fused, fused), fused
            yield f"{k}/merge", (fused, fused), fused
        yield "head/0", (3, 3, fused, half), half
        yield "head/1", (3, 3, half, 32), 32
        yield "head/2", (32, channels), channels

    def scores(
        self, weights: Weights, features: Sequence[Features], side: tuple[int, int]
    ) -> tuple[Float[Array, "B H W C"], Int[Array, "B 2"]]:
        """Scores, and the rows and columns of each image: 16 times those of an even grid."""
        with jax.default_matmul_precision("highest"):
            levels = [_level(weights, k, block, side) for k, block in enumerate(features)]
            fused = _fused(weights, len(levels) - 1, levels[-1])
            for k in reversed(range(len(levels) - 1)):
                level = _residual(weights, f"{k}/skip", _resized(levels[k], fused))
                fused = _fused(weights, k, Map(fused.x + level.x, fused.size))
            output = _doubled(_convolved(weights, "head/0", fused))
            output = _convolved(weights, "head/1", output)
            return _dense(weights, "head/2", jax.nn.relu(output.x)), output.size


def _fused(weights: Weights, k: int, level: Map) -> Map:
    """A level's map, to which those of coarser levels are added, twice as fine."""
    joined = _doubled(_residual(weights, f"{k}/join", level))
    return Map(_dense(weights, f"{k}/merge", joined.x), joined.size)


def _level(weights: Weights, k: int, block: Features, side: tuple[int, int]) -> Map:
    """A block's tokens as a map of its scale, ready to be fused."""
    readout, width = weights[f"{k}/readout"], block.pooled.shape[-1]
    per_image = jnp.asarray(block.pooled) @ readout[width:] + weights[f"{k}/readout/bias"]
    tokens = jnp.asarray(block.tokens) @ readout[:width] + per_image[:, None]
    tokens = _dense(weights, f"{k}/project", jax.nn.gelu(tokens, approximate=False))
    grid = jnp.asarray(block.grid)
    level, factor = Map(on_grid(tokens, grid, side), grid), FACTORS[k]
    if factor > 1:
        level = _enlarged(weights, f"{k}/resize", level, int(factor))
    elif factor < 1:
        level = _convolved(weights, f"{k}/resize", level, stride=round(1 / factor))
    return _convolved(weights, f"{k}/level", level)


def _dense(weights: Weights, path: str, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
    return x @ weights[path] + weights[f"{path}/bias"]


def _convolved(weights: Weights, path: str, image: Map, stride: int = 1) -> Map:
    """A convolution with a kernel of 3 x 3; the levels' have no bias."""
    inside = [jnp.arange(image.x.shape[1 + i]) < image.size[:, i, None] for i in range(2)]
    inside = inside[0][:, :, None] & inside[1][:, None, :]
    x = jax.lax.conv_general_dilated(
        jnp.where(inside[..., None], image.x, 0),
        weights[path],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return Map(x + weights.get(f"{path}/bias", 0), (image.size - 1) // stride + 1)


def _enlarged(weights: Weights, path: str, image: Map, factor: int) -> Map:
    """A transposed convolution whose kernel is as large as its stride: every value on its own."""
    batch, height, width, _ = image.x.shape
    x = (image.x @ weights[path]).reshape(batch, height, width, factor, factor, -1)
    x = x.swapaxes(2, 3).reshape(batch, factor * height, factor * width, -1)
    return Map(x + weights[f"{path}/bias"], factor * image.size)


def _residual(weights: Weights, path: str, image: Map) -> Map:
    """Two convolutions, each behind a ReLU, beside the identity."""
    residual = image
    for i in range(2):
        residual = _convolved(weights, f"{path}/{i}", Map(jax.nn.relu(residual.x), residual.size))
    return Map(image.x + residual.x, image.size)


def _doubled(image: Map) -> Map:
    shape = 2 * image.x.shape[1], 2 * image.x.shape[2]
    x = bilinear(image.x, image.size, 2 * image.size, shape, align_corners=True)
    return Map(x, 2 * image.size)


def _resized(image: Map, like: Map) -> Map:
    """Resizes a map to the size of another, which is a little larger where a side is odd."""
    _, height, width, _ = like.x.shape
    return Map(bilinear(image.x, image.size, like.size, (height, width)), like.size)
