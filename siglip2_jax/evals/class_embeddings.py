"""Class embeddings that are kept on disk: 1,000 classes take 81,000 prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from siglip2_jax.evals.base import Model
from siglip2_jax.evals.prompts import embed_labels, fill_prompts
from siglip2_jax.outputs import write_whole


@dataclasses.dataclass(frozen=True)
class ClassCache:
    """Cache of class embeddings: its directory, and the model that they are of.

    Attributes:
      directory: of the files, one for each model, set of prompts and settings; local or `gs://`.
      model: what tells the model's weights from all others: a release's name, the hash of a file, a
        checkpoint's path with its step. Nothing else does, so do not reuse it for other weights.
    """

    directory: str
    model: str


def class_embeddings(
    model: Model,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    canonical: bool = False,
    cache: ClassCache | None = None,
) -> Float[np.ndarray, "n E"]:
    """Embeds labels as `embed_labels` does, through the cache.

    A file that cannot be read is written anew. In a run of several processes the cache is left
    alone: all of them must embed, or none, and their disks may differ.

    Args:
      model: embeds the prompts.
      names: of the classes.
      templates: prompts with one `{}` for the name.
      canonical: as for `prompts.fill_prompts`.
      cache: None means none.

    Returns:
      float32 rows of unit length.

    Raises:
      ValueError: as `prompts.fill_prompts`.
    """
    if cache is None or jax.process_count() > 1:
        return embed_labels(model, names, templates, canonical=canonical)
    prompts = fill_prompts(names, templates, canonical=canonical)
    options = [getattr(model, option, None) for option in ("text_norm", "dtype")]
    key = json.dumps([cache.model, *options, prompts])
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = epath.Path(cache.directory) / f"classes-{digest[:32]}.npz"
    if (found := _read(path, digest)) is not None:
        return found
    rows = embed_labels(model, names, templates, canonical=canonical)
    data = io.BytesIO()
    np.savez(data, embeddings=rows, digest=digest)
    write_whole(path, data.getvalue())
    return rows


def _read(path: epath.Path, digest: str) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:  # a path stays open if it is no zip
            return file["embeddings"] if file["digest"] == digest else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
