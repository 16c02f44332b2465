"""Adafactor as in "Scaling Vision Transformers" (arXiv 2106.04560), for parameters in stacks.

It is big_vision's `scale_by_adafactor`: a second moment kept as the means of its rows and columns,
whose decay is `min(max_decay, 1 - t^-0.8)`, no clipping of the update, and a momentum in bfloat16.
Here a tower's blocks are stacked in one array, of which each layer is factored by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

STACKED = "/blocks/"  # paths of parameters whose first dimension is that of the layers
MIN_SIZE = 32  # dimensions smaller than this are not factored
POWER = 0.8
EPSILON = 1e-30


Leaves = dict[str, Float[Array, "..."]]
Moment = dict[str, Float32[Array, "..."]]
"""The mean of a parameter's squared gradients: "row" and "column", its means over the largest and
over the second largest dimension, or "full", itself, where it is not factored."""


class AdafactorState(NamedTuple):
    """The state of Adafactor.

    Attributes:
      count: updates made so far, int32.
      squares: the second moment of each parameter.
      momentum: moving average of the scaled gradients, bfloat16.
    """

    count: Int[Array, ""]
    squares: dict[str, Moment]
    momentum: Leaves


def scale_by_adafactor(*, momentum: float, max_decay: float) -> optax.GradientTransformation:
    """Gradients to Adafactor's direction, on flat dicts whose paths tell which are stacks.

    Args:
      momentum: decay of the moving average of the scaled gradients; not debiased.
      max_decay: upper bound of the second moment's decay.
    """

    def init(params: Leaves) -> AdafactorState:
        squares = {path: _zero_moment(path, param) for path, param in params.items()}
        zeros = {path: jnp.zeros_like(p, dtype=jnp.bfloat16) for path, p in params.items()}
        return AdafactorState(jnp.zeros((), jnp.int32), squares, zeros)

    def update(
        grads: Leaves, state: AdafactorState, params: object = None
    ) -> tuple[Leaves, AdafactorState]:
        del params
        count = state.count + 1
        decay = jnp.minimum(max_decay, 1 - count.astype(jnp.float32) ** -POWER)
        squares, directions = {}, {}
        for path, grad in grads.items():
            squares[path] = _update_moment(path, state.squares[path], grad, decay)
            scaled = _scale(path, squares[path], grad)
            last = state.momentum[path].astype(jnp.float32)
            directions[path] = momentum * last + (1 - momentum) * scaled
        stored = {path: direction.astype(jnp.bfloat16) for path, direction in directions.items()}
        return directions, AdafactorState(count, squares, stored)

    return optax.GradientTransformation(init, update)


def _axes(path: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The second largest and the largest dimension of one layer; None: too small to factor."""
    lead = int(STACKED in f"/{path}")
    if len(shape) - lead < 2:
        return None
    *_, second, first = np.argsort(shape[lead:], kind="stable")
    return None if shape[lead + second] < MIN_SIZE else (lead + int(second), lead + int(first))


def _zero_moment(path: str, param: Array) -> Moment:
    axes = _axes(path, param.shape)
    if axes is None:
        return {"full": jnp.zeros_like(param)}
    column_axis, row_axis = axes

    def zeros(axis: int) -> Array:
        # Only the type is needed of a mean, which also says how it is sharded.
        return jnp.zeros_like(jax.eval_shape(lambda x: x.mean(axis), param))

    return {"row": zeros(row_axis), "column": zeros(column_axis)}


def _update_moment(path: str, moment: Moment, grad: Array, decay: Array) -> Moment:
    """The second moment after one more gradient."""
    square = jnp.square(grad) + EPSILON
    axes = _axes(path, grad.shape)
    if axes is None:
        return {"full": decay * moment["full"] + (1 - decay) * square}
    column_axis, row_axis = axes
    return {
        "row": decay * moment["row"] + (1 - decay) * square.mean(row_axis),
        "column": decay * moment["column"] + (1 - decay) * square.mean(column_axis),
    }


def _scale(path: str, moment: Moment, grad: Array) -> Array:
    """The gradient divided by the root of the second moment, rows x columns / mean of rows."""
    axes = _axes(path, grad.shape)
    if axes is None:
        return grad * jax.lax.rsqrt(moment["full"])
    column_axis, row_axis = axes
    row = jnp.expand_dims(moment["row"], row_axis)
    column = jnp.expand_dims(moment["column"], column_axis)
    return grad * jax.lax.rsqrt(row / row.mean(column_axis, keepdims=True)) * jax.lax.rsqrt(column)
