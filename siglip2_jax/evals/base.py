"""Interface of evaluators: one sees a model as a user does, and gives numbers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from siglip2_jax.types import Features


@runtime_checkable
class Model(Protocol):
    """Model as evaluators see it: an `inference.Embedder`, or a stand-in."""

    def embed_images(self, images: Any, **options: Any) -> Float32[ndarray, "n E"]:
        """Embeds images as `Embedder.embed_images` does."""

    def image_features(self, images: Any, **options: Any) -> Features:
        """Gives features as `Embedder.image_features` does."""

    def embed_texts(self, texts: Any, **options: Any) -> Float32[ndarray, "n E"]:
        """Embeds texts as `Embedder.embed_texts` does."""


@runtime_checkable
class OpenModel(Model, Protocol):
    """One whose parameters can be looked at, too."""

    config: Any
    params: Any
    mesh: Any


@runtime_checkable
class Evaluator(Protocol):
    """A measurement made during or after training: a frozen dataclass.

    Attributes:
      name: its numbers are logged as `eval/<name>/<metric>`.
      every: steps between two measurements in training; it is also made at the end of a stage.
    """

    name: str
    every: int

    def __call__(self, model: Model) -> dict[str, float]:
        """Measures; on several hosts every process calls it with the same model."""
        ...
