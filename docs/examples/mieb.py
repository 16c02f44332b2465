"""A model in MIEB, the image benchmark of mteb (Xiao et al. 2025, arXiv 2504.10471).

    from mieb import MiebEncoder  # this file

    encoder = MiebEncoder(siglip2_jax.load("..."))
    mteb.evaluate(encoder, mteb.get_benchmark("MIEB(lite)"))

Made for mteb's `EncoderProtocol` as of version 2.26.24 (`mteb/models/models_protocols.py`), and not
tied to it: mteb is not imported, and knows an encoder by its methods. Its versions before 2 asked
for other methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE, DEFAULT_MAX_NUM_PATCHES, Embedder
from siglip2_jax.preprocess.decode import ImageSource


class MiebEncoder:
    """An `Embedder` as mteb's tasks ask for it.

    Embeddings have unit length. mteb's own wrapper of SigLIP gives vectors before normalisation:
    cosines are the same, but linear probes, clusters and sums of an image and a text are not.

    Attributes:
      model: embeds images and texts.
      max_num_patches: token budget at native resolution.
      mteb_model_meta: an `mteb.ModelMeta`, whose name and revision results are filed under; None
        files them as those of a model without a name.
    """

    def __init__(
        self,
        model: Embedder,
        *,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        meta: Any = None,
    ):
        """Takes a model.

        Args:
          model: as `siglip2_jax.load` gives it; with a tokenizer for tasks with texts.
          max_num_patches: token budget at native resolution.
          meta: the `mteb_model_meta`.
        """
        self.model = model
        self.max_num_patches = max_num_patches
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        show_progress_bar: bool = False,
        precision: str | None = None,
    ) -> Float[np.ndarray, "n E"]:
        """Embeds what a task holds: images, texts, or pairs of both, which are summed.

        Args:
          inputs: batches with lists under "image" (Pillow images), "text" or both, such as mteb's
            `DataLoader` gives.
          task_metadata: not read: these models have no prompts of their own.
          hf_split: not read.
          hf_subset: not read.
          prompt_type: not read.
          batch_size: items per program call.
          show_progress_bar: not read.
          precision: None or "float32".

        Returns:
          float32 rows, of unit length unless they are sums.

        Raises:
          ImageError: an image is unreadable.
          TokenizerError: there are texts, and the model has no tokenizer.
          ValueError: there is neither an image nor a text, not as many of both, or another
            precision is asked for.
        """
        if precision not in (None, "float32"):
            raise ValueError(f"precision is {precision!r}; expected 'float32'")
        texts: list[str] = []

        def images() -> Iterator[ImageSource]:
            for batch in inputs:
                texts.extend(batch.get("text", ()))
                yield from batch.get("image", ())

        rows = self.model.embed_images(
            images(),
            max_num_patches=self.max_num_patches,
            batch_size=batch_size,
            on_error="raise",
        )
        if not texts and not len(rows):
            raise ValueError(
                "the batches hold nothing under 'image' or 'text'; choose a task of images or texts"
            )
        if not texts:
            return rows
        of_texts = self.model.embed_texts(texts, batch_size=batch_size)
        if not len(rows):
            return of_texts
        if len(rows) != len(of_texts):
            raise ValueError(
                f"there are {len(rows)} images and {len(of_texts)} texts; expected as many"
            )
        return rows + of_texts

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, "n m"]:
        """Cosines of every pair.

        Args:
          embeddings1: rows, or one; arrays or tensors on the CPU.
          embeddings2: likewise.
        """
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, " n"]:
        """Cosine of each row with the same row of the other.

        Args:
          embeddings1: as for `similarity`.
          embeddings2: as many.
        """
        return np.sum(_unit(embeddings1) * _unit(embeddings2), axis=1)


def _unit(rows: Any) -> Float[np.ndarray, "n E"]:
    found = np.atleast_2d(np.asarray(rows, np.float32))
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
