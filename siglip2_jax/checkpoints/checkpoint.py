"""Contents of a checkpoint, which every reader gives and every writer takes: a model's sizes, its
lazy tensors, and its data conventions.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from etils import epath

from siglip2_jax.checkpoints.table import Lazy, Shape
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import abstract_model, flatten
from siglip2_jax.preprocess.text_norm import TextNorm
from siglip2_jax.preprocess.tokenizer import Tokenizer

Format = Literal["npz", "hf", "orbax"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preparation of images and texts that the model was trained with.

    Attributes:
      mode: "reference", as the official pipeline, or "hf", as transformers.
      resample: the filter that a Hugging Face repository names; used by mode "hf" only.
      text_norm: what is done to a text before the tokenizer.
    """

    mode: Literal["reference", "hf"] = "reference"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    text_norm: TextNorm = "reference"


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The run that has saved a checkpoint.

    Attributes:
      step: updates so far.
      stage: the stage that they were in.
      config: its configuration, as `config.json` has it.
    """

    step: int
    stage: str
    config: Mapping[str, Any]


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
      run: what has trained it, where that is known.
    """

    config: ModelConfig
    params: dict[str, Lazy]
    tokenizer: epath.Path | None
    preprocessing: Preprocessing
    format: Format
    source: str
    run: TrainingRun | None = None

    def open_tokenizer(
        self, path: str | os.PathLike[str] | None = None, text_norm: TextNorm | None = None
    ) -> Tokenizer | None:
        """A tokenizer set up for this model.

        Args:
          path: as for `Tokenizer.load`; None takes the file beside the checkpoint, if any.
          text_norm: None takes what the checkpoint records.

        Raises:
          TokenizerError: it cannot be read, or does not belong to the model's token table.
        """
        path = self.tokenizer if path is None else path
        if path is None:
            return None
        tokenizer = Tokenizer.load(
            path,
            text_norm=text_norm or self.preprocessing.text_norm,
            length=self.config.text.length,
            pad_id=self.config.text.pad_id,
        )
        tokenizer.check(self.config.text.vocab_size)
        return tokenizer


@functools.cache
def param_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """The shape of every parameter, by path."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_model(config)[1]).items()}
    return MappingProxyType(shapes)


def default_text_norm(config: ModelConfig) -> TextNorm:
    """Mode of the official pipeline: SigLIP 1 strips punctuation, SigLIP 2 lower-cases."""
    return "canonicalize" if config.text.pad_id == 1 else "reference"
