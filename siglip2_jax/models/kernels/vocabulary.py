"""Softmax over a large vocabulary on TPU: float32 logits never leave VMEM.

XLA writes the [C, V] float32 logits of C tokens to HBM and goes through them several times. Here a
first kernel computes them a block of the vocabulary at a time and keeps running sums (Milakov and
Gimelshein, arXiv 1805.02867). For the gradient it writes the exponentials, in the dtype of the
products' factors, and for each token and block the maximum that they are relative to. From them a
second kernel makes the gradient by the logits, a block at a time, and both products with it, so
that with the logits' own there are three. Finding the logits again would be a fourth, which on
every TPU takes longer than writing and reading the exponentials.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from siglip2_jax.models.kernels.products import (
    LANES,
    ONE_BY_ONE,
    PLAIN,
    SECOND,
    Interpret,
    ahead,
    dot,
    resident,
    row_parts,
)

BLOCK = 512
"""Entries of the vocabulary that a program takes; the vocabulary must be padded to whole blocks."""
_HELD = 2048 * 1536  # entries of hidden states; more, and their gradients, would outgrow VMEM


class Sums(NamedTuple):
    """Results of the pass over all logits of C tokens.

    Attributes:
      log_sum: logarithm of the sum of the exponentials of all logits.
      right: the logit of the target.
      exponentials: of the logits, relative to `tops`; None if no gradient will be taken.
      tops: the largest logit up to and with each block of the vocabulary.
    """

    log_sum: Float[Array, " C"]
    right: Float[Array, " C"]
    exponentials: Float[Array, "C V"] | None = None
    tops: Float[Array, "N 1 C"] | None = None


def tokens_together(wanted: int, width: int) -> int:
    """Number of tokens for the kernels to take at a time.

    Args:
      wanted: about how many.
      width: D, of their hidden states.
    """
    most = max(1, _HELD // width // LANES)
    return min(math.ceil(wanted / LANES), most) * LANES


def softmax_sums(
    hidden: Float[Array, "C D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, " C"],
    vocabulary: int,
    *,
    keep: bool,
    interpret: Interpret = False,
) -> Sums:
    """Goes through the logits `hidden @ kernel`; products take operands in their dtype.

    Args:
      hidden: of as many tokens as `tokens_together` says; finite.
      kernel: the output projection, padded with any finite entries to whole blocks of `BLOCK`.
      targets: the right entries.
      vocabulary: number of entries without padding.
      keep: what the gradient needs, too.
      interpret: run the kernel step by step on any device; or how to, as in `pallas_call`.
    """
    tokens, width = hidden.shape
    blocks = kernel.shape[1] // BLOCK
    columns = jax.ShapeDtypeStruct((tokens, LANES), jnp.float32)
    out_shape = [columns] * 3
    out_specs = [resident((tokens, LANES))] * 3
    if keep:
        out_shape += [
            jax.ShapeDtypeStruct((tokens, kernel.shape[1]), hidden.dtype),
            jax.ShapeDtypeStruct((blocks, 1, tokens), jnp.float32),
        ]
        out_specs += [
            pl.BlockSpec((tokens, BLOCK), lambda j: (0, j)),
            pl.BlockSpec((1, 1, tokens), lambda j: (j, 0, 0)),
        ]
    top, total, right, *kept = pl.pallas_call(
        functools.partial(_sums_kernel, vocabulary=vocabulary),
        out_shape=out_shape,
        grid=(blocks,),
        in_specs=[
            resident((tokens, width)),
            pl.BlockSpec((width, BLOCK), lambda j: (0, j)),
            resident((tokens, 1)),
        ],
        out_specs=out_specs,
        compiler_params=ONE_BY_ONE,
        cost_estimate=_cost(1, hidden, kernel, *out_shape),
        interpret=interpret,
    )(hidden, kernel, targets[:, None])
    log_sum = top[:, 0] + jnp.log(total.sum(axis=1))
    return Sums(log_sum, right.sum(axis=1), *kept)


def softmax_gradients(
    sums: Sums,
    hidden: Float[Array, "C D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, " C"],
    weights: Float[Array, " C"],
    d_kernel: Float[Array, "D V"],
    *,
    interpret: Interpret = False,
) -> tuple[Float[Array, "C D"], Float[Array, "D V"]]:
    """Derivatives of `weights * (log_sum - right)`, summed over tokens, by hidden and kernel.

    Args:
      sums: of `softmax_sums`, with what the gradient needs.
      hidden: as there.
      kernel: as there, but padded with zeros.
      targets: as there.
      weights: what each token counts.
      d_kernel: what the derivative by the kernel is added to, in place.
      interpret: as there.

    Returns:
      Both in float32.
    """
    assert sums.exponentials is not None and sums.tops is not None
    tokens, width = hidden.shape
    block = pl.BlockSpec((width, BLOCK), lambda j: (0, j))
    factors = weights * jnp.exp(sums.tops - sums.log_sum)
    return pl.pallas_call(
        _gradients_kernel,
        out_shape=[
            jax.ShapeDtypeStruct((tokens, width), jnp.float32),
            jax.ShapeDtypeStruct(d_kernel.shape, jnp.float32),
        ],
        grid=(kernel.shape[1] // BLOCK,),
        in_specs=[
            pl.BlockSpec((tokens, BLOCK), lambda j: (0, j)),
            pl.BlockSpec((1, 1, tokens), lambda j: (j, 0, 0)),
            resident((tokens, 1)),
            resident((tokens, 1)),
            resident((width, tokens)),
            block,
            block,
        ],
        out_specs=[resident((tokens, width)), block],
        input_output_aliases={6: 1},
        compiler_params=ONE_BY_ONE,
        cost_estimate=_cost(2, hidden, kernel, sums.exponentials, d_kernel, d_kernel),
        interpret=interpret,
    )(
        sums.exponentials,
        factors,
        targets[:, None],
        weights[:, None],
        hidden.T,
        kernel,
        d_kernel,
    )


def _sums_kernel(
    hidden: Any,
    kernel: Any,
    targets: Any,
    top: Any,
    total: Any,
    right: Any,
    *kept: Any,
    vocabulary: int,
) -> None:
    block = pl.program_id(0)
    first = block == 0

    def logits(rows: slice) -> Array:
        return dot(hidden[rows, :], kernel[...], PLAIN)

    for rows, block_logits in ahead(logits, row_parts(hidden.shape[0])):
        lanes = jax.lax.broadcasted_iota(jnp.int32, (rows.stop - rows.start, LANES), 1)
        parts = [block_logits[:, at : at + LANES] for at in range(0, BLOCK, LANES)]
        if vocabulary % BLOCK:
            end = vocabulary - block * BLOCK
            parts = [
                jnp.where(lanes < end - LANES * i, part, -jnp.inf) for i, part in enumerate(parts)
            ]
        before = jnp.where(first, -jnp.inf, top[rows, :])
        largest = functools.reduce(jnp.maximum, parts).max(axis=1, keepdims=True)
        largest = jnp.maximum(before, largest)
        exponentials = [jnp.exp(part - largest) for part in parts]
        so_far = jnp.where(first, 0, total[rows, :]) * jnp.exp(before - largest)
        total[rows, :] = functools.reduce(jnp.add, exponentials, so_far)
        top[rows, :] = largest
        target = targets[rows, :] - block * BLOCK - lanes
        hit = jnp.where(first, 0, right[rows, :])
        for i, part in enumerate(parts):
            hit = jnp.where(target == LANES * i, part, hit)
        right[rows, :] = hit
        if kept:
            for i, part in enumerate(exponentials):
                kept[0][rows, LANES * i : LANES * (i + 1)] = part.astype(kept[0].dtype)
            kept[1][0, :, rows] = largest[:, :1].T


def _gradients_kernel(
    exponentials: Any,
    factors: Any,
    targets: Any,
    weights: Any,
    hidden: Any,
    kernel: Any,
    d_kernel_before: Any,
    d_hidden: Any,
    d_kernel: Any,
) -> None:
    block = pl.program_id(0)

    def d_logits(rows: slice) -> Array:
        lanes = jax.lax.broadcasted_iota(jnp.int32, (rows.stop - rows.start, LANES), 1)
        target = targets[rows, :] - block * BLOCK - lanes
        factor, weight = factors[0, :, rows].T, weights[rows, :]
        parts = []
        for at in range(0, BLOCK, LANES):
            part = exponentials[rows, at : at + LANES].astype(jnp.float32) * factor
            part = part - jnp.where(target == at, weight, 0)
            parts.append(part.astype(kernel.dtype))
        return jnp.concatenate(parts, axis=1)

    d_kernel[...] = d_kernel_before[...]
    for rows, d_rows in ahead(d_logits, row_parts(d_hidden.shape[0])):
        before = jnp.where(block == 0, 0, d_hidden[rows, :])
        d_hidden[rows, :] = before + dot(d_rows, kernel[...], SECOND)
        d_kernel[...] += dot(hidden[:, rows], d_rows, PLAIN)


def _cost(products: int, hidden: Array, kernel: Array, *others: Any) -> pl.CostEstimate:
    """Estimate for XLA: matrix products of these sizes, and the arrays that are read or written."""
    logits = hidden.shape[0] * kernel.shape[1]
    return pl.CostEstimate(
        flops=2 * products * logits * hidden.shape[1],
        transcendentals=logits,
        bytes_accessed=sum(
            math.prod(x.shape) * x.dtype.itemsize for x in (hidden, kernel, *others)
        ),
    )
