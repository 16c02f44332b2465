"""Checkpoints of a training run, read as models.

A run's workdir has `checkpoints/<step>/` with the trees `params/` and perhaps `average/`; the
record beside them says what the model is (`siglip2_jax.train.checkpoint` writes them). A source may
be the workdir (its latest step, of any stage or of one), a step, or one of the step's two trees.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from siglip2_jax.checkpoints import damage
from siglip2_jax.checkpoints.arrays import DamagedTree
from siglip2_jax.checkpoints.checkpoint import Preprocessing, TrainingRun
from siglip2_jax.checkpoints.orbax import named_as_ours, parse
from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.checkpoints.table import ConversionError, Lazy, finite
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.models.generate import abstract_decoder
from siglip2_jax.models.low_rank import is_pair, merge_pair, split_pairs
from siglip2_jax.models.siglip2 import flatten

FOLDER, PARAMS, AVERAGE, OPTIMIZER = "checkpoints", "params", "average", "optimizer"
HEADS = "heads"  # within a tree: what objectives have learned for themselves


class Saved(NamedTuple):
    """A model within a run.

    Attributes:
      workdir: of the run.
      step: directory of the checkpoint.
      tree: "params", or "average" for the moving average.
    """

    workdir: epath.Path
    step: epath.Path
    tree: str


def find(path: epath.Path, stage: str | None = None) -> Saved | None:
    """The model that a path names, the newest of a workdir; None outside of runs.

    Args:
      path: a workdir, a step, or one of the step's two trees.
      stage: only what this stage has saved; None takes any.

    Raises:
      ConversionError: there is no finished checkpoint, or none of the stage.
    """
    return next(iter(find_all(path, stage)), None)


def find_all(path: epath.Path, stage: str | None = None) -> list[Saved]:
    """Every model that `find` chooses from, the newest first."""
    path = absolute(path)
    if path.name in (PARAMS, AVERAGE) and _is_step(path.parent):
        models = [Saved(path.parent.parent.parent, path.parent, path.name)]
    elif _is_step(path):
        models = [Saved(path.parent.parent, path, PARAMS)]
    elif (path / FOLDER).is_dir():
        steps = [child for child in (path / FOLDER).iterdir() if _is_step(child)]
        steps.sort(key=lambda step: int(step.name), reverse=True)
        models = [Saved(path, step, PARAMS) for step in steps]
        if not steps:
            raise ConversionError([f"{FOLDER}/ holds no finished checkpoint yet"], str(path))
    else:
        models = []
    if stage is None:
        return models
    if not models:
        problem = f"only a run's checkpoints have stages; leave the stage {stage!r} out"
        raise ConversionError([problem], str(path))
    stages = [read_record(saved).get("stage") for saved in models]
    if stage not in stages:
        names = ", ".join(dict.fromkeys(str(name) for name in reversed(stages)))
        problem = f"it holds no checkpoint of stage {stage!r}; it holds some of {names}"
        raise ConversionError([problem], str(path))
    return [saved for saved, name in zip(models, stages, strict=True) if name == stage]


def read(saved: Saved) -> tuple[ModelConfig, dict[str, Lazy], Preprocessing]:
    """Sizes, parameters and data conventions; adapters are merged, heads of objectives left out.

    Raises:
      ConversionError: the checkpoint is damaged or of a later version, has no such tree, or
        averages a part of the model alone.
    """
    record, tensors = _open(saved)
    if saved.tree == AVERAGE and not any(path.startswith("text/") for path in tensors):
        held = "the vision tower" if any(x.startswith("vision/") for x in tensors) else "heads"
        problem = (
            f"{AVERAGE}/ holds {held} alone, which objectives learn from; load {PARAMS}/, or train "
            "with optim.ema_all=True for an average of the whole model"
        )
        raise ConversionError([problem], str(saved.step))
    config, preprocessing = parse(record, str(saved.step))
    tensors = {path: x for path, x in tensors.items() if not path.startswith(f"{HEADS}/")}
    plain, pairs = split_pairs(tensors)
    merged = {kernel: _merged(plain[kernel], pair) for kernel, pair in pairs.items()}
    return config, named_as_ours(config, plain | merged), preprocessing


def read_change(saved: Saved) -> dict[str, Lazy]:
    """Pairs of kernels, `t` and `b`, and all else that the stage of a checkpoint has trained.

    Raises:
      ConversionError: the checkpoint is damaged.
    """
    tensors = _open(saved)[1]
    moments = damage.read_shapes(saved.step, OPTIMIZER)
    return {
        path: tensor
        for path, tensor in tensors.items()
        if is_pair(path) or path in "tb" or any(key.endswith(f"/{path}") for key in moments)
    }


def read_record(saved: Saved) -> Mapping[str, Any]:
    """Reads the description of a checkpoint and its run, as `train.run.Run.save` wrote it.

    Raises:
      ConversionError: the checkpoint is damaged.
    """
    return damage.read_record(saved.step)


def read_run(saved: Saved) -> TrainingRun:
    """Reads how a checkpoint was trained.

    Raises:
      ConversionError: the checkpoint is damaged.
    """
    record = read_record(saved)
    stage, config = record.get("stage", ""), record.get("config", {})
    return TrainingRun(step=int(saved.step.name), stage=stage, config=config)


def read_decoders(saved: Saved) -> dict[str, tuple[DecoderConfig, dict[str, Lazy]]]:
    """Sizes and parameters of every captioning decoder among the heads, by the head's name.

    A head is a decoder if its arrays are; sizes follow from their shapes.

    Raises:
      ConversionError: the checkpoint is damaged.
    """
    heads: dict[str, dict[str, Lazy]] = {}
    for path, tensor in _open(saved)[1].items():
        tree, _, rest = path.partition("/")
        if tree == HEADS:
            name, _, parameter = rest.partition("/")
            heads.setdefault(name, {})[parameter] = finite(tensor, path, str(saved.step))
    decoders = {name: (_decoder_sizes(tensors), tensors) for name, tensors in heads.items()}
    return {name: (config, x) for name, (config, x) in decoders.items() if config is not None}


def _decoder_sizes(tensors: Mapping[str, Lazy]) -> DecoderConfig | None:
    """Sizes of the decoder with exactly these arrays, or None if there is none."""
    shapes = {path: tensor.shape for path, tensor in tensors.items()}
    try:
        depth, width, num_heads, _ = shapes["blocks/attn/query/kernel"]
        config = DecoderConfig(
            width=width,
            depth=depth,
            mlp_dim=shapes["blocks/mlp/fc1/kernel"][-1],
            num_heads=num_heads,
            vocab_size=shapes["out/kernel"][-1],
            length=shapes["pos/table"][0],
            memory_dim=shapes["blocks/cross/key/kernel"][1],
        )
    except (KeyError, IndexError, ValueError):
        return None
    expected = flatten(abstract_decoder(config)[1])
    return config if shapes == {path: x.shape for path, x in expected.items()} else None


def _merged(kernel: Lazy, pair: Mapping[str, Lazy]) -> Lazy:
    """A kernel with the change that its pair makes."""

    def read() -> np.ndarray:
        leaves = {name: leaf.read() for name, leaf in pair.items()}
        return np.asarray(merge_pair(kernel.read(), **leaves))

    return Lazy(kernel.shape, kernel.dtype, read)


def _open(saved: Saved) -> tuple[Mapping[str, Any], dict[str, Lazy]]:
    """Opens a tree of a checkpoint: its description, and all its arrays."""
    record = read_record(saved)
    tensors = {
        path: Lazy(shape, dtype, functools.partial(_read, saved, path, record))
        for path, (shape, dtype) in damage.read_shapes(saved.step, saved.tree).items()
    }
    return record, tensors


def _is_step(path: epath.Path) -> bool:
    if not (path.name.isdecimal() and path.parent.name == FOLDER and (path / PARAMS).is_dir()):
        return False
    # Buckets know no renaming: there Orbax writes this last, into the directory it has named.
    return "://" not in os.fspath(path) or (path / "commit_success.txt").exists()


def _read(saved: Saved, path: str, record: Mapping[str, Any]) -> np.ndarray:
    """One array of a tree, whole; the others stay on disk."""
    try:
        return damage.read_whole(saved.step, saved.tree, path, record)
    except DamagedTree as error:
        raise ConversionError([f"{path} cannot be read: {error}"], str(saved.step)) from error
