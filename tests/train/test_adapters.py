"""Low-rank adapters in a step: what learns, on every mesh, and that merged is what was trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from models.builders import TINY
from train.test_step import batches, config
from xla import QUICK

from siglip2_jax.config import Adapters, Group
from siglip2_jax.models.layers import Compute
from siglip2_jax.models.low_rank import is_pair
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch
from siglip2_jax.testing import random_params
from siglip2_jax.train.step import Program

EVERYWHERE = Adapters(pattern=".*", rank=2, alpha=3.0)
LOGITS = (Group(pattern="t|b", lr_scale=10.0),)


def program(adapters=(EVERYWHERE,), compute=Compute(), **optim) -> Program:
    run = config(compute=compute, **optim)
    (stage,) = run.stages
    stage = dataclasses.replace(stage, adapters=adapters)
    return Program(dataclasses.replace(run, stages=(stage,)).resolved[0])


def start(program: Program) -> dict:
    """The random model with fresh adapters."""
    params = {path: np.asarray(x) for path, x in flatten(random_params(TINY)).items()}
    pairs = jax.device_get(program.pairs.init(jax.random.key(0)))
    return params | pairs


@functools.cache
def run(shape=None, **fields) -> list[dict]:
    """Parameters before the first of three updates and after each."""
    made = program(**fields)
    params = start(made)
    if shape is None:
        return _run(made, params, lambda batch: jax.tree.map(jnp.asarray, batch))
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, made.shapes)
        params = {path: device_put_global(x, shardings[path]) for path, x in params.items()}
        return _run(made, params, lambda batch: put_batch(batch, mesh))


def _run(made: Program, params: dict, place) -> list[dict]:
    state = jax.jit(made.init_state)(unflatten(params))
    step = jax.jit(made.step, compiler_options=QUICK)
    history = [host(state.params)]
    for batch in batches():
        state, _ = step(state, place(batch))
        history.append(host(state.params))
    return history


def host(params) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in flatten(params).items()}


def test_smoke():
    h = run()
    print([p for p in h[0] if (h[0][p] != h[-1][p]).any()])
    print([p for p in h[0] if is_pair(p) and (h[0][p] == h[-1][p]).all()])
