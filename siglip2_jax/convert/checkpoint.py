"""What every reader gives and every writer takes: a model's sizes, its lazy tensors, and its data
conventions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from etils import epath

from siglip2_jax.convert.table import ConversionError, Lazy, Shape
from siglip2_jax.models.siglip2 import abstract_model, flatten
from siglip2_jax.models.variants import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.preprocess.text_norm import TextNorm

Format = Literal["npz", "hf", "orbax"]

SIGLIP1_VOCABULARIES = (32_000, 250_000)


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


def model_config(vision: Mapping[str, Any], text: Mapping[str, Any]) -> ModelConfig:
    """Sizes that were read off a file.

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
        config = ModelConfig(vision=VisionConfig(**vision), text=TextConfig(**text, pad_id=pad_id))
    except ValueError as error:
        raise ConversionError([str(error)]) from error
    if config.text.embed_dim != config.vision.width:
        raise ConversionError(
            [
                f"text embeddings have {config.text.embed_dim} numbers and image embeddings "
                f"{config.vision.width}, expected as many"
            ]
        )
    return config


def default_text_norm(config: ModelConfig) -> TextNorm:
    """The mode of the official pipeline: SigLIP 1 strips punctuation, SigLIP 2 lower-cases."""
    return "canonicalize" if config.text.pad_id == 1 else "reference"
