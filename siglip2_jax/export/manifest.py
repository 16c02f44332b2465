"""Directories of exported models, each with `export.json`, which says all that a user must know."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from etils import epath

from siglip2_jax import __version__
from siglip2_jax.checkpoints.hub import MANIFEST
from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.export import inputs
from siglip2_jax.fingerprint import fingerprint_arrays, sha256_of
from siglip2_jax.inference.embedder import DEFAULT_MAX_NUM_PATCHES, Embedder
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.outputs import staged
from siglip2_jax.preprocess.image import TRAINED_PATCHES, ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import MODEL_FILES

INPUTS = "siglip2_inputs.py"

_RESIZES = {
    ("reference", True): "bilinear with antialiasing, not rounded",
    ("reference", False): "bilinear without antialiasing, at half-pixel centres, cut to 8 bits",
    ("hf", True): "Pillow's {}, rounded to 8 bits",
}


def describe(embedder: Embedder) -> dict[str, Any]:
    """Model, weights, versions, preprocessing and text rules of an embedder, for JSON.

    It reads all parameters. The same model gives the same description.
    """
    config, tokenizer, variant = embedder.config, embedder.tokenizer, embedder.variant
    return {
        "model": {"name": variant and variant.name, **config.to_json()},
        "weights": fingerprint_arrays(flatten(embedder.params)),
        "dtype": embedder.dtype,
        "versions": {"siglip2_jax": __version__, "jax": jax.__version__},
        "image": _image_rules(embedder.preprocess),
        "text": {
            "norm": embedder.text_norm,
            "length": config.text.length,
            "pad_id": config.text.pad_id,
            "eos_id": tokenizer and tokenizer.eos_id,
            "vocab_size": config.text.vocab_size,
            "ids": "pieces of the normalised text without a begin mark, at most length - 1 of "
            "them; eos_id; pad_id up to length",
            "tokenizer": tokenizer and MODEL_FILES[0],
        },
        "logit": {
            "t": float(embedder.params["t"]),
            "b": float(embedder.params["b"]),
            "rule": "exp(t) * (image @ text.T) + b; its sigmoid is the probability of a match",
        },
    }


def _image_rules(preprocess: ImagePreprocessor) -> dict[str, Any]:
    if preprocess.image_size is None:
        patches = {
            "max_num_patches": "any from 1, chosen by the user for every image; more patches show "
            "more detail",
            "default": DEFAULT_MAX_NUM_PATCHES,
            "most_trained": TRAINED_PATCHES,
            "grid": "rows, columns = ceil(height * s / patch_size), ceil(width * s / patch_size) "
            "with the largest scale s for which rows * columns <= max_num_patches, by bisection "
            "from [1e-6, 100] down to 1e-5; the image is resized to rows * patch_size by "
            "columns * patch_size pixels",
        }
    else:
        patches = {"num_patches": preprocess.num_tokens()}
    return {
        "mode": preprocess.mode,
        "resample": preprocess.resample if preprocess.mode == "hf" else "bilinear",
        "resize": _RESIZES[preprocess.mode, preprocess.antialiased].format(preprocess.resample),
        "patch_size": preprocess.patch_size,
        "image_size": preprocess.image_size,
        "exif": preprocess.exif,
        "values": "RGB from 0 to 255, divided by 127.5, minus 1",
        "patches": "row by row, each flattened as (row, column, channel)",
        "budget": patches,
    }


@contextmanager
def export_directory(
    embedder: Embedder, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[tuple[epath.Path, dict[str, Any]]]:
    """Makes a directory for an exported model: all of it appears at the end, or nothing.

    Args:
      embedder: the model.
      path: a local path that does not exist yet, or an empty directory.
      overwrite: replace what is at `path`.

    Yields:
      A temporary directory, in which the tokenizer and `siglip2_inputs.py` (images and texts to
      arrays, without this package) are already, and the description of the model, to which what is
      special to a format may be added. It is written as `export.json` with the digests of all
      files.

    Raises:
      ValueError: the path is not local.
      FileExistsError: there is something at `path`.
    """
    if "://" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)}: exports are written to local paths only")
    with staged(absolute(path), overwrite) as staging:
        staging.mkdir()
        if embedder.tokenizer:
            embedder.tokenizer.save(staging)
        (staging / INPUTS).write_bytes(Path(inputs.__file__).read_bytes())
        description = describe(embedder)
        yield staging, description
        files = {
            file.name: {"bytes": file.stat().length, "sha256": sha256_of(file)}
            for file in sorted(staging.iterdir())
        }
        text = json.dumps({**description, "files": files}, indent=2)
        (staging / MANIFEST).write_text(text + "\n")
