"""Interface of evaluators, which use a model as a user does, and return numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh
from jaxtyping import Float32
from numpy import ndarray

from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import Params
from siglip2_jax.preprocess.decode import ImageSource
from siglip2_jax.types import Features, Patches


@runtime_checkable
class Model(Protocol):
    """Model as evaluators see it: an `inference.Embedder`, or a stand-in."""

    def embed_images(
        self, images: Iterable[ImageSource], *, max_num_patches: int = ..., normalize: bool = ...
    ) -> Float32[ndarray, "n E"]:
        """Embeds images as `Embedder.embed_images` does."""
        ...

    def image_features(self, images: Patches) -> Features:
        """Gives features as `Embedder.image_features` does."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float32[ndarray, "n E"]:
        """Embeds texts as `Embedder.embed_texts` does."""
        ...


@runtime_checkable
class OpenModel(Model, Protocol):
    """Model that also exposes its parameters."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the towers."""
        ...

    @property
    def params(self) -> Params:
        """Parameters, a nested dict."""
        ...

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the parameters are on."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """A measurement made during or after training: a frozen dataclass."""

    @property
    def name(self) -> str:
        """Prefix of its numbers, which are logged as `eval/<name>/<metric>`."""
        ...

    @property
    def every(self) -> int:
        """Steps between two measurements in training; it is also made at the end of a stage."""
        ...

    def __call__(self, model: Any) -> dict[str, float]:
        """Measures; on several hosts every process calls it with the same model.

        Args:
          model: a `Model`, or another interface that the evaluator needs, such as an `OpenModel`.
        """
        ...
