"""Softmax attention, and which of its programs runs where.

All compute the same: products of operands in their dtype with float32 results, a float32 softmax,
and zeros where there is no valid key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.kernels.long_attention import long_attention
from siglip2_jax.models.kernels.short_attention import MOST_TOKENS, short_attention
from siglip2_jax.sharding import AXES, has_mesh, platform

Kernel = Callable[[Array, Array, Array, Array | None], Array]
"""Attention of one device's images: query, key, value and the valid keys [B, K] or None."""
AttentionImpl = Literal["auto", "xla", "pallas", "splash", "cudnn"] | Kernel

_FEW = 16


def attend(
    query: Float[Array, "B Q H C"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K H C"],
    valid: Bool[Array, "B K"] | Bool[Array, "B Q K"] | None = None,
    impl: AttentionImpl = "auto",
    length: int | None = None,
) -> Float[Array, "B Q H C"]:
    """Softmax attention over the valid keys; the softmax is float32.

    Rows of queries are never masked: what a padding query computes is finite and unused. A query
    without any valid key gets zeros.

    Args:
      query: queries, not yet scaled.
      key: keys.
      value: values; those that are not valid must be finite.
      valid: which keys exist, for all queries or for each; None means all. On GPU a mask for all
        queries must be a prefix, as those of the towers are: cuDNN reads only how many are valid.
      impl: "xla" leaves the program to XLA; "pallas" is the kernel for short sequences and
        "splash" the one for long ones, which off TPU are interpreted, slowly, for tests; "cudnn"
        is the kernel of NVIDIA's library; "auto" is what `choose` says. A function is a kernel
        of your own, run on every device's images.
      length: of the sequences that lie side by side in a row, each of which attends to itself
        alone; None means one. Programs that have one mask for all queries refuse it.

    Returns:
      One value per query, in the dtype of `query`.

    Raises:
      ValueError: the kernel asked for cannot do it.
    """
    if impl == "auto":
        impl = choose(query, key, valid)
    if length is not None and impl != "pallas":
        own = jnp.arange(query.shape[1]) // length
        mask = jnp.broadcast_to(own[:, None] == own, (query.shape[0], len(own), len(own)))
        valid = mask if valid is None else valid[:, None] & mask
    if impl == "xla":
        return _xla(query, key, value, valid)
    if valid is not None and valid.ndim == 3:
        name = impl if isinstance(impl, str) else impl.__name__
        raise ValueError(f'the kernel "{name}" has one mask for all queries; use "auto" or "xla"')
    if callable(impl):
        return _each_device(impl, query, key, value, valid)
    if impl == "cudnn":
        if lack := _lack(query):
            raise ValueError(f'the kernel "cudnn" {lack}; use "auto" or "xla"')
        return _each_device(_cudnn, query, key, value, valid)
    if impl == "splash":
        program = functools.partial(long_attention, interpret=platform() != "tpu")
        return _each_device(program, query, key, value, valid)
    if key.shape[1] > MOST_TOKENS:
        raise ValueError(
            f'the kernel "pallas" takes at most {MOST_TOKENS} keys, found {key.shape[1]}; use '
            '"auto", "splash" or "xla"'
        )
    return short_attention(query, key, value, valid, platform() != "tpu", length)


def choose(
    query: Array, key: Array, valid: Array | None
) -> Literal["xla", "pallas", "splash", "cudnn"]:
    """The fastest program for these shapes on the platform in force.

    On TPU the kernels take bfloat16: one up to `MOST_TOKENS` keys, the other more queries and keys
    than that. On GPUs since NVIDIA's Ampere cuDNN takes bfloat16 and float16. Few queries, such as
    those that pool or generate, and masks that differ from query to query are XLA's.
    """
    few = min(query.shape[1], key.shape[1]) < _FEW
    if few or (valid is not None and valid.ndim == 3):
        return "xla"
    if platform() == "gpu":
        return "xla" if _lack(query) else "cudnn"
    if platform() != "tpu" or query.dtype != jnp.bfloat16:
        return "xla"
    if key.shape[1] <= MOST_TOKENS:
        return "pallas"
    return "splash" if query.shape[1] > MOST_TOKENS else "xla"


def _lack(query: Array) -> str | None:
    """Reason why cuDNN cannot run here, by the limits of its support matrix for both passes."""
    size = query.shape[-1]
    if platform() != "gpu":
        return f'needs a GPU, found the platform "{platform()}"'
    if _generation() < 8:
        return "needs an NVIDIA GPU of compute capability 8.0 or more (since Ampere), found another"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, found {query.dtype}"
    if size % 8 or size > 128:
        return f"takes head sizes up to 128 that are multiples of 8, found {size}"
    return None


def _generation() -> int:
    """First number of the GPU's compute capability; 0 for those that are not NVIDIA's."""
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")[0]
    return int(major) if major.isdigit() else 0


def _each_device(program: Callable[..., Array], *operands: Array | None) -> Array:
    """Runs a program on every device's images."""
    if not has_mesh():
        return program(*operands)
    split = PartitionSpec(AXES)
    # Nothing is replicated, so there is nothing for `check_vma` to check.
    return jax.shard_map(program, in_specs=split, out_specs=split, check_vma=False)(*operands)


def _cudnn(query: Array, key: Array, value: Array, valid: Array | None) -> Array:
    # Lengths are given even if nothing is padded: without them the backward pass can give NaN where
    # keys do not fill its tiles (NVIDIA/cudnn-frontend, issue 160). None is 0, of which the library
    # promises nothing.
    every = jnp.ones(key.shape[:2], bool)
    lengths = (every if valid is None else valid).sum(axis=1, dtype=jnp.int32)
    values = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=jnp.maximum(lengths, 1), implementation="cudnn"
    )
    return jnp.where(lengths[:, None, None, None] > 0, values, 0)


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
