"""Losses of maps of depth and of normals."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
SMALL_DEPTH = 1e-3  # added before logarithms, as DINOv2 does


def sig_loss(
    predicted: Float[Array, "B h w"],
    truth: Float[Array, "B h w"],
    variance_weight: Scalar | float = 1.0,
) -> Scalar:
    """`sqrt(variance + 0.15 * mean^2)` of the log ratio (AdaBins, arXiv 2011.14141; DINOv2).

    Args:
      predicted: depth in metres, positive.
      truth: depth in metres; 0 is unknown. All known pixels of the batch count together.
      variance_weight: 0 leaves the (unbiased) variance out.
    """
    known = truth > 0
    count = known.sum()
    ratio = jnp.where(known, jnp.log(predicted + SMALL_DEPTH) - jnp.log(truth + SMALL_DEPTH), 0)
    mean = ratio.sum() / jnp.maximum(count, 1)
    variance = jnp.sum((ratio - mean) ** 2, where=known) / jnp.maximum(count - 1, 1)
    square = variance_weight * variance + 0.15 * mean**2
    # The slope of a root at 0 is infinite: a batch without labels must not give NaN.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def gradient_loss(predicted: Float[Array, "B h w"], truth: Float[Array, "B h w"]) -> Scalar:
    """Differences in slope of log depth, at steps of 1, 2, 4 and 6 pixels (MegaDepth; DINOv2).

    At each scale: the sum of `|d[y, x] - d[y + 2, x]|` and `|d[y, x] - d[y, x + 2]|` over pairs of
    known pixels, d the log ratio, over the number of known pixels. Rows and columns are those of
    the image: DINOv2's and Probe3D's code slices the first two axes of `[B, 1, h, w]` instead.
    """
    total = jnp.zeros(())
    for step in (1, 2, 4, 6):
        p, t = predicted[:, ::step, ::step], truth[:, ::step, ::step]
        known = t > 0
        ratio = jnp.where(known, jnp.log(p + SMALL_DEPTH) - jnp.log(t + SMALL_DEPTH), 0)
        down = jnp.abs(ratio[:, :-2] - ratio[:, 2:])
        across = jnp.abs(ratio[:, :, :-2] - ratio[:, :, 2:])
        differences = jnp.sum(down, where=known[:, :-2] & known[:, 2:])
        differences += jnp.sum(across, where=known[:, :, :-2] & known[:, :, 2:])
        total += differences / jnp.maximum(known.sum(), 1)
    return total


def angular_likelihood(cosine: Float[Array, "*B"], kappa: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood of an angle whose spread is predicted (Bae et al., arXiv 2109.09881).

    `kappa * angle + log(1 + exp(-pi * kappa)) - log(kappa^2 + 1)`, without its constant.

    Args:
      cosine: of the angle between predicted and true normal; beyond 0.9999 it has no slope.
      kappa: concentration, positive.
    """
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-4, 1 - 1e-4))
    return kappa * angle + jnp.log1p(jnp.exp(-jnp.pi * kappa)) - jnp.log1p(kappa**2)
