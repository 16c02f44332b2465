"""Cross-entropy over a vocabulary too large for its logits to be kept.

A caption of 64 tokens for each of 128 examples on a device, against 256,000 entries, has 8 GB of
float32 logits. So tokens come a chunk at a time, and their derivatives are found while the logits
are there: that is three matrix products, where finding the logits again in a backward pass would be
a fourth. Tokens that count are brought to the front and chunks in which none counts are skipped, so
that padding, which is most of what short captions are, costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from siglip2_jax.models.kernels.vocabulary import (
    BLOCK,
    softmax_gradients,
    softmax_sums,
    tokens_together,
)
from siglip2_jax.sharding import AXES, BATCH, has_mesh, platform

Derive = Callable[[Array, Array], tuple[Array, Array]]
"""From weights and a sum: the derivative by hidden, and that by the kernel added to the sum."""
Softmax = Callable[[Array, Array], tuple[Array, Derive]]
"""From hidden and targets of a chunk: cross-entropies, and what gives their derivatives."""


def vocabulary_loss(
    hidden: Float32[Array, "*n D"],
    kernel: Float32[Array, "D V"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    *,
    chunk: int,
    dtype: DTypeLike,
    impl: Literal["auto", "xla", "pallas"] = "auto",
) -> tuple[Float[Array, ""], Float[Array, "*n"]]:
    """The sum over all tokens of `-weight * log softmax(hidden @ kernel)[target]`.

    It is global over the mesh by construction. Tokens stay on their device; the kernel is gathered
    once, in `dtype`, and its gradient, summed in float32 on the device, is sent back once.

    Args:
      hidden: what the logits are made of, split over the mesh as `BATCH`.
      kernel: the output projection, whole or with one dimension split over `fsdp`.
      targets: the right entries, in [0, V), split as `BATCH`.
      weights: what each token counts, split as `BATCH`; at 0 a token is left out.
      chunk: tokens at a time on a device, whose `[chunk, V]` logits are in memory: in float32, or
        with the kernels their exponentials in `dtype`, if a gradient is taken.
      dtype: of the factors of matrix products, which accumulate in float32.
      impl: "xla" leaves the program to XLA; "pallas" is the kernels for TPU, which elsewhere are
        interpreted, slowly, for tests, and which take `chunk` in multiples of 128 as far as fits
        their memory; "auto" takes them on TPU for bfloat16.

    Returns:
      The sum, with a gradient for `hidden` and `kernel`; and, for reports and without gradient,
      the cross-entropy of each token, 0 where its weight is 0.

    Raises:
      ValueError: `chunk` is less than 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, but at least 1 token is taken at a time")
    dtype = jnp.dtype(dtype)
    if impl == "auto":
        impl = "pallas" if platform() == "tpu" and dtype == jnp.bfloat16 else "xla"
    return _loss(hidden, kernel, targets, weights, chunk, dtype, impl)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(*inputs: Any) -> tuple[Array, Array]:
    return _on_mesh(*inputs, derive=False)[0]


def _forward(*inputs: Any) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    return _on_mesh(*inputs, derive=True)


def _backward(
    chunk: int,
    dtype: DTypeLike,
    impl: str,
    derivatives: tuple[Array, ...],
    cotangents: tuple[Array, ...],
) -> tuple[Array | None, ...]:
    return *(cotangents[0] * x for x in derivatives), None, None


_loss.defvjp(_forward, _backward)


def _on_mesh(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    chunk: int,
    dtype: DTypeLike,
    impl: str,
    *,
    derive: bool,
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """The sum and each token's loss; the derivatives by hidden and kernel if asked for."""
    local = partial(_local, chunk=chunk, impl=impl, derive=derive)
    if not has_mesh():
        return local(hidden.astype(dtype), kernel.astype(dtype), targets, weights)
    spec = jax.typeof(kernel).sharding.spec
    split = next((i for i, axis in enumerate(spec) if axis), None)

    def device(hidden: Array, kernel: Array, targets: Array, weights: Array):
        full_kernel = kernel.astype(dtype)
        if split is not None:
            full_kernel = jax.lax.all_gather(full_kernel, "fsdp", axis=split, tiled=True)
        (loss, losses), derivatives = local(hidden.astype(dtype), full_kernel, targets, weights)
        if derive:
            derivatives = derivatives[0], _sum_over_devices(derivatives[1], split)
        return (jax.lax.psum(loss, AXES), losses), derivatives

    specs = (PartitionSpec(), BATCH), ((BATCH, spec) if derive else ())
    run = jax.shard_map(
        device,
        in_specs=(BATCH, spec, BATCH, BATCH),
        out_specs=specs,
        check_vma=impl != "pallas",  # kernels do not say on which devices their results differ
    )
    return run(hidden, kernel, targets, weights)


def _sum_over_devices(x: Array, split: int | None) -> Array:
    """The sum of an array over all devices, with dimension `split` dealt out over `fsdp`."""
    if split is None:
        return jax.lax.psum(x, AXES)
    x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=split, tiled=True)
    return jax.lax.psum(x, "replica")


def _local(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    *,
    chunk: int,
    impl: str,
    derive: bool,
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """Computes the result of `_on_mesh` for the tokens of one device."""
    order = jnp.argsort(weights.ravel() == 0, stable=True)
    vocabulary, chunk = kernel.shape[1], min(chunk, order.size)
    softmax = partial(_softmax, kernel=kernel)
    if impl == "pallas":
        chunk = tokens_together(chunk, kernel.shape[0])
        kernel = jnp.pad(kernel, ((0, 0), (0, -vocabulary % BLOCK)))
        softmax = partial(_fused_softmax, kernel=kernel, vocabulary=vocabulary, derive=derive)
    # Every device has its own sums, which zeros made from nothing would not say.
    zeros = partial(jnp.broadcast_to, 0 * weights.ravel()[0])

    def cut(x: Array) -> Array:
        x = x.reshape(order.size, *x.shape[weights.ndim :])[order]
        x = jnp.pad(x, [(0, -len(x) % chunk)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    def join(x: Array) -> Array:
        x = x.reshape(-1, *x.shape[2:])[jnp.argsort(order)]
        return x.reshape(*weights.shape, *x.shape[1:])

    def skip(sums: tuple[Array, ...], hidden: Array, targets: Array, weights: Array):
        return sums, (zeros(chunk), zeros(hidden.shape))[: len(sums)]

    def step(sums: tuple[Array, ...], part: tuple[Array, ...]):
        work = partial(_chunk, softmax=softmax)
        return jax.lax.cond((part[-1] != 0).any(), work, skip, sums, *part)

    start = (zeros(()), zeros(kernel.shape)) if derive else (zeros(()),)
    sums, outputs = jax.lax.scan(step, start, (cut(hidden), cut(targets), cut(weights)))
    losses, *d_hidden = map(join, outputs)
    return (sums[0], losses), (*d_hidden, *(x[:, :vocabulary] for x in sums[1:]))


def _chunk(
    sums: tuple[Array, ...], hidden: Array, targets: Array, weights: Array, *, softmax: Softmax
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Adds a chunk to the loss and, where it is summed, to the derivative by the kernel."""
    hidden = jnp.where(weights[:, None] == 0, 0, hidden)
    losses, derive = softmax(hidden, targets)
    losses = jnp.where(weights == 0, 0, losses)
    loss = sums[0] + jnp.sum(weights * losses)
    if len(sums) == 1:
        return (loss,), (losses,)
    d_hidden, d_kernel = derive(weights, sums[1])
    return (loss, d_kernel), (losses, d_hidden)


def _softmax(hidden: Array, targets: Array, *, kernel: Array) -> tuple[Array, Derive]:
    """The cross-entropies of a chunk, and what gives their derivatives; XLA's program."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    top = logits.max(axis=1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = exponentials.sum(axis=1, keepdims=True)
    right = jnp.arange(kernel.shape[1]) == targets[:, None]
    losses = (jnp.log(total) + top)[:, 0] - jnp.where(right, logits, 0).sum(axis=1)

    def derive(weights: Array, sums: Array) -> tuple[Array, Array]:
        d_logits = (weights[:, None] * (exponentials / total - right)).astype(hidden.dtype)
        d_hidden = jnp.matmul(d_logits, kernel.T, preferred_element_type=jnp.float32)
        d_kernel = jnp.matmul(hidden.T, d_logits, preferred_element_type=jnp.float32)
        return d_hidden, sums + d_kernel

    return losses, derive


def _fused_softmax(
    hidden: Array, targets: Array, *, kernel: Array, vocabulary: int, derive: bool
) -> tuple[Array, Derive]:
    """Computes the result of `_softmax` by the kernels, given whole blocks, padded with zeros."""
    interpret = platform() != "tpu"
    sums = softmax_sums(hidden, kernel, targets, vocabulary, keep=derive, interpret=interpret)

    def gradients(weights: Array, d_kernel: Array) -> tuple[Array, Array]:
        return softmax_gradients(
            sums, hidden, kernel, targets, weights, d_kernel, interpret=interpret
        )

    return sums.log_sum - sums.right, gradients
