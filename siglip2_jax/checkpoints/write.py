"""Writes a checkpoint in any of the three formats: all of it, or nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import get_args

from etils import epath

from siglip2_jax.checkpoints import big_vision, huggingface, orbax
from siglip2_jax.checkpoints.checkpoint import Checkpoint, Format
from siglip2_jax.checkpoints.huggingface_config import model_type
from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.checkpoints.table import Progress
from siglip2_jax.outputs import behind_links, is_special
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.preprocess.tokenizer_json import huggingface_files


def write(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    format: Format,
    *,
    tokenizer: Tokenizer | None = None,
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
            files = huggingface_files(tokenizer, model_type(config)) if tokenizer else {}
            for name, content in files.items():
                (staging / name).write_bytes(content)
            huggingface.write(staging, config, params, checkpoint.preprocessing, progress=progress)
        else:
            if tokenizer:
                tokenizer.save(staging)
            orbax.write(staging, config, params, checkpoint.preprocessing, progress=progress)


@contextlib.contextmanager
def staged(path: epath.Path, overwrite: bool) -> Iterator[epath.Path]:
    """A path beside the final one, renamed to it when all went well, removed when not.

    A pipe or a device is written to as it is.
    """
    path = behind_links(path)
    if is_special(path):
        yield path
        return
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{path} exists: choose another path, or ask to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (path.parent / f".{path.name}.{os.getpid()}.{tag}" for tag in ("new", "old"))
    try:
        yield staging
        if path.exists():
            path.rename(old)
        try:
            staging.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        _remove(old)
    finally:
        _remove(staging)


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    path.unlink(missing_ok=True)
