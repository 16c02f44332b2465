"""What every reader gives and every writer takes: a model's sizes, its lazy tensors, and its data
conventions.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from etils import epath

from siglip2_jax.convert.table import Lazy, Shape
from siglip2_jax.models.siglip2 import abstract_model, flatten
from siglip2_jax.models.variants import ModelConfig
from siglip2_jax.preprocess.text_norm import TextNorm

Format = Literal["npz", "hf", "orbax"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images and texts were prepared for the model.

    Attributes:
      mode: "reference", as the official pipeline, or "hf", as transformers.
      resample: the filter that a Hugging Face repository names; used by mode "hf" only.
      text_norm: what is done to a text before the tokenizer.
    """

    mode: Literal["reference", "hf"] = "reference"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    text_norm: TextNorm = "reference"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that is stored somewhere.

    Attributes:
      config: its sizes.
      params: every parameter by path, such as `vision/pos/table`; float32 when read.
      tokenizer: the tokenizer file found beside it.
      preprocessing: how its inputs are prepared.
      format: how it is stored.
      source: where, as the user wrote it.
    """

    config: ModelConfig
    params: dict[str, Lazy]
    tokenizer: epath.Path | None
    preprocessing: Preprocessing
    format: Format
    source: str


def param_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every parameter, by path."""
    return {path: leaf.shape for path, leaf in flatten(abstract_model(config)[1]).items()}


def default_text_norm(config: ModelConfig) -> TextNorm:
    """The mode of the official pipeline: SigLIP 1 strips punctuation, SigLIP 2 lower-cases."""
    return "canonicalize" if config.text.pad_id == 1 else "reference"
