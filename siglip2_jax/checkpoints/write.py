"""Writes a checkpoint in any of the three formats: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import get_args

from siglip2_jax.checkpoints import big_vision, huggingface, orbax
from siglip2_jax.checkpoints.checkpoint import Checkpoint, Format
from siglip2_jax.checkpoints.huggingface_config import model_type
from siglip2_jax.checkpoints.model_card import CARD, Score, model_card
from siglip2_jax.checkpoints.sentence_transformers_config import sentence_transformers_files
from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.checkpoints.table import Progress
from siglip2_jax.outputs import staged
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.preprocess.tokenizer_json import huggingface_files


def write(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    format: Format,
    *,
    tokenizer: Tokenizer | None = None,
    scores: Sequence[Score] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint; memory holds one tensor at a time.

    Files appear under their final name when they are complete; an error or Ctrl-C leaves nothing.
    Where the path is a symbolic link, what it leads to is replaced.

    Args:
      checkpoint: what to write.
      path: a local path that does not exist yet, or an empty directory.
      format: "npz" for one file, "hf" or "orbax" for a directory.
      tokenizer: goes into the directory; the checkpoint's own unless given.
      scores: what was measured with it, for the model card that "hf" has.
      overwrite: replace what is at `path`.
      progress: called with the name of each tensor, how many are done and how many there are.

    Raises:
      ValueError: the format is unknown, or the path is not local.
      FileExistsError: there is something at `path`.
      ConversionError: a tensor of the source is damaged.
      TokenizerError: the tokenizer has more ids than the model, or cannot be used or exported.
    """
    if format not in get_args(Format):
        raise ValueError(f"format {format!r} is unknown: choose npz, hf or orbax")
    if "://" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)}: checkpoints are written to local paths only")
    config, params = checkpoint.config, checkpoint.params
    if tokenizer is None and format != "npz":
        tokenizer = checkpoint.open_tokenizer()
    elif tokenizer:
        tokenizer.check(config.text.vocab_size)
    with staged(absolute(path), overwrite) as staging:
        if format == "npz":
            big_vision.write(staging, config, params, progress=progress)
            return
        staging.mkdir()
        if format == "hf":
            card = model_card(checkpoint, tokenizer=tokenizer is not None, scores=scores)
            files = {CARD: card.encode()}
            if tokenizer:
                files |= huggingface_files(tokenizer, model_type(config))
                files |= sentence_transformers_files(config)
            for name, content in files.items():
                (staging / name).write_bytes(content)
            huggingface.write(staging, config, params, checkpoint.preprocessing, progress=progress)
        else:
            if tokenizer:
                tokenizer.save(staging)
            orbax.write(staging, config, params, checkpoint.preprocessing, progress=progress)
