"""Runs that were never trained: small configs, states of random numbers, workdirs of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from siglip2_jax.checkpoints.orbax import describe
from siglip2_jax.config import Checkpoints, Data, Optim, Stage, TrainConfig, to_json
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.siglip2 import Params, flatten, unflatten
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import device_put_global
from siglip2_jax.train.checkpoint import RunCheckpoints, by_path
from siglip2_jax.train.stage_steps import stage_steps
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.state import TrainState, place
from siglip2_jax.train.step import Program

TOWER = {"depth": 2, "mlp_dim": 32, "num_heads": 2}
SMALL = ModelConfig(
    vision=VisionConfig(**TOWER, width=24, patch_size=16, grid=16, image_size=None),
    text=TextConfig(**TOWER, width=16, vocab_size=1024, embed_dim=24),
)


@dataclasses.dataclass(frozen=True)
class WithHead(Objective):
    """A loss of nothing, with a head of its own."""

    weight: float = 1.0

    def head(self, model, compute, *, rngs):
        return nnx.Linear(model.vision.width, 3, rngs=rngs)

    def loss(self, head, view):
        return jnp.float32(0), {}


HEADS = {"sigmoid": Sigmoid(), "colour": WithHead()}


def stage(name: str = "main", steps: int = 10, **fields) -> Stage:
    """A stage that reads nothing that exists."""
    defaults = {"objectives": {"sigmoid": Sigmoid()}, "optim": Optim(ema=0.9), "batch_size": 8}
    data = Data(source=Folder("nowhere"))
    return Stage(name=name, data=data, steps=steps, **(defaults | fields))


def run(*stages: Stage, model: ModelConfig = SMALL, **fields) -> TrainConfig:
    """A run of these stages."""
    return TrainConfig(model=model, stages=stages, tokenizer=str(TOKENIZER), **fields)


class Sevens(Program):
    """A stage whose fresh parameters are all 7, which takes no time to compile."""

    def init_params(self, key: Array) -> Params:
        """Split as the real ones are."""
        return place(unflatten({path: jnp.full(x.shape, 7.0) for path, x in self.shapes.items()}))


def random_state(program: Program, mesh: Mesh, step: int) -> TrainState:
    """Other numbers in every array and for every step; counts are the step's number."""
    like = abstract_state(program, mesh)
    leaves = []
    for i, x in enumerate(by_path(like).values()):
        rng = np.random.default_rng((step, i))
        value = rng.standard_normal(x.shape, np.float32) if x.dtype != np.int32 else step
        leaves.append(device_put_global(np.asarray(value, x.dtype), x.sharding))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def save_run(
    workdir: Path,
    config: TrainConfig,
    steps: list[int],
    mesh: Mesh,
    params: Mapping[str, np.ndarray] | None = None,
    **settings,
) -> dict[int, TrainState]:
    """Writes what a run leaves behind, and returns the states it saved.

    Args:
      workdir: of the run.
      config: of the run.
      steps: that it saves.
      mesh: where its states live.
      params: parameters by path that states have in place of random numbers.
      settings: of its checkpoints.
    """
    Tokenizer.load(TOKENIZER).save(workdir)
    run = [list(span) for span in stage_steps(config)]
    kept = {"every": 1, "keep_last": len(steps)} | settings
    checkpoints, states = RunCheckpoints(workdir, Checkpoints(**kept)), {}
    for step in steps:
        stage = next(stage for stage in config.resolved if step <= stage.end)
        states[step] = state = random_state(Sevens(stage), mesh, step)
        leaves = flatten(state.params)
        placed = {k: device_put_global(x, leaves[k].sharding) for k, x in (params or {}).items()}
        states[step] = dataclasses.replace(state, params=unflatten(leaves | placed))
        record = describe(stage.model, config.preprocessing)
        record |= {"step": step, "stage": stage.name, "stages": run}
        record |= {"position": step * stage.batch_size, "bad_examples": 0}
        record["config"] = to_json(config)
        checkpoints.save(states[step], step, record)
    checkpoints.close()
    return states


def numbers(tree) -> dict[str, np.ndarray]:
    """Every array of a state, on the host."""
    return {path: np.asarray(x) for path, x in by_path(tree).items()}
