"""Queries in words and as images, and their vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageSource, NamedImage, as_images

_SMALLEST = 1e-3  # length of a composed query that still has a direction


class Queries(NamedTuple):
    """Queries of one search, and what is taken away from each.

    Attributes:
      texts: queries in words.
      images: queries as images, after those in words.
      minus: words that are taken away.
    """

    texts: list[str]
    images: list[ImageSource]
    minus: list[str]

    @property
    def names(self) -> list[str]:
        """Each query, in words."""
        names = self.texts + [_name(image, i) for i, image in enumerate(self.images, 1)]
        return ["".join([name, *(f" − {text}" for text in self.minus)]) for name in names]

    def embed(self, model: Embedder, max_num_patches: int) -> Float32[np.ndarray, "q E"]:
        """The vector of each query, of unit length.

        Raises:
          ValueError: nothing is left of a query.
          ImageError: an image cannot be read.
        """
        parts = []
        if self.texts:
            parts.append(model.embed_texts(self.texts))
        if self.images:
            rows = model.embed_images(
                self.images, max_num_patches=max_num_patches, on_error="raise"
            )
            parts.append(rows)
        vectors = np.concatenate(parts)
        if not self.minus:
            return vectors
        vectors = vectors - model.embed_texts(self.minus).mean(axis=0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if lengths.min() < _SMALLEST:
            raise ValueError(
                "what is taken away leaves nothing of a query; take away words that differ from it"
            )
        return vectors / lengths


def read_queries(
    texts: str | Sequence[str],
    images: ImageSource | Iterable[ImageSource] = (),
    minus: str | Sequence[str] = (),
) -> Queries:
    """Makes queries of one or several of each kind.

    Raises:
      ValueError: there is none, or one has no words.
    """
    queries = Queries(
        [texts] if isinstance(texts, str) else list(texts),
        list(as_images(images)),
        [minus] if isinstance(minus, str) else list(minus),
    )
    if not queries.texts and not queries.images:
        raise ValueError("there is nothing to search for; give words or an image")
    for text in (*queries.texts, *queries.minus):
        if not text.strip():
            raise ValueError("a query is empty; give it at least one word")
    return queries


def _name(image: ImageSource, number: int) -> str:
    if isinstance(image, NamedImage):
        return image.name
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {number}"
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
