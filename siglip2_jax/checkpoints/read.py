"""Opens a checkpoint of any format; its content tells the format, its name never does."""

from __future__ import annotations

import os

from etils import epath

from siglip2_jax import git_lfs
from siglip2_jax.checkpoints import big_vision, huggingface, orbax, peft, run_layout
from siglip2_jax.checkpoints.checkpoint import (
    Checkpoint,
    Format,
    Preprocessing,
    default_text_norm,
)
from siglip2_jax.checkpoints.huggingface_config import CONFIG, read_preprocessing
from siglip2_jax.checkpoints.source import ACCEPTED, resolve
from siglip2_jax.checkpoints.table import ConversionError, finite

TOKENIZERS = ("tokenizer.model", "tokenizer.json", "spiece.model")


def read(
    source: str | os.PathLike[str],
    stage: str | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Opens a checkpoint; its tensors are checked, and read when they are asked for.

    A tensor that holds a NaN or an infinity raises NonFiniteError when it is read.

    Args:
      source: a local path, a `gs://` path, or a Hugging Face repository `owner/name`.
      stage: of a run's workdir, the stage whose newest checkpoint is opened; None is any.
      adapter: directory or repository of a LoRA adapter in peft's layout, which is merged.

    Raises:
      SourceError: the source does not exist or cannot be reached.
      ConversionError: it is no checkpoint of a SigLIP model, or a damaged one, or the stage is not
        there.
    """
    path = resolve(source)
    saved = run_layout.find(path, stage)
    kind = "orbax" if saved else sniff(path)
    directory = path if path.is_dir() else path.parent
    try:
        if saved:
            config, params, preprocessing = run_layout.read(saved)
            directory = saved.workdir
        elif kind == "orbax":
            config, params, preprocessing = orbax.read(path)
        elif kind == "hf":
            config, params = huggingface.read(path)
            preprocessing = read_preprocessing(directory, config)
        else:
            config, params = big_vision.read(path)
            preprocessing = Preprocessing(text_norm=default_text_norm(config))
    except ConversionError as error:
        raise ConversionError(error.problems, error.subject or str(path)) from error
    if adapter is not None:
        params = peft.merged(adapter, config, params)
    tokenizers = [directory / name for name in TOKENIZERS if (directory / name).exists()]
    return Checkpoint(
        config=config,
        params={name: finite(tensor, name, str(path)) for name, tensor in params.items()},
        tokenizer=tokenizers[0] if tokenizers else None,
        preprocessing=preprocessing,
        format=kind,
        source=os.fspath(source),
        run=run_layout.read_run(saved) if saved else None,
    )


def sniff(path: epath.Path) -> Format:
    """The format of an existing file or directory.

    Raises:
      ConversionError: it is none of the three.
    """
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        if orbax.MODEL in names:
            return "orbax"
        if CONFIG in names or any(
            name.endswith(".safetensors") or name.startswith("pytorch_model") for name in names
        ):
            return "hf"
        listing = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        problem = f"the directory holds no checkpoint (found {listing or 'nothing'}); {ACCEPTED}"
        raise ConversionError([problem], str(path))
    with path.open("rb") as file:
        start = file.read(len(git_lfs.MARK))
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if start[8:9] == b"{":  # after the eight bytes that count the header
        return "hf"
    raise ConversionError([f"the file {_looks_like(start)}; {ACCEPTED}"], str(path))


def _looks_like(start: bytes) -> str:
    """Describes a file that no loader reads, from its first bytes."""
    if not start:
        return "is empty"
    if git_lfs.is_pointer(start):
        return f"is {git_lfs.POINTER}"
    if start.startswith((b"\x93NUMPY", b"\x80")):
        return "is a single array or a pickle"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return f"is text (it starts with {start.decode()!r})"
    return "is of an unknown kind"
