"""A model's sizes from its tensors: what must be there, and what must fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from siglip2_jax.checkpoints.table import ConversionError, Lazy, Shape
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig

SIGLIP1_VOCABULARIES = (32_000, 250_000)


def require_towers(tensors: Mapping[str, Lazy], prefixes: Mapping[str, str]) -> None:
    """Make sure that every tower has a tensor.

    Args:
      tensors: what a file holds.
      prefixes: of the names of each tower's tensors.

    Raises:
      ConversionError: a tower is missing; a model of one tower, or another model altogether.
    """
    names = ", ".join(sorted(tensors)[:3])
    problems = [
        f"there is no {tower} tower: no tensor is named {prefix}… (found {names}, …)"
        for tower, prefix in prefixes.items()
        if not any(name.startswith(prefix) for name in tensors)
    ]
    if problems:
        raise ConversionError(problems)


def require(tensors: Mapping[str, Lazy], ranks: Mapping[str, Shape]) -> None:
    """Make sure of the tensors that sizes are inferred from.

    Args:
      tensors: what a file holds.
      ranks: names of tensors, and the numbers of axes that each may have.

    Raises:
      ConversionError: some are missing, or have another number of axes.
    """
    problems = [f"{name} is missing" for name in ranks if name not in tensors]
    problems += [
        f"{name} has shape {tensors[name].shape}, expected {' or '.join(map(str, rank))} axes"
        for name, rank in ranks.items()
        if name in tensors and len(tensors[name].shape) not in rank
    ]
    if problems:
        raise ConversionError(problems)


def square_side(rows: int) -> int:
    """Side of a square grid of positions.

    Raises:
      ConversionError: the grid is not square.
    """
    side = math.isqrt(rows)
    if side * side != rows:
        raise ConversionError(
            [f"the image position table has {rows} rows, which is not a square grid"]
        )
    return side


def model_config(vision: Mapping[str, Any], text: Mapping[str, Any]) -> ModelConfig:
    """Configuration of a model whose sizes were read from a file.

    Texts are padded with 1, their end mark, in SigLIP 1, with 0 in SigLIP 2; its vocabularies tell
    them apart. A Hugging Face config does not: transformers writes SigLIP 1's ids into all.

    Args:
      vision: the fields of `VisionConfig`.
      text: those of `TextConfig`, except `pad_id`.

    Raises:
      ConversionError: no model has such sizes.
    """
    pad_id = int(text["vocab_size"] in SIGLIP1_VOCABULARIES)
    try:
        return ModelConfig(vision=VisionConfig(**vision), text=TextConfig(**text, pad_id=pad_id))
    except ValueError as error:
        raise ConversionError([str(error)]) from error
