"""One stage as a program: its parameters, and the step that changes them.

`jax.jit(program.step)` is the whole of training; it runs alike without a mesh, on one host and on
many slices. The step knows no objective by name.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from siglip2_jax.checkpoints.run_layout import HEADS
from siglip2_jax.config import Curation, ResolvedStage
from siglip2_jax.curation.selector import BatchSelector
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import training_flops
from siglip2_jax.models.siglip2 import (
    Params,
    SigLIP2,
    abstract_model,
    flatten,
    unflatten,
)
from siglip2_jax.objectives.base import Buffer, Objective, Teacher, View
from siglip2_jax.sharding import join_batch, split_batch
from siglip2_jax.train.adapters import Pairs
from siglip2_jax.train.average import Average
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.optim import learning_rate, make_optimizer, trainable
from siglip2_jax.train.state import TrainState, model_params, place
from siglip2_jax.types import Batch, Features

Metrics = dict[str, Array]


class Program:
    """Compiled update of a state in one stage.

    Attributes:
      stage: the stage.
      objectives: its losses, those of weight 0 left out.
      model: sizes of the model in this stage.
      selector: selects examples of the super-batch; None where a stage trains on all.
      shapes: `jax.ShapeDtypeStruct` of every parameter, by path.
      pairs: the stage's low-rank adapters.
      trainable: paths of the parameters that the optimizer changes.
      average: the moving average of parameters.
      towers: names of those that an objective reads; the others do not run.
    """

    def __init__(self, stage: ResolvedStage):
        self.stage = stage
        self.model: ModelConfig = stage.model
        self.selector = None if stage.curation is None else _selector(stage, stage.curation)
        self.objectives = {name: x for name, x in stage.objectives.items() if x.weight}
        self._graphdef, model = abstract_model(self.model, stage.compute)
        heads = nnx.eval_shape(lambda: self._make_heads(jax.random.key(0)))
        self._heads = {name: nnx.split(head)[0] for name, head in heads.items()}
        buffers = flatten({HEADS: {name: _buffers(head) for name, head in heads.items()}})
        heads = {name: nnx.to_pure_dict(nnx.state(head)) for name, head in heads.items()}
        model = flatten(model)
        self.pairs = Pairs(stage.adapters, model)
        self.shapes = model | flatten({HEADS: heads}) | self.pairs.shapes
        constants = buffers.keys() | self.pairs.constants
        learnable = [path for path in self.shapes if path not in constants]
        resting = model if stage.adapters else ()
        self.trainable = tuple(trainable(stage.optim, learnable, resting))
        self.pairs.check(self.trainable)
        self.average = Average(stage, self.objectives, self.shapes)
        self.towers = {tower for x in self.objectives.values() for tower in x.towers}
        self._flops: dict[tuple[int, int], int] = {}
        self._optimizer = make_optimizer(stage.optim, stage.num_steps, self.trainable)

    def init_params(self, key: Array) -> Params:
        """Fresh parameters, split over the mesh by rule; to be jitted."""
        rngs = nnx.Rngs(jax.random.fold_in(key, 0))
        params = nnx.to_pure_dict(nnx.state(SigLIP2(self.model, rngs=rngs)))
        heads = self._make_heads(jax.random.fold_in(key, 1))
        if heads:
            params[HEADS] = {name: nnx.to_pure_dict(nnx.state(x)) for name, x in heads.items()}
        pairs = self.pairs.init(jax.random.fold_in(key, 2 + self.stage.index))
        return place(params | unflatten(pairs))

    def init_state(self, params: Params, teacher_params: Params | None = None) -> TrainState:
        """A state with fresh optimizer moments; to be jitted."""
        flat = flatten(params)
        return TrainState(
            params=params,
            optimizer=self._optimizer.init({path: flat[path] for path in self.trainable}),
            ema_params=self.average.start(flat),
            step=jnp.asarray(0, jnp.int32),
            teacher_params=teacher_params,
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update; to be jitted with the state donated.

        Args:
          state: the state before.
          batch: the global batch, images and texts in the same order; where a stage curates, the
            super-batch.

        Returns:
          The state after, and float32 scalars: `loss`, `loss/<objective>`, what objectives report
          as `<objective>/<name>`, `grad_norm` (before clipping) and `learning_rate`.
        """
        curation: Metrics = {}
        if self.selector is not None:
            student = nnx.merge(self._graphdef, model_params(state.params))
            key = jax.random.fold_in(jax.random.key(self.stage.seed), state.step)
            assert state.teacher_params is not None
            batch, curation = self.selector.choose(student, state.teacher_params, batch, key)
        flat = flatten(state.params)
        changing = {path: flat.pop(path) for path in self.trainable}

        def total(changing: dict[str, Array]) -> tuple[Array, tuple[Metrics, Params]]:
            return self._loss(unflatten(flat | changing), state, batch)

        (loss, (metrics, buffers)), gradients = jax.value_and_grad(total, has_aux=True)(changing)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, changing)
        buffers = flatten(place({HEADS: buffers}))
        flat |= buffers | cast(dict[str, Array], optax.apply_updates(changing, updates))
        rate = learning_rate(self.stage.optim, self.stage.num_steps)(
            state.step - self.stage.first_step
        )
        norm = optax.tree.norm(gradients)
        metrics |= {f"curation/{name}": value for name, value in curation.items()}
        metrics |= {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        state = dataclasses.replace(
            state,
            params=unflatten(flat),
            optimizer=optimizer,
            ema_params=self.average.update(state.ema_params, flat),
            step=state.step + 1,
        )
        return state, metrics

    def flops(self, budget: int, batch_size: int) -> int:
        """Analytic model FLOPs of one step.

        A tower that does not learn runs forward, one that no objective reads not at all.

        Args:
          budget: patches an image may have.
          batch_size: examples that the step reads.
        """
        shape = (budget, batch_size)
        if shape not in self._flops:
            self._flops[shape] = self._count_flops(*shape)
        return self._flops[shape]

    def _count_flops(self, budget: int, batch_size: int) -> int:
        changing = (*self.trainable, *self.pairs.kernels)
        learning = {path.split("/")[0] for path in changing}
        towers, patches = {"vision", "text"}, self.model.vision.num_patches or budget
        once = training_flops(self.model, patches, towers - learning, towers - self.towers)
        read, batch_size = batch_size, self.batch_size(batch_size)
        batch = abstract_batch(self.stage, budget, batch_size)
        objectives = sum(x.flops(self.model, batch) for x in self.objectives.values())
        curation = self.selector.flops(budget, read) if self.selector else 0
        return batch_size * once + objectives + curation

    def batch_size(self, read: int) -> int:
        """Examples that are trained on, out of those that a step reads."""
        return read if self.stage.curation is None else self.stage.curation.batch_size(read)

    def embed(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """Embeddings of a batch, images and texts, as many at a time as the step takes."""
        student = nnx.merge(self._graphdef, model_params(params))

        def embed_part(carry: None, part: Batch) -> tuple[None, tuple[Array, Array]]:
            features = student.encode(part.image, part.text)
            return None, (features.image, features.text)

        split = jax.tree.map(lambda x: split_batch(x, self.stage.optim.accumulate), batch)
        _, embeddings = jax.lax.scan(embed_part, None, split)
        return jax.tree.map(join_batch, embeddings)

    def _loss(
        self, params: Params, state: TrainState, batch: Batch
    ) -> tuple[Array, tuple[Metrics, Params]]:
        """The weighted sum of all objectives; what they report, and their heads' new buffers."""
        show = functools.partial(self._view, params, state)
        local = {k: x for k, x in self.objectives.items() if not x.across_examples}
        across = {k: x for k, x in self.objectives.items() if x.across_examples}
        student = nnx.merge(self._graphdef, model_params(params))
        parts = self.stage.optim.accumulate
        if parts == 1:
            features = self._encode(student, batch)
            reports = self._run(local | across, params, show(features, batch))
        else:
            features, reports = self._accumulated(student, params, show, local, batch, parts)
            reports |= self._run(across, params, show(features, None))
        loss = jnp.asarray(sum(x.weight * reports[k][0] for k, x in self.objectives.items()))
        metrics = {f"loss/{name}": value for name, (value, _, _) in reports.items()}
        for name, (_, report, _) in reports.items():
            metrics |= {f"{name}/{key}": value for key, value in report.items()}
        return loss, (metrics, {name: buffers for name, (_, _, buffers) in reports.items()})

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
            reports = self._run(local, params, show(features, part, index))
            return index + 1, (dataclasses.replace(features, tokens=None, valid=None), reports)

        split = jax.tree.map(lambda x: split_batch(x, parts), batch)
        _, (features, reports) = jax.lax.scan(run_part, jnp.int32(0), split)
        return jax.tree.map(join_batch, features), jax.tree.map(lambda x: x.mean(0), reports)

    def _encode(self, student: SigLIP2, batch: Batch) -> Features:
        """The towers' output; without texts where no objective reads them."""
        if "text" in self.towers:
            return student.encode(batch.image, batch.text)
        return student.encode_image(batch.image)

    def _run(self, objectives: Mapping[str, Objective], params: Params, view: Any) -> dict:
        """Loss, report and buffers of each objective."""
        reports = {}
        for name, objective in objectives.items():
            head = self._head(name, params)
            try:
                loss, report = objective.loss(head, view(name))
            except Exception as error:
                error.add_note(f"in the loss of the objective {name!r}")
                raise
            reports[name] = (loss, report, _buffers(head))
        return reports

    def _view(
        self,
        params: Params,
        state: TrainState,
        features: Features,
        batch: Batch | None,
        part: Array | int = 0,
    ):
        """Makes an objective's view, by its name (which, with the part, picks its randomness)."""
        student = nnx.merge(self._graphdef, model_params(params))
        ema_params, cache = jax.lax.stop_gradient(state.ema_params), {}
        key = jax.random.fold_in(jax.random.key(self.stage.seed), state.step)
        key = jax.random.fold_in(key, part)

        def view(name: str) -> View:
            teacher = None
            if ema_params is not None and self.objectives[name].has_teacher:
                model, head = self.average.model(ema_params), self._head(name, ema_params)
                teacher = Teacher(model, head, batch, cache)
            return View(student, teacher, features, batch, _fold_name(key, name), state.step)

        return view

    def _head(self, name: str, params: Params) -> nnx.Module | None:
        return nnx.merge(self._heads[name], params[HEADS][name]) if name in self._heads else None

    def _make_heads(self, key: Array) -> dict[str, nnx.Module]:
        """The modules of the objectives that have one."""
        compute = self.stage.compute
        made = {
            name: x.head(self.model, compute, rngs=nnx.Rngs(_fold_name(key, name)))
            for name, x in self.objectives.items()
        }
        return {name: head for name, head in made.items() if head is not None}


def _selector(stage: ResolvedStage, curation: Curation) -> BatchSelector:
    return BatchSelector(
        stage.model,
        curation.model or stage.model,
        stage.compute,
        stage=stage.name,
        batch_size=curation.batch_size,
        chunks=curation.chunks,
        pass_reference=stage.optim.accumulate == 1,
    )


def _fold_name(key: Array, name: str) -> Array:
    """The randomness of an objective, which does not depend on the others of its stage."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _buffers(head: nnx.Module | None) -> Params:
    """Running statistics of a head, by path."""
    return {} if head is None else nnx.to_pure_dict(nnx.state(head, Buffer))
