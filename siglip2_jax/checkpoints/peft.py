"""Adapters in the layout of Hugging Face's peft: low-rank pairs alone, without the model.

`adapter_model.safetensors` has two matrices for each adapted module of transformers' model, and
what `t` and `b` have become; `adapter_config.json` says which modules they are and by which factor
their product counts. Modules are named as our Hugging Face export names them.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from siglip2_jax.checkpoints import run_layout, safetensors_file
from siglip2_jax.checkpoints.huggingface import rules
from siglip2_jax.checkpoints.huggingface_config import read_json
from siglip2_jax.checkpoints.orbax import parse
from siglip2_jax.checkpoints.source import resolve
from siglip2_jax.checkpoints.table import CONV_OIHW, DENSE, ConversionError, Lazy, Rule
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.low_rank import split_pairs
from siglip2_jax.outputs import staged

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of modules within peft's wrapper
LOGITS = ("t", "b")
NOT_LINEAR = re.compile(r"vision/pool/attn/.*")  # one nn.MultiheadAttention in transformers
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others change the base, too


class Low(NamedTuple):
    """The pair of one module: what is added to its weight is `scale * b @ a`."""

    a: Lazy
    b: Lazy
    scale: float


def write_adapter(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    stage: str | None = None,
    overwrite: bool = False,
) -> int:
    """Writes the adapters of a run's checkpoint; all files appear at once, or none.

    Args:
      source: the run's workdir or one of its checkpoints.
      path: a local directory that does not exist yet, or is empty.
      stage: as for `read`.
      overwrite: replace what is at `path`.

    Returns:
      The number of tensors.

    Raises:
      SourceError: the source does not exist.
      FileExistsError: there is something at `path`.
      ConversionError: the checkpoint is damaged, or has trained what an adapter cannot hold.
    """
    saved = run_layout.find(resolve(source), stage)
    change = run_layout.read_change(saved) if saved else {}
    others, pairs = split_pairs(change)
    if saved is None or not pairs:
        problem = "it holds no adapters; train some, with `siglip2 train finetune_lora`"
        raise ConversionError([problem], os.fspath(source))
    record = run_layout.read_record(saved)
    config, _ = parse(record, str(saved.step))
    table = {path: rule for rule in rules(config.native_resolution) for path in rule.ours}
    linear = {path for path in table if not NOT_LINEAR.fullmatch(path)}
    _check_trained(others.keys() - set(LOGITS), pairs.keys() - linear, str(saved.step))
    tensors, ranks, alphas = {}, {}, {}
    for kernel, pair in pairs.items():
        rule = table[kernel]
        layers = {name: pair[name].read() for name in ("a", "b")}
        factor, rank = float(pair["scale"].read()), layers["a"].shape[-1]
        for i, name in enumerate(rule.names(pair["a"].shape)):
            module = name.removesuffix(".weight")
            a, b = (x[i] if rule.layered else x for x in layers.values())
            tensors |= _theirs(rule, module, a, b)
            ranks[module], alphas[module] = rank, float(np.float32(factor * rank))
    for path_ in LOGITS:
        rule = table[path_]
        tensors[PREFIX + rule.theirs] = rule.transform.to_theirs(others[path_].read())
    settings = _settings(ranks, alphas, _base(record))
    with staged(path, overwrite) as directory:
        directory.mkdir()
        (directory / CONFIG).write_text(json.dumps(settings, indent=2))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        safetensors_file.write(directory / WEIGHTS, shapes, tensors.items())
    return len(tensors)


def merged(
    source: str | os.PathLike[str], config: ModelConfig, params: Mapping[str, Lazy]
) -> dict[str, Lazy]:
    """Parameters with the changes of an adapter; reads none of them yet.

    Args:
      source: directory of the adapter, or its Hugging Face repository.
      config: sizes of the model.
      params: its parameters, by path.

    Raises:
      SourceError: there is no such adapter.
      ConversionError: it is damaged, of another kind, or belongs to another model.
    """
    directory = resolve(source)
    subject = str(directory)
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).exists()]
    if missing:
        raise ConversionError([f"it is no adapter: {missing[0]} is missing"], subject)
    settings = read_json(directory / CONFIG)
    _check_kind(settings, subject)
    tensors = safetensors_file.read(directory / WEIGHTS)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    changed, problems = {}, []
    for rule in rules(config.native_resolution):
        path, lows = rule.ours[0], {}
        if path in LOGITS and (value := tensors.pop(rule.theirs, None)):
            changed[path] = Lazy((), value.dtype, lambda value=value: value.read().reshape(()))
        for i, name in enumerate(rule.names(params[path].shape)):
            module = name.removesuffix(".weight")
            a, b = (tensors.pop(f"{module}.lora_{x}.weight", None) for x in "AB")
            if a is None or b is None or len(rule.ours) > 1:
                continue
            shape = params[path].shape[1:] if rule.layered else params[path].shape
            if (b.shape[0], *a.shape[1:]) != rule.transform.shape(shape):
                problems.append(f"{module} has pairs of {a.shape} and {b.shape}, of another model")
            lows[i] = Low(a, b, _scale(settings, module, a.shape[0]))
        if lows:
            changed[path] = _changed(rule, params[path], lows)
    problems += [f"{name} is not a tensor of an adapter for this model" for name in tensors]
    if problems or not changed:
        raise ConversionError(problems or [f"{WEIGHTS} holds nothing"], subject)
    return {**params, **changed}


def _changed(rule: Rule, kernel: Lazy, lows: Mapping[int, Low]) -> Lazy:
    """A kernel of ours with what its modules' pairs add to it."""

    def read() -> np.ndarray:
        value = np.array(kernel.read(), np.float32)
        for i, low in lows.items():
            layer = value[i] if rule.layered else value
            a, b = (np.asarray(x.read(), np.float32) for x in (low.a, low.b))
            product = np.tensordot(b.reshape(b.shape[:2]), a, 1) * np.float32(low.scale)
            layer += rule.transform.to_ours(product, layer.shape)
        return value

    return Lazy(kernel.shape, kernel.dtype, read)


def _theirs(rule: Rule, module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """The two tensors of a module."""
    convolves = rule.transform is CONV_OIHW
    a = (CONV_OIHW if convolves else DENSE).to_theirs(a)
    b = b.T.reshape(*b.T.shape, 1, 1) if convolves else b.T
    return {
        f"{PREFIX}{module}.lora_A.weight": a,
        f"{PREFIX}{module}.lora_B.weight": b,
    }


def _settings(
    ranks: Mapping[str, int], alphas: Mapping[str, float], base: str | None
) -> dict[str, Any]:
    """Contents of the configuration, which names what differs from the most common."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: x for module, x in alphas.items() if x != alpha},
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of a module's product, as peft works it out."""
    pattern = settings.get("alpha_pattern") or {}
    matching = (x for key, x in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(matching, settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _base(record: Mapping[str, Any]) -> str | None:
    """The source that the stage of a checkpoint started from, if it was a stored model."""
    stages = record["config"]["stages"]
    start = next(stage["start"] for stage in stages if stage["name"] == record["stage"])
    return start.get("source")


def _check_trained(others: Iterable[str], kernels: Iterable[str], subject: str) -> None:
    """Checks that an adapter can hold what was trained.

    Args:
      others: parameters other than `t` and `b` that were trained.
      kernels: those with a pair that are no linear layer of transformers' model.
      subject: the checkpoint, for the error.
    """
    problems = [f"{path} was trained, too, which an adapter cannot hold" for path in sorted(others)]
    problems += [
        f"{kernel} has an adapter, but is no layer of its own in transformers, as peft needs"
        for kernel in sorted(kernels)
    ]
    if problems:
        advice = "write the merged model, with `--to hf`, or train without"
        raise ConversionError([f"{problem}; {advice}" for problem in problems], subject)


def _check_kind(settings: Mapping[str, Any], subject: str) -> None:
    """Checks that a configuration says all that its adapter does."""
    if settings.get("peft_type") != "LORA" or "lora_alpha" not in settings:
        problem = f"{CONFIG} is of the type {settings.get('peft_type')}, expected LORA"
        raise ConversionError([problem], subject)
    start = settings.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        problem = (
            f"it began as {start!r}, which changes the weights of its base, too; save it with "
            "path_initial_model_for_weight_conversion, as peft describes"
        )
        raise ConversionError([problem], subject)
