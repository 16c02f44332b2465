"""Start of a stage: from nothing, from released weights, or from an earlier checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from siglip2_jax import checkpoints
from siglip2_jax.checkpoints.resize import resize_param
from siglip2_jax.checkpoints.run_layout import AVERAGE, OPTIMIZER, PARAMS
from siglip2_jax.checkpoints.table import Lazy
from siglip2_jax.config import Continue, Pretrained, TrainConfig
from siglip2_jax.models.low_rank import is_pair, kernel_of, merge
from siglip2_jax.models.siglip2 import Params, flatten, unflatten
from siglip2_jax.sharding import device_put_global, param_shardings, unsplit_share
from siglip2_jax.train.branch import (
    Shapes,
    check_shapes,
    check_teacher,
    check_towers,
    open_run,
    whole_step,
)
from siglip2_jax.train.checkpoint import RunCheckpoints, by_path, on_mesh
from siglip2_jax.train.optim import begin_stage
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program

log = logging.getLogger(__name__)


def warn_if_unsplit(program: Program, mesh: Mesh) -> None:
    """Warns where the mesh does not divide the widths of a model: devices hold it whole."""
    fsdp, share = mesh.shape["fsdp"], unsplit_share(mesh, program.shapes)
    if fsdp > 1 and share > 0.1:
        log.warning(
            "%.0f %% of the parameters are whole on every device, as %d does not divide their "
            "sizes; a larger replica makes fsdp smaller: try replica=%d",
            100 * share,
            fsdp,
            2 * mesh.shape["replica"],
        )


def abstract_state(program: Program, mesh: Mesh) -> TrainState:
    """Shapes and shardings of a stage's state; computes nothing."""
    teacher = None
    if program.selector is not None:
        shardings = param_shardings(mesh, program.selector.shapes)
        shapes = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path])
            for path, x in program.selector.shapes.items()
        }
        teacher = unflatten(shapes)
    with jax.set_mesh(mesh):  # the key too is abstract: the devices may not be there
        params = jax.eval_shape(lambda: program.init_params(jax.random.key(0)))
        return on_mesh(jax.eval_shape(program.init_state, params, teacher), mesh)


def initialize_stage(
    program: Program, config: TrainConfig, mesh: Mesh, workdir: str | os.PathLike[str]
) -> TrainState:
    """The state at a stage's first step.

    Args:
      program: the stage.
      config: the run it belongs to.
      mesh: where the state lives.
      workdir: the run's own workdir, for stages that continue one of its stages.

    Raises:
      ValueError: what the stage starts from is missing or does not fit.
      OSError: the same.
    """
    start = program.stage.start
    with jax.set_mesh(mesh):
        params = flatten(jax.jit(program.init_params)(jax.random.key(config.seed)))
        source = None
        if isinstance(start, Pretrained):
            params |= _pretrained(program.shapes, start, mesh)
        elif isinstance(start, Continue):
            checkpoints = open_run(start.workdir or workdir)
            source = checkpoints, whole_step(start, program, config, checkpoints)
            params |= _continued(program.shapes, *source, mesh)
        state = jax.jit(program.init_state)(unflatten(params))
        moments, average = state.optimizer, state.ema_params
        if source and isinstance(start, Continue):
            if start.optimizer:
                moments = _moments(state, program.pairs.shapes, *source)
            if start.average and average is not None:
                shapes = {path: program.shapes[path] for path in program.average.paths}
                saved = _continued(shapes, *source, mesh, AVERAGE)
                average = unflatten(flatten(average) | saved)
        step = jax.device_put(np.int32(program.stage.first_step), state.step.sharding)
    teacher = load_teacher_params(program, config, mesh, workdir)
    return dataclasses.replace(
        state, optimizer=moments, ema_params=average, step=step, teacher_params=teacher
    )


def load_teacher_params(
    program: Program, config: TrainConfig, mesh: Mesh, workdir: str | os.PathLike[str]
) -> Params | None:
    """Parameters of the teacher that curates a stage's batches, or None.

    Arguments are those of `initialize_stage`.

    Raises:
      ValueError: it is missing, or lacks parameters.
      OSError: the same.
    """
    curation = program.stage.curation
    if program.selector is None or curation is None:
        return None
    teacher, shapes = curation.teacher, program.selector.shapes
    with jax.set_mesh(mesh):
        if isinstance(teacher, Pretrained):
            params = _pretrained(shapes, teacher, mesh)
        else:
            checkpoints = open_run(teacher.workdir or workdir)
            step = whole_step(teacher, program, config, checkpoints)
            params = _continued(shapes, checkpoints, step, mesh)
    check_teacher(program.stage.name, shapes, params)
    return unflatten({path: params[path] for path in shapes})


def _pretrained(shapes: Shapes, start: Pretrained, mesh: Mesh) -> dict[str, jax.Array]:
    """Parameters of a checkpoint in any format, resized where the stage needs it."""
    shardings = param_shardings(mesh, shapes)
    params = {}
    for path, tensor in stored_params(start, shapes).items():  # one at a time, never all twice
        value = _fitted(path, tensor.read(), shapes[path].shape)
        value = value + np.float32(start.bias_shift) if path == "b" else value
        params[path] = device_put_global(np.asarray(value), shardings[path])
    return params


def stored_params(start: Pretrained, shapes: Shapes) -> dict[str, Lazy]:
    """Parameters that a stage takes of a checkpoint in any format; reads none of them.

    Raises:
      ValueError: there are none, or they do not fit the stage.
      OSError: there is no such checkpoint.
    """
    tensors = checkpoints.read(start.source, adapter=start.adapter).params
    paths = [path for path in tensors if any(re.fullmatch(p, path) for p in start.parts)]
    if not paths:
        raise ValueError(
            f"Pretrained.parts {start.parts} match none of the parameters of {start.source}; "
            f"patterns match whole paths such as {next(iter(tensors))!r}"
        )
    if start.bias_shift and "b" not in paths:
        raise ValueError(
            f"Pretrained.bias_shift is {start.bias_shift}, but parts {start.parts} leave b fresh; "
            'add "b" to parts, or leave bias_shift at 0'
        )
    params = {path: tensors[path] for path in paths if path in shapes}
    check_shapes(params, shapes, start.source)
    return params


def _continued(
    shapes: Shapes, checkpoints: RunCheckpoints, step: int, mesh: Mesh, tree: str = PARAMS
) -> dict[str, jax.Array]:
    """Parameters of a run's checkpoint, or their average (none where it holds no average).

    Heads that it lacks stay fresh, others that it has go; its adapters are merged.
    """
    saved = checkpoints.shapes(step, tree)
    source = f"{checkpoints.directory / str(step)}"
    if tree == PARAMS:
        check_towers(saved, shapes, source)
    check_shapes(saved, shapes, source)
    shardings, whole = param_shardings(mesh, shapes), NamedSharding(mesh, jax.P())
    same, resized = {}, {}
    for path, leaf in shapes.items():
        if path not in saved or is_pair(path):
            continue
        fits = saved[path].shape == leaf.shape
        sharding = shardings[path] if fits else whole
        like = jax.ShapeDtypeStruct(saved[path].shape, saved[path].dtype, sharding=sharding)
        (same if fits else resized)[path] = like
    pairs = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
        for path, x in saved.items()
        if is_pair(path) and kernel_of(path) in same | resized
    }
    params = checkpoints.read(step, tree, same | resized | pairs) if same or resized else {}
    params = flatten(merge(unflatten(params)))
    for path in resized:
        log.info("%s is resized from %s", path, resized[path].shape)
        value = _fitted(path, np.asarray(params[path]), shapes[path].shape)
        params[path] = device_put_global(value, shardings[path])
    return params


def _moments(state: TrainState, pairs: Iterable[str], checkpoints: RunCheckpoints, step: int):
    """The optimizer's state, continued where the parameter is the same, fresh elsewhere."""
    fresh = by_path(state.optimizer)
    begun = tuple(pairs)  # adapters of the stage, also where those before had the same shape
    saved = checkpoints.shapes(step, OPTIMIZER)
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for path, x in fresh.items()
        if path in saved
        and not path.endswith(begun)
        and saved[path].shape == x.shape
        and saved[path].dtype == x.dtype
    }
    merged = fresh | (checkpoints.read(step, OPTIMIZER, like) if like else {})
    structure = jax.tree.structure(state.optimizer)
    return begin_stage(jax.tree.unflatten(structure, [merged[path] for path in fresh]))


def _fitted(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A stored parameter in the shape that the stage needs, which `check_shapes` has allowed."""
    return value if value.shape == shape else resize_param(path, value, shape)
