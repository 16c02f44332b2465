"""A run in proportion: all of a recipe made smaller by one number."""

from __future__ import annotations

import dataclasses

from siglip2_jax.models.config import ModelConfig, TextConfig, Tower, VisionConfig

CHANNELS = 32  # of a head, where a tower is made narrower


@dataclasses.dataclass(frozen=True)
class ScaledRecipe:
    """Size of a run, as a share of the published one.

    `value` is the share of the examples that are seen. Batch and steps are multiplied by its square
    root; width, depth and the number of tokens by its sixth root, so the sides of images by the
    twelfth. At 1 everything is as published; a millionth is a run for two CPU cores, with batches
    of 32 and towers of two blocks.

    Attributes:
      value: above 0, at most 1.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.value <= 1:
            raise ValueError(
                f"scale is {self.value}; it is a share of the run, above 0 and up to 1"
            )

    def steps(self, published: int | float) -> int:
        """A number of steps, at least 1."""
        return max(1, round(published * self.value**0.5))

    def batch(self, published: int) -> int:
        """Examples of a step, a multiple of 16 (or of the published size)."""
        return max(1, round(published * self.value**0.5 / 16)) * 16

    def tokens(self, published: int, least: int = 4) -> int:
        """A length in tokens, or another size that no tower's width decides."""
        return max(least, round(published * self.value ** (1 / 6)))

    def side(self, published: int, patch_size: int) -> int:
        """Side of a square image in pixels.

        A number of whole patches where it is made smaller, the same for patches of 16 and 32.
        """
        if self.value == 1:
            return published
        unit = patch_size if 32 % patch_size else 32
        return max(1, round(published * self.value ** (1 / 12) / unit)) * unit

    def width(self, published: int) -> int:
        """Width of a tower or a head: a multiple of a head's channels where it is made smaller."""
        if self.value == 1:
            return published
        return max(2, round(published * self.value ** (1 / 6) / CHANNELS)) * CHANNELS

    def depth(self, published: int) -> int:
        """Blocks of a tower, at least 2."""
        return max(2, round(published * self.value ** (1 / 6)))

    def model(self, published: ModelConfig, vocab_size: int | None = None) -> ModelConfig:
        """Both towers.

        Args:
          published: their sizes at 1.
          vocab_size: of another tokenizer; None keeps the published one.
        """
        vision, text = published.vision, published.text
        size = vision.image_size and self.side(vision.image_size, vision.patch_size)
        grid = vision.grid if self.value == 1 else self.side(256, 16) // 16
        if size is not None:
            grid = size // vision.patch_size
        return ModelConfig(
            vision=VisionConfig(
                **self._tower(vision), patch_size=vision.patch_size, grid=grid, image_size=size
            ),
            text=TextConfig(
                **self._tower(text),
                vocab_size=vocab_size or text.vocab_size,
                embed_dim=self.width(text.embed_dim),
                length=text.length,
                pad_id=text.pad_id,
                pool=text.pool,
            ),
        )

    def _tower(self, published: Tower) -> dict[str, int]:
        width = self.width(published.width)
        heads = published.num_heads if self.value == 1 else width // CHANNELS
        return {
            "width": width,
            "depth": self.depth(published.depth),
            "mlp_dim": self.width(published.mlp_dim),
            "num_heads": heads,
        }
