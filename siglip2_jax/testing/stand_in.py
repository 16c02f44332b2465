"""An embedder that looks its embeddings up, to test evaluators without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageSource, NamedImage


class StandInEmbedder(Embedder):
    """Looks images (bytes or paths) and texts up in tables.

    Attributes:
      image_rows: the row of each image.
      text_rows: the row of each text.
      budgets: the `max_num_patches` of every call so far, in order.
    """

    def __init__(self, images: Mapping[Any, np.ndarray], texts: Mapping[str, np.ndarray]):
        self.image_rows, self.text_rows = images, texts
        self.budgets: list[int] = []

    def embed_images(
        self,
        images: Iterable[ImageSource],
        *,
        max_num_patches: int = 256,
        batch_size: int = 32,
        normalize: bool = True,
        on_error: str = "warn",
    ) -> Float[np.ndarray, "n E"]:
        """Rows of the images, as they are in the table."""
        self.budgets.append(max_num_patches)
        names: list[Any] = [x.image if isinstance(x, NamedImage) else x for x in images]
        return np.stack([self.image_rows[name] for name in names]).astype(np.float32)

    def embed_texts(
        self, texts: Iterable[str], *, batch_size: int = 32
    ) -> Float[np.ndarray, "n E"]:
        """Rows of the texts, as they are in the table."""
        return np.stack([self.text_rows[text] for text in texts]).astype(np.float32)
