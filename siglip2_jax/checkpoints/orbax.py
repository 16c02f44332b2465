"""Our own checkpoints: `model.json`, an Orbax tree in `params/`, and `tokenizer.model`.

The JSON holds the sizes and the data conventions, so that a checkpoint needs no other file to be
used. Orbax saves a tree in parts, so that writing needs no more memory than the largest tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax.checkpoints.arrays import (
    DamagedTree,
    describe_arrays,
    list_arrays,
    read_array,
)
from siglip2_jax.checkpoints.checkpoint import Preprocessing, param_shapes
from siglip2_jax.checkpoints.huggingface_config import read_json
from siglip2_jax.checkpoints.table import (
    ConversionError,
    Lazy,
    Progress,
    Rule,
    counted,
    to_ours,
    to_theirs,
)
from siglip2_jax.errors import reason_of
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import unflatten

MODEL, PARAMS, STATE = "model.json", "params", "state"  # the last one is what Orbax adds
VERSION = 1
PART = 256 * 2**20  # bytes; every part costs files and time, so that small tensors share one


def read(directory: epath.Path) -> tuple[ModelConfig, dict[str, Lazy], Preprocessing]:
    """Sizes, parameters and data conventions of a checkpoint directory.

    Raises:
      ConversionError: the files are damaged or of a later version, or contradict each other.
    """
    config, preprocessing = parse(read_json(directory / MODEL), str(directory))
    step = directory / PARAMS
    try:
        shapes = describe_arrays(step / STATE, list_arrays(step, STATE))
    except (OSError, DamagedTree) as error:
        problem = f"{PARAMS}/ is missing or damaged ({_in_short(error)})"
        raise ConversionError([problem], str(directory)) from error
    tensors = {
        path: Lazy(shape, dtype, functools.partial(_read_leaf, step / STATE, path))
        for path, (shape, dtype) in shapes.items()
    }
    return config, named_as_ours(config, tensors), preprocessing


def write(
    directory: epath.Path,
    config: ModelConfig,
    params: Mapping[str, Lazy],
    preprocessing: Preprocessing,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes all but the tokenizer into an existing directory.

    Args:
      directory: where the files go.
      config: sizes of the model.
      params: every parameter by path.
      preprocessing: how its inputs are prepared.
      progress: called after every tensor.
    """
    from orbax.checkpoint import v1 as ocp

    (directory / MODEL).write_text(json.dumps(describe(config, preprocessing), indent=2))
    tensors = to_theirs(_rules(params), params)
    for part in _parts(counted(tensors, len(params), progress)):
        ocp.partial.save(directory / PARAMS, unflatten(part))
    ocp.partial.finalize(directory / PARAMS)


def describe(config: ModelConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    """Describes a checkpoint as JSON; `parse` is the inverse."""
    return {
        "version": VERSION,
        "model": config.to_json(),
        "preprocessing": dataclasses.asdict(preprocessing),
    }


def parse(data: Mapping[str, Any], subject: str) -> tuple[ModelConfig, Preprocessing]:
    """Sizes and data conventions of a checkpoint, from the contents of its `model.json`.

    Args:
      data: what `describe` gave.
      subject: the checkpoint, for errors.

    Raises:
      ConversionError: the data is damaged or of a later version.
    """
    if data.get("version") != VERSION:
        problem = f"{MODEL} has version {data.get('version')!r}, this release reads {VERSION}"
        raise ConversionError([problem], subject)
    try:
        return ModelConfig.from_json(data["model"]), Preprocessing(**data["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError([f"{MODEL} is damaged ({error})"], subject) from error


def named_as_ours(config: ModelConfig, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The tensors, checked to be exactly the parameters of a model of these sizes.

    Raises:
      ConversionError: some are missing, unknown or of another shape.
    """
    shapes = param_shapes(config)
    return to_ours(_rules(shapes), shapes, tensors)


def _rules(paths: Iterable[str]) -> list[Rule]:
    """The table of the format: our own names and shapes."""
    return [Rule((path,), path) for path in paths]


def _parts(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Tensors in groups that reach `PART` bytes."""
    part: dict[str, np.ndarray] = {}
    for path, tensor in tensors:
        part[path] = tensor
        if sum(value.nbytes for value in part.values()) >= PART:
            yield part
            part = {}
    if part:
        yield part


def _read_leaf(tree: epath.Path, path: str) -> np.ndarray:
    """One array of a tree; the others stay on disk."""
    try:
        return read_array(tree, path)
    except (OSError, DamagedTree) as error:
        problem = f"{path} is damaged ({_in_short(error)})"
        raise ConversionError([problem], str(tree.parent.parent)) from error


def _in_short(error: Exception) -> str:
    """The beginning of what TensorStore says at length, on one line."""
    return f"{reason_of(error):.200}"
