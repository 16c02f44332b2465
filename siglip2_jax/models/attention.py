"""Softmax attention, and which of its programs runs where.

All compute the same: products of operands in their dtype with float32 results, a float32 softmax,
and zeros where there is no valid key.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.short_attention import MOST_TOKENS, short_attention
from siglip2_jax.sharding import platform

Kind = Literal["auto", "xla", "pallas"]

_FEW = 16


def attend(
    query: Float[Array, "B Q H C"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K H C"],
    valid: Bool[Array, "B K"] | Bool[Array, "B Q K"] | None = None,
    kind: Kind = "auto",
) -> Float[Array, "B Q H C"]:
    """Softmax attention over the valid keys; the softmax is float32.

    Rows of queries are never masked: what a padding query computes is finite and unused. A query
    without any valid key gets zeros.

    Args:
      query: queries, not yet scaled.
      key: keys.
      value: values; those that are not valid must be finite.
      valid: which keys exist, for all queries or for each; None means all.
      kind: "xla" leaves the program to XLA; "pallas" is the kernel for short sequences, which off
        TPU is interpreted, slowly, for tests; "auto" is what `choose` says.

    Returns:
      One value per query, in the dtype of `query`.

    Raises:
      ValueError: the kernel asked for cannot do it.
    """
    if kind == "auto":
        kind = choose(query, key, valid)
    if kind == "xla":
        return _xla(query, key, value, valid)
    if valid is not None and valid.ndim == 3:
        raise ValueError('the kernel "pallas" has one mask for all queries; use "auto" or "xla"')
    if key.shape[1] > MOST_TOKENS:
        raise ValueError(
            f'the kernel "pallas" takes at most {MOST_TOKENS} keys, found {key.shape[1]}; use '
            '"auto" or "xla"'
        )
    return short_attention(query, key, value, valid, platform() != "tpu")


def choose(query: Array, key: Array, valid: Array | None) -> Literal["xla", "pallas"]:
    """The fastest program for these shapes on the platform in force.

    On TPU the kernel takes bfloat16 sequences of `MOST_TOKENS` keys at most; single queries, such
    as those that pool or generate, and masks that differ from query to query are XLA's.
    """
    short = query.shape[1] >= _FEW and _FEW <= key.shape[1] <= MOST_TOKENS
    simple = valid is None or valid.ndim == 2
    narrow = query.dtype == jnp.bfloat16
    return "pallas" if platform() == "tpu" and short and simple and narrow else "xla"


def _xla(query: Array, key: Array, value: Array, valid: Array | None) -> Array:
    # Heads lead in all operands, so that on CPU both products run as plain batched matmuls; this is
    # twice as fast there as jax.nn.dot_product_attention and the same program on TPU.
    query = query.transpose(0, 2, 1, 3)
    key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    scores = jnp.matmul(query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if valid is not None:
        valid = valid[:, None] if valid.ndim == 3 else valid[:, None, None]
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
    # Without a valid key all weights underflow to 0, and the sum would too.
    largest = jnp.maximum(scores.max(axis=-1, keepdims=True), jnp.finfo(jnp.float32).min / 2)
    # The softmax's division comes last, on the few outputs rather than on the many weights.
    weights = jnp.exp(scores - jax.lax.stop_gradient(largest))
    attended = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # The sum is 1 or more where a key is valid; 0.5 is never a tie, which would split the gradient.
    attended /= jnp.maximum(weights.sum(axis=-1, keepdims=True), 0.5)
    return attended.astype(value.dtype).transpose(0, 2, 1, 3)
