"""Kinds of weights of a loaded model: float32, bfloat16 or 8 bits, made tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from siglip2_jax.models.kernels.int8 import LARGEST, Int8
from siglip2_jax.models.siglip2 import Params
from siglip2_jax.sharding import STACKED

Weights = Literal["float32", "bfloat16", "int8"]


def check_weights(weights: str) -> None:
    """Checks the name of a kind of weights.

    Raises:
      ValueError: there is no such kind.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; expected 'float32', 'bfloat16' or 'int8'")


def find_weights(params: Params) -> Weights:
    """The kind of a model's weights; float32 where it has none of its own."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Int8))
    if any(isinstance(leaf, Int8) for leaf in leaves):
        return "int8"
    return (
        "bfloat16" if any(jnp.result_type(leaf) == jnp.bfloat16 for leaf in leaves) else "float32"
    )


def shrink(path: str, x: np.ndarray, shapes: Mapping[str, Any], weights: Weights) -> Any:
    """A parameter in the given kind, on the device.

    Kernels and the token table become small: nearly all of the memory. Biases, norms, position
    tables, the pooling's probe, `t` and `b` stay float32. In 8 bits, each output of a kernel and
    each row of the table has a scale of its own.

    Args:
      path: of the parameter.
      x: float32.
      shapes: those of all parameters, by path.
      weights: the kind.
    """
    parent, _, name = path.rpartition("/")
    is_table = path.endswith("embed/table")
    if weights == "float32" or not (name == "kernel" or is_table):
        return jnp.asarray(x)
    if weights == "bfloat16":
        return jnp.asarray(x.astype(ml_dtypes.bfloat16))
    lead = 1 if is_table or STACKED.fullmatch(path) else 0
    last = 0 if is_table else len(shapes[f"{parent}/bias"]) - lead  # a bias for each output
    return quantise(x, lead, last)


def quantise(x: np.ndarray, lead: int, last: int) -> Int8:
    """Rounds an array to 8 bits.

    Args:
      x: float32.
      lead: how many leading dimensions have scales of their own.
      last: and how many of the last ones.
    """
    outputs = int(np.prod(x.shape[x.ndim - last :]))
    flat = x.reshape(*x.shape[:lead], -1, outputs)
    scale = np.abs(flat).max(-2) / np.float32(LARGEST)
    whole = np.rint(flat / np.where(scale == 0, 1, scale)[..., None, :])
    return Int8(jnp.asarray(whole.astype(np.int8).reshape(x.shape)), jnp.asarray(scale))
