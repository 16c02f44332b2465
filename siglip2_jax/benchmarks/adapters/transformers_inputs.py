"""Sizes and inputs of transformers' models in our terms."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from siglip2_jax.checkpoints.sizes import model_config
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import patchify


@dataclass(frozen=True)
class TransformersImages(ImagePreprocessor):
    """transformers' image processor, after our decoding.

    Attributes:
      processor: of the backend "pil".
    """

    processor: Any = None

    def to_patches(
        self, image: Image.Image, max_num_patches: int = 256, merge: int = 1
    ) -> tuple[Float32[np.ndarray, "N P"], tuple[int, int]]:
        """Preprocesses an image as `ImagePreprocessor.to_patches` does, with the processor.

        Raises:
          ValueError: `merge` is not 1, which the processor does not know.
        """
        if merge != 1:
            raise ValueError(f"merge is {merge}; transformers' image processor knows 1 alone")
        if self.image_size is not None:
            pixels = self.processor(images=[image], return_tensors="np")["pixel_values"][0]
            side = self.image_size // self.patch_size
            return patchify(np.moveaxis(pixels, 0, -1), self.patch_size), (side, side)
        inputs = self.processor(
            images=[image], max_num_patches=max_num_patches, return_tensors="np"
        )
        rows, columns = inputs["spatial_shapes"][0].tolist()
        return inputs["pixel_values"][0][: rows * columns], (rows, columns)


def to_images(
    patches: Float32[np.ndarray, "n N P"], patch_size: int
) -> Float32[np.ndarray, "n 3 h w"]:
    """Joins patches to images, without the edge that fills no patch and that no model reads."""
    count, side, p = len(patches), isqrt(patches.shape[1]), patch_size
    cells = patches.reshape(count, side, side, p, p, 3).transpose(0, 5, 1, 3, 2, 4)
    return cells.reshape(count, 3, side * p, side * p)


def read_sizes(config: Any) -> ModelConfig:
    """Reads our sizes from a `SiglipConfig` or `Siglip2Config`.

    Raises:
      ValueError: no model has such sizes.
    """
    towers = config.vision_config, config.text_config
    vision, text = (
        {
            "width": tower.hidden_size,
            "depth": tower.num_hidden_layers,
            "mlp_dim": tower.intermediate_size,
            "num_heads": tower.num_attention_heads,
        }
        for tower in towers
    )
    patch_size = towers[0].patch_size
    if config.model_type == "siglip2":
        vision_size = {"grid": isqrt(towers[0].num_patches), "image_size": None}
    else:
        side = towers[0].image_size
        vision_size = {"grid": side // patch_size, "image_size": side}
    text_size = {
        "vocab_size": towers[1].vocab_size,
        "embed_dim": towers[1].projection_size,
        "length": towers[1].max_position_embeddings,
    }
    return model_config(vision | vision_size | {"patch_size": patch_size}, text | text_size)
