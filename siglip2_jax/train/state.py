"""State of training: everything that a step changes."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Int

from siglip2_jax.checkpoints.run_layout import HEADS
from siglip2_jax.models.low_rank import attach, merge
from siglip2_jax.models.siglip2 import Params, flatten, unflatten
from siglip2_jax.sharding import has_mesh, param_spec
from siglip2_jax.types import pytree_dataclass


@pytree_dataclass
class TrainState:
    """State that training carries from step to step; a pytree that goes to a checkpoint as it is.

    Attributes:
      params: nested dict of float32 arrays: the model's, objectives' own under `heads/<name>`, and
        low-rank pairs of kernels under `adapters/<path of the kernel>`.
      optimizer: state of the optimizer; it holds moments of trainable parameters only.
      ema_params: moving average of a part of `params` (see `average.Average`), or None.
      step: number of the next step within the run.
      teacher_params: parameters of the frozen teacher that curates the batches, or None.
        Checkpoints do not hold them: they are read from where they came from.
    """

    params: Params
    optimizer: Any
    ema_params: Params | None
    step: Int[Array, ""]
    teacher_params: Params | None = None


def without_heads(params: Params) -> Params:
    """The model's parameters, with pairs of kernels that have one."""
    return {name: value for name, value in params.items() if name != HEADS}


def model_params(params: Params) -> Params:
    """The model's parameters for its modules, kernels beside their pairs."""
    return attach(without_heads(params))


def plain_params(params: Params) -> Params:
    """The model's parameters, pairs merged: what is exported and shown to evaluators."""
    return merge(without_heads(params))


def place(params: Params) -> Params:
    """Parameters split by rule over the mesh in force, if there is one."""
    if not has_mesh():
        return params
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
    flat = flatten(params)
    return unflatten(
        {path: jax.reshard(x, param_spec(path, x.shape, fsdp)) for path, x in flat.items()}
    )
