"""Exported ONNX graphs in onnxruntime, used as an `Embedder`: for checks and evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.programs import Programs
from siglip2_jax.types import Patches


class OnnxEmbedder(Embedder):
    """The graphs of an export, with the preprocessing and tokenizer of the model that they are of.

    It embeds; features of patches are not in the graphs.
    """

    def __init__(self, embedder: Embedder, directory: Path):
        import onnxruntime

        super().__init__(
            embedder.config,
            {"t": embedder.params["t"], "b": embedder.params["b"]},
            embedder.preprocess,
            embedder.tokenizer,
            text_norm=embedder.text_norm,
        )

        def open_graph(name: str) -> Any:
            return onnxruntime.InferenceSession(
                directory / f"{name}.onnx", providers=["CPUExecutionProvider"]
            )

        image, text = open_graph("image"), open_graph("text")

        def embed_image(params: Any, patches: Patches, normalize: bool = True) -> np.ndarray:
            if not normalize:
                raise ValueError("exported graphs give unit-length embeddings only")
            inputs = {"pixels": patches.pixels, "yx": patches.yx, "valid": patches.valid}
            return image.run(None, inputs)[0]

        def give_features(*inputs: Any, **options: Any) -> Any:
            raise ValueError("exported graphs give embeddings, not the features of patches")

        def embed_text(params: Any, ids: np.ndarray) -> np.ndarray:
            return text.run(None, {"ids": ids})[0]

        self._programs = Programs(give_features, embed_image, give_features, embed_text)
