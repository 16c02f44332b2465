"""The sigmoid loss over all pairs of the global batch (SigLIP, arXiv 2303.15343, Algorithm 1).

`L = -(1/n) sum_ij log sigmoid(z_ij s_ij)` with `s_ij = exp(t) <x_i, y_j> + b`, where `z_ij` is 1
for a pair and -1 otherwise. (The paper's display equation has the sign of b wrong; its code has
not.) Both implementations are global over the mesh by construction: there is no loss per device
that is averaged.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import contrastive_flops
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.sharding import AXES, BATCH, gather_rows, has_mesh, ppermute_next
from siglip2_jax.types import ArrayLike, Batch

Scalar = Float[Array, ""]
Rows = Float[ArrayLike, "n E"]


@dataclasses.dataclass(frozen=True)
class Sigmoid(Objective):
    """Every image against every text.

    Attributes:
      weight: in the sum of losses.
      implementation: "dense" gathers the texts and has `[n / devices, n]` logits on a device;
        "ring" passes texts around the devices (section 3.3), so that memory depends on the batch
        per device alone.
    """

    weight: float = 1.0
    implementation: Literal["dense", "ring"] = "dense"
    across_examples = True

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The logits, forward and backward."""
        return 3 * contrastive_flops(batch.text.shape[0], model.text.embed_dim)

    def loss(self, head: None, view: View) -> tuple[Array, dict[str, Array]]:
        """The loss, the temperature `exp(t)` and the bias."""
        t, b = view.student.t[...], view.student.b[...]
        compute = ring_loss if self.implementation == "ring" and has_mesh() else sigmoid_loss
        loss = compute(view.features.image, jnp.asarray(view.features.text), t, b)
        return loss, {"temperature": jnp.exp(t), "bias": b}


def sigmoid_loss(images: Rows, texts: Rows, t: Scalar, b: Scalar) -> Scalar:
    """The sigmoid loss of every image against every text, with all texts on every device.

    Args:
      images: unit-length image embeddings, split over the mesh as `BATCH`.
      texts: unit-length text embeddings in the same order, split likewise.
      t: log of the temperature; `SigLIP2.t`.
      b: bias; `SigLIP2.b`.

    Returns:
      The sum over all n * n pairs, divided by n.
    """
    n = images.shape[0]
    index = jnp.arange(n)
    rows = jax.reshard(index, BATCH) if has_mesh() else index
    logits = _logits(images, gather_rows(texts), t, b)
    return _pair_losses(logits, rows[:, None] == index).sum() / n


def _logits(image: Rows, text: Rows, t: Scalar, b: Scalar) -> Array:
    # TPUs multiply float32 in bfloat16 unless told otherwise; times a temperature of 100 it shows.
    products = jnp.einsum("ne,me->nm", image, text, precision="highest")
    return jnp.exp(t) * products + b


def _pair_losses(logits: Array, pairs: Bool[Array, "n m"]) -> Array:
    return -jax.nn.log_sigmoid(jnp.where(pairs, logits, -logits))


@jax.custom_vjp
def ring_loss(image: Rows, text: Rows, t: Scalar, b: Scalar) -> Scalar:
    """The loss with texts passed from device to device; arguments and result as `sigmoid_loss`.

    Each device meets one shard of the texts at a time. Gradients are computed in the forward ring
    pass; text gradients travel with their shard. Saving residuals for a second pass would store the
    whole gathered batch.
    """
    return _ring(jnp.asarray(image), jnp.asarray(text), t, b)[0]


def _ring_forward(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _ring(*inputs)


def _ring_backward(derivatives: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    return jax.tree.map(lambda x: cotangent * x, derivatives)


ring_loss.defvjp(_ring_forward, _ring_backward)


def _ring(image: Array, text: Array, t: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    """The loss and its derivatives by image, text, t and b."""
    scalar = PartitionSpec()
    specs = (BATCH, BATCH, scalar, scalar)
    local = partial(_ring_local, n=image.shape[0])
    return jax.shard_map(local, in_specs=specs, out_specs=(scalar, specs))(image, text, t, b)


def _ring_local(
    image: Array, text: Array, t: Array, b: Array, *, n: int
) -> tuple[Array, tuple[Array, ...]]:
    devices = jax.lax.axis_size(AXES)
    diagonal = jnp.eye(image.shape[0], dtype=bool)
    temperature = jnp.exp(t)

    def meet(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        text, d_text, loss, d_image, d_t, d_b = carry
        pairs = diagonal & (step == 0)  # at first every device holds its own texts
        logits = _logits(image, text, t, b)
        d_logits = (jax.nn.sigmoid(logits) - pairs) / n
        scaled = temperature * d_logits
        d_image += jnp.matmul(scaled, text, precision="highest")
        d_text += jnp.matmul(scaled.T, image, precision="highest")
        loss += _pair_losses(logits, pairs).sum() / n
        d_t += jnp.sum(d_logits * (logits - b))
        d_b += d_logits.sum()
        text, d_text = (ppermute_next(x) for x in (text, d_text))
        return text, d_text, loss, d_image, d_t, d_b

    # Every device has its own value of each, which zeros made from nothing would not say.
    zero = 0 * image[0, 0]
    start = (text, 0 * text, zero, 0 * image, zero, zero)
    _, d_text, loss, d_image, d_t, d_b = jax.lax.fori_loop(0, devices, meet, start)
    loss, d_t, d_b = (jax.lax.psum(x, AXES) for x in (loss, d_t, d_b))
    return loss, (d_image, d_text, d_t, d_b)
