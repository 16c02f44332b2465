"""Class embeddings that are kept on disk: 1,000 classes take 81,000 prompts."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from contextlib import suppress

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from siglip2_jax.evals.base import Model
from siglip2_jax.evals.prompts import embed_labels, fill_prompts
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.outputs import open_output


@dataclasses.dataclass(frozen=True)
class ClassCache:
    """Cache of the class embeddings of one model.

    Attributes:
      directory: of the files, one for each model, set of prompts and settings; local or `gs://`.
      model: key of the model and its tokenizer: `fingerprint` of its `identity()`.
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
    digest = fingerprint([cache.model, prompts])
    path = epath.Path(cache.directory) / f"classes-{digest}.npy"
    with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    rows = embed_labels(model, names, templates, canonical=canonical)
    with open_output(path) as file:
        np.save(file, rows)
    return rows
