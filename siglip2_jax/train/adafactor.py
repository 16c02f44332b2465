"""Adafactor as in "Scaling Vision Transformers" (arXiv 2106.04560), for parameters in stacks.

It is big_vision's `scale_by_adafactor`: a second moment kept as the means of its rows and columns,
whose decay is `min(max_decay, 1 - t^-0.8)`, no clipping of the update, and a momentum in bfloat16,
or as told. The second moment is optax's; a tower's blocks are stacked in one array, of which each
layer is factored by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

STACKED = "/blocks/"  # paths of parameters whose first dimension is that of the layers
MIN_SIZE = 32  # dimensions smaller than this are not factored

Leaves = dict[str, Float[Array, "..."]]
Moment = dict[str, Float32[Array, "..."]]
"""The mean of a parameter's squared gradients: "row" and "column", its means over the largest and
over the second largest dimension, or "full", itself, where it is not factored."""


class AdafactorState(NamedTuple):
    """The state of Adafactor.

    Attributes:
      count: updates made so far, int32.
      squares: the second moment of each parameter.
      momentum: moving average of the scaled gradients.
    """

    count: Int[Array, ""]
    squares: dict[str, Moment]
    momentum: Leaves


def scale_by_adafactor(
    *, momentum: float, max_decay: float, momentum_dtype: DTypeLike = "bfloat16"
) -> optax.GradientTransformation:
    """Gradients to Adafactor's direction, on flat dicts whose paths tell which are stacks.

    Args:
      momentum: decay of the moving average of the scaled gradients; not debiased.
      max_decay: upper bound of the second moment's decay.
      momentum_dtype: dtype that the moving average is kept in between updates.
    """

    def decay(count: Any, power: Any) -> Array:
        return jnp.minimum(max_decay, 1 - jnp.float32(count + 1) ** -power)

    rms = optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_SIZE, decay_rate_fn=decay)

    def init_square(param: Array) -> Moment:
        state: Any = rms.init(param)  # a FactoredState, of which optax's types do not say so
        if state.v.shape == param.shape:
            return {"full": state.v}
        return {"row": state.v_row, "column": state.v_col}

    def init(params: Leaves) -> AdafactorState:
        squares = {path: _each_layer(path, init_square)(param) for path, param in params.items()}
        zeros = {path: jnp.zeros_like(p, dtype=momentum_dtype) for path, p in params.items()}
        return AdafactorState(jnp.zeros((), jnp.int32), squares, zeros)

    def update(
        grads: Leaves, state: AdafactorState, params: object = None
    ) -> tuple[Leaves, AdafactorState]:
        del params

        def scale(grad: Array, square: Moment) -> tuple[Array, Moment]:
            unused = jnp.zeros(1)
            parts = (square.get(name, unused) for name in ("row", "column", "full"))
            before: Any = optax.FactoredState(state.count, *parts)
            scaled, new = cast(Any, rms.update(grad, before, grad))
            values = {"row": new.v_row, "column": new.v_col, "full": new.v}
            return scaled, {name: values[name] for name in square}

        squares, directions = {}, {}
        for path, grad in grads.items():
            scaled, squares[path] = _each_layer(path, scale)(grad, state.squares[path])
            last = state.momentum[path].astype(jnp.float32)
            directions[path] = momentum * last + (1 - momentum) * scaled
        stored = {path: direction.astype(momentum_dtype) for path, direction in directions.items()}
        return directions, AdafactorState(state.count + 1, squares, stored)

    # Only flat dicts, where optax's types want any tree.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _each_layer(path: str, function: Callable) -> Callable:
    """The function, or for a stack of layers the function of each."""
    return jax.vmap(function) if STACKED in f"/{path}" else function
