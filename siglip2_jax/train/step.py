"""One stage as a program: its parameters, and the step that changes them.

`jax.jit(program.step)` is the whole of training; it runs alike without a mesh, on one host and on
many slices. The step knows no objective by name.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

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
from siglip2_jax.sharding import join_batch, split_batch
from siglip2_jax.train.adapters import Pairs
from siglip2_jax.train.average import Average
from siglip2_jax.train.heads import Heads
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.losses import Losses, Metrics
from siglip2_jax.train.optim import learning_rate, make_optimizer, trainable
from siglip2_jax.train.state import TrainState, model_params, place
from siglip2_jax.types import Batch


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
      losses: their weighted sum, and what the objectives report.
    """

    def __init__(self, stage: ResolvedStage):
        self.stage = stage
        self.model: ModelConfig = stage.model
        self.selector = None if stage.curation is None else _selector(stage, stage.curation)
        self.objectives = {name: x for name, x in stage.objectives.items() if x.weight}
        self._graphdef, model = abstract_model(self.model, stage.compute)
        self._heads = Heads(self.objectives, self.model, stage.compute)
        model = flatten(model)
        self.pairs = Pairs(stage.adapters, model)
        self.shapes = model | self._heads.shapes | self.pairs.shapes
        constants = self._heads.buffers | self.pairs.constants
        learnable = [path for path in self.shapes if path not in constants]
        resting = model if stage.adapters else ()
        self.trainable = tuple(trainable(stage.optim, learnable, resting))
        self.pairs.check(self.trainable)
        self.average = Average(stage, self.objectives, self.shapes)
        self.losses = Losses(stage, self.objectives, self._graphdef, self._heads, self.average)
        self._flops: dict[tuple[int, int], int] = {}
        self._optimizer = make_optimizer(stage.optim, stage.num_steps, self.trainable)

    def init_params(self, key: Array) -> Params:
        """Fresh parameters, split over the mesh by rule; to be jitted."""
        rngs = nnx.Rngs(jax.random.fold_in(key, 0))
        params = nnx.to_pure_dict(nnx.state(SigLIP2(self.model, rngs=rngs)))
        heads = self._heads.init(jax.random.fold_in(key, 1))
        pairs = self.pairs.init(jax.random.fold_in(key, 2 + self.stage.index))
        return place(params | heads | unflatten(pairs))

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
        (loss, (metrics, buffers)), gradients = self.losses.differentiate(
            changing, flat, state, batch
        )
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, changing)
        buffers = flatten(place(buffers))
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
        once = training_flops(self.model, patches, towers - learning, towers - self.losses.towers)
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
