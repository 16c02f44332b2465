"""Heads: the modules that objectives learn beside the towers, under `heads/<name>`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array

from siglip2_jax.checkpoints.run_layout import HEADS
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import Params, flatten
from siglip2_jax.objectives.base import Buffer, Objective


class Heads:
    """Heads of the objectives that have one.

    Attributes:
      shapes: `jax.ShapeDtypeStruct` of every parameter and running statistic, by path.
      buffers: paths of the running statistics.
    """

    def __init__(self, objectives: Mapping[str, Objective], model: ModelConfig, compute: Compute):
        self._objectives, self._model, self._compute = objectives, model, compute
        heads = nnx.eval_shape(lambda: self._make(jax.random.key(0)))
        self._graphdefs = {name: nnx.graphdef(head) for name, head in heads.items()}
        states = {name: nnx.to_pure_dict(nnx.state(head)) for name, head in heads.items()}
        buffers = {name: buffers_of(head) for name, head in heads.items()}
        self.shapes = flatten({HEADS: states})
        self.buffers = flatten({HEADS: buffers}).keys()

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        heads = {name: nnx.to_pure_dict(nnx.state(x)) for name, x in self._make(key).items()}
        return {HEADS: heads} if heads else {}

    def merge(self, name: str, params: Params) -> nnx.Module | None:
        """The head of an objective with these parameters; None where it has none."""
        graphdef = self._graphdefs.get(name)
        return None if graphdef is None else nnx.merge(graphdef, params[HEADS][name])

    def _make(self, key: Array) -> dict[str, nnx.Module]:
        made = {
            name: x.head(self._model, self._compute, rngs=nnx.Rngs(fold_name(key, name)))
            for name, x in self._objectives.items()
        }
        return {name: head for name, head in made.items() if head is not None}


def fold_name(key: Array, name: str) -> Array:
    """The randomness of an objective, which does not depend on the others of its stage."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def buffers_of(head: nnx.Module | None) -> Params:
    """Running statistics of a head, by path."""
    return {} if head is None else nnx.to_pure_dict(nnx.state(head, Buffer))
