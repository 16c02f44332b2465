"""Decoding of one item: its patches, and its size as it is seen."""

from __future__ import annotations

from siglip2_jax.data.prepare import with_margin
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches


def decode_item(
    data: bytes, name: str, preprocess: ImagePreprocessor, max_num_patches: int, scaled: bool
) -> tuple[tuple[int, int], ImagePatches]:
    """Decodes an image and makes patches of it.

    Args:
      data: the file.
      name: what to call it in errors.
      preprocess: how images become patches.
      max_num_patches: patches an image may have, at native resolution.
      scaled: whether a large JPEG may be decoded at a smaller scale (`Prepare.scaled_decode`).

    Returns:
      Its width and height, upright where `preprocess` turns it; and its patches.

    Raises:
      ImageError: it cannot be read.
    """
    stored: list[tuple[int, int]] = []

    def least_size(size: tuple[int, int]) -> tuple[int, int]:
        stored.append(size)
        return with_margin(*preprocess.resized(size, max_num_patches))

    image = preprocess.open(data, name, least_size if scaled else None)
    width, height = image.size
    if stored:  # a JPEG, perhaps at a smaller scale
        sides = sorted(stored[-1])
        width, height = sides if height > width else sides[::-1]
        if image.width == image.height:
            height, width = stored[-1]
    return (width, height), preprocess.to_patches(image, max_num_patches)
