"""Moving average of the parameters: what objectives learn from, or a model to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import optax
from flax import nnx
from jaxtyping import Array

from siglip2_jax.checkpoints.run_layout import HEADS
from siglip2_jax.config import ResolvedStage
from siglip2_jax.models.low_rank import pair_path
from siglip2_jax.models.siglip2 import Params, SigLIP2, flatten, unflatten
from siglip2_jax.objectives.base import Objective
from siglip2_jax.train.state import model_params


class Average:
    """The part of a stage's parameters of which it keeps a moving average; see `Optim.ema`.

    Attributes:
      paths: of the parameters that are averaged; none where the stage keeps no average.
    """

    def __init__(
        self, stage: ResolvedStage, objectives: Mapping[str, Objective], shapes: Mapping[str, Any]
    ):
        optim = stage.optim
        self._decay = optim.ema
        students = [name for name, objective in objectives.items() if objective.has_teacher]
        if optim.ema_heads and not students:
            raise ValueError(
                f"stage {stage.name!r} has no objective that learns from a teacher, whose head "
                "optim.ema_heads could average; add one such as SelfDistill, or turn ema_heads off"
            )
        everything = optim.ema_all or not students
        tower = "vision/", pair_path("vision", "")
        heads = tuple(f"{HEADS}/{name}/" for name in students)
        parts = heads if optim.ema_heads else tower + heads
        self.paths = tuple(
            path
            for path in shapes
            if self._decay is not None and (everything or path.startswith(parts))
        )
        self._shared = tuple(x for x in shapes if optim.ema_heads and x.startswith(tower))
        model = nnx.eval_shape(
            lambda: SigLIP2(stage.model, compute=stage.compute, rngs=nnx.Rngs(0))
        )
        if not everything:
            del model.text, model.t, model.b
        self._graphdef = nnx.graphdef(model)

    def start(self, params: Mapping[str, Array]) -> Params | None:
        """The average at first: a copy of the parameters, given by path; None if none is kept."""
        return unflatten({path: params[path] for path in self.paths}) if self.paths else None

    def update(self, average: Params | None, params: Mapping[str, Array]) -> Params | None:
        """The average after an update of the parameters."""
        latest = self.start(params)
        if average is None or latest is None or self._decay is None:
            return None
        return cast(Params, optax.incremental_update(latest, average, 1 - self._decay))

    def model(self, average: Params, params: Params) -> SigLIP2:
        """The averaged model, with as much of it as is kept.

        Args:
          average: the average.
          params: the student's, of which the tower is taken where heads alone are averaged.
        """
        if self._shared:
            leaves = flatten(params)
            average = unflatten({path: leaves[path] for path in self._shared})
        return nnx.merge(self._graphdef, model_params(average))
