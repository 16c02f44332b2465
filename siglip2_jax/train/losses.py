"""The loss of a step: the weighted sum of a stage's objectives, as a function of parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from siglip2_jax.checkpoints.run_layout import HEADS
from siglip2_jax.config import ResolvedStage
from siglip2_jax.models.siglip2 import Params, SigLIP2, unflatten
from siglip2_jax.objectives.base import Objective, Teacher, View
from siglip2_jax.sharding import join_batch, split_batch
from siglip2_jax.train.average import Average
from siglip2_jax.train.heads import Heads, buffers_of, fold_name
from siglip2_jax.train.state import TrainState, model_params
from siglip2_jax.types import Batch, Features

Metrics = dict[str, Array]
Reports = dict[str, tuple[Array, Metrics, Params]]


class Losses:
    """Losses of a stage over a batch, all at once or a part at a time.

    Attributes:
      objectives: those of the stage, by name.
      towers: names of the towers that an objective reads; the others do not run.
    """

    def __init__(
        self,
        stage: ResolvedStage,
        objectives: Mapping[str, Objective],
        graphdef: nnx.GraphDef[SigLIP2],
        heads: Heads,
        average: Average,
    ):
        self.objectives = objectives
        self.towers = {tower for x in objectives.values() for tower in x.towers}
        self._stage, self._graphdef = stage, graphdef
        self._heads, self._average = heads, average

    def differentiate(
        self, changing: Mapping[str, Array], resting: Params, state: TrainState, batch: Batch
    ) -> tuple[tuple[Array, tuple[Metrics, Params]], dict[str, Array]]:
        """The weighted sum, reports and new buffers, and the gradient by some of the parameters.

        Objectives with a pass of their own follow the others, each after the gradient of the one
        before, so that the activations of one pass at a time are in memory.

        Args:
          changing: those parameters, by path.
          resting: the others, by path.
          state: the state before the step.
          batch: the global batch.
        """
        seen: dict[str, Features] = {}
        features: Features | None = None
        gradients: dict[str, Array] | None = None
        total, reports = jnp.float32(0), {}
        for names in self._groups:
            if gradients is not None:
                changing, gradients = jax.lax.optimization_barrier((changing, gradients))

            def group(changing: Mapping[str, Array], names=names, features=features) -> Any:
                params = unflatten({**resting, **changing})
                return self._sum(names, params, state, batch, seen, features)

            (loss, (features, more)), gradient = jax.value_and_grad(group, has_aux=True)(changing)
            total, reports = total + loss, reports | more
            gradients = optax.tree.add(gradients, gradient) if gradients else gradient
        assert gradients is not None  # every stage has an objective
        return (total, _gathered(reports)), gradients

    @property
    def _groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of objectives whose gradients are computed together."""
        if self._stage.optim.accumulate > 1:  # a part at a time, which bounds memory by itself
            return (tuple(self.objectives),)
        alone = [(name,) for name, x in self.objectives.items() if x.own_pass]
        together = tuple(name for name, x in self.objectives.items() if not x.own_pass)
        return (together, *alone) if together else tuple(alone)

    def _sum(
        self,
        names: tuple[str, ...],
        params: Params,
        state: TrainState,
        batch: Batch,
        seen: dict[str, Features],
        features: Features | None = None,
    ) -> tuple[Array, tuple[Features, Reports]]:
        """The weighted sum of some objectives; the towers' output, and what each reports.

        Args:
          names: of the objectives.
          params: of the student and of heads.
          state: the state before the step.
          batch: the global batch.
          seen: the teacher's output so far in this step, which is added to.
          features: the towers' output, where it is known.
        """
        show = functools.partial(self._view, params, state)
        chosen = {name: self.objectives[name] for name in names}
        student = nnx.merge(self._graphdef, model_params(params))
        parts = self._stage.optim.accumulate
        if parts == 1:
            features = features or self._encode(student, batch)
            reports = self._run(chosen, params, show(features, batch, seen))
        else:
            local = {k: x for k, x in chosen.items() if not x.across_examples}
            across = {k: x for k, x in chosen.items() if x.across_examples}
            features, reports = self._accumulated(student, params, show, local, batch, parts)
            reports |= self._run(across, params, show(features, None, {}))
        loss = jnp.asarray(sum(x.weight * reports[k][0] for k, x in chosen.items()))
        return loss, (features, reports)

    def _accumulated(
        self,
        student: SigLIP2,
        params: Params,
        show: Any,
        local: Mapping[str, Objective],
        batch: Batch,
        parts: int,
    ) -> tuple[Features, dict[str, Any]]:
        """Embeddings of the whole batch, and mean losses within examples, a part at a time.

        The backward pass computes each part again from its inputs, so that only one part's
        activations exist at a time while losses across examples still see the whole batch
        (BASIC, arXiv 2111.10050, section 4; GradCache, arXiv 2101.06983).
        """

        @jax.checkpoint
        def run_part(index: Array, part: Batch) -> tuple[Array, Any]:
            features = self._encode(student, part)
            reports = self._run(local, params, show(features, part, {}, index))
            return index + 1, (dataclasses.replace(features, tokens=None, valid=None), reports)

        split = jax.tree.map(lambda x: split_batch(x, parts), batch)
        _, (features, reports) = jax.lax.scan(run_part, jnp.int32(0), split)
        return jax.tree.map(join_batch, features), jax.tree.map(lambda x: x.mean(0), reports)

    def _encode(self, student: SigLIP2, batch: Batch) -> Features:
        """The towers' output; without texts where no objective reads them."""
        if "text" in self.towers:
            return student.encode(batch.image, batch.text)
        return student.encode_image(batch.image)

    def _run(self, objectives: Mapping[str, Objective], params: Params, view: Any) -> Reports:
        """Loss, report and buffers of each objective."""
        reports: Reports = {}
        for name, objective in objectives.items():
            head = self._heads.merge(name, params)
            try:
                loss, report = objective.loss(head, view(name))
            except Exception as error:
                error.add_note(f"in the loss of the objective {name!r}")
                raise
            reports[name] = (loss, report, buffers_of(head))
        return reports

    def _view(
        self,
        params: Params,
        state: TrainState,
        features: Features,
        batch: Batch | None,
        seen: dict[str, Features],
        part: Array | int = 0,
    ):
        """Makes an objective's view, by its name (which, with the part, picks its randomness)."""
        student = nnx.merge(self._graphdef, model_params(params))
        constants = state.ema_params, state.params, features
        ema_params, latest, resting = jax.lax.stop_gradient(constants)
        key = jax.random.fold_in(jax.random.key(self._stage.seed), state.step)
        key = jax.random.fold_in(key, part)

        def view(name: str) -> View:
            teacher, objective = None, self.objectives[name]
            if ema_params is not None and objective.has_teacher:
                model = self._average.model(ema_params, latest)
                teacher = Teacher(model, self._heads.merge(name, ema_params), batch, seen)
            shown = resting if objective.own_pass else features
            return View(student, teacher, shown, batch, fold_name(key, name), state.step)

        return view


def _gathered(reports: Reports) -> tuple[Metrics, Params]:
    """Metrics by objective and name, and new buffers of the heads."""
    metrics = {f"loss/{name}": value for name, (value, _, _) in reports.items()}
    for name, (_, report, _) in reports.items():
        metrics |= {f"{name}/{key}": value for key, value in report.items()}
    return metrics, {HEADS: {name: buffers for name, (_, _, buffers) in reports.items()}}
