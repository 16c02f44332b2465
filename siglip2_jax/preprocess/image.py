"""Images to patches: the size search and the two preprocessing modes."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from siglip2_jax.preprocess.decode import MAX_PIXELS, ImageSource, LeastSize, as_images, decode
from siglip2_jax.preprocess.patches import ImagePatches, pad_and_stack, patchify
from siglip2_jax.preprocess.resize import (
    Resample,
    resize_antialias,
    resize_no_antialias,
    resize_pillow,
)
from siglip2_jax.types import Patches

# Above this budget SigLIP 2's native-resolution models were not trained.
TRAINED_PATCHES = 1024

# x / 255, then (x - 0.5) / 0.5, rounded to float32 where Hugging Face's processors do.
_HUGGING_FACE_LEVELS = ((np.arange(256) * (1 / 255)).astype(np.float32) - 0.5) / np.float32(0.5)


def target_size(size: tuple[int, int], patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """The size to which native-resolution preprocessing (NaFlex) resizes an image.

    The official search (SigLIP 2, section 2.4.2; big_vision's ops_naflex.py), step by step: a
    bisection for the largest scale at which the sides, rounded up to whole patches, stay within
    the budget. It ends at a resolution of 1e-5 and a scale of at most 100.

    Args:
      size: height and width of the image, in pixels.
      patch_size: side of a patch, in pixels.
      max_num_patches: the budget.

    Returns:
      Height and width, each a positive multiple of `patch_size`.

    Raises:
      ValueError: an argument is less than 1.
    """
    if min(*size, patch_size, max_num_patches) < 1:
        raise ValueError(
            "Image size, patch size and max_num_patches must be at least 1, got "
            f"{size[0]} x {size[1]} (height x width), {patch_size} and {max_num_patches}."
        )

    def grid(scale: float) -> tuple[int, int]:
        rows, cols = (max(1, ceil(side * scale / patch_size)) for side in size)
        return rows, cols

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        rows, cols = grid(scale)
        if rows * cols <= max_num_patches:
            low = scale
        else:
            high = scale
    rows, cols = grid(low)
    return rows * patch_size, cols * patch_size


@dataclass(frozen=True)
class ImagePreprocessor:
    """Preprocessor from images to their patches, in the way one checkpoint expects.

    Mode "reference" follows the official code: at native resolution an antialiased resize that is
    never rounded, at fixed resolution one without antialiasing that is cut to 8 bits. Mode "hf"
    follows the transformers library: Pillow's antialiased resize to 8 bits.

    Attributes:
      patch_size: side of a patch, in pixels.
      image_size: side of the square that every image is squashed to, in pixels; None for native
        resolution (NaFlex), where the aspect ratio is kept up to whole patches.
      mode: "reference" or "hf".
      resample: the filter, in mode "hf" only; repositories differ.
      exif: whether images are turned upright as their EXIF orientation says.
      max_pixels: the largest image accepted, in pixels.
    """

    patch_size: int
    image_size: int | None
    mode: Literal["reference", "hf"] = "reference"
    resample: Resample = "bilinear"
    exif: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}.")
        if self.image_size is not None and self.image_size < self.patch_size:
            raise ValueError(
                f"image_size must be None or at least one patch ({self.patch_size} pixels), got "
                f"{self.image_size}."
            )
        if self.mode not in ("reference", "hf"):
            raise ValueError(f'mode must be "reference" or "hf", got {self.mode!r}.')
        if self.resample not in ("bilinear", "bicubic"):
            raise ValueError(f'resample must be "bilinear" or "bicubic", got {self.resample!r}.')

    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int = 256,
        merge: int = 1,
    ) -> Patches:
        """Decodes, resizes, scales and cuts images, padded to one length.

        Args:
          images: paths, encoded bytes, Pillow images or uint8 arrays `[H, W, 3]`; one or several.
          max_num_patches: the budget at native resolution; not used at fixed resolution.
          merge: what divides the rows and columns of patches at native resolution.

        Raises:
          ImageError: an image cannot be read.
          ValueError: there are no images, or an argument is out of its range.
        """
        opened = map(self.open, as_images(images))
        items = [self.to_patches(image, max_num_patches, merge) for image in opened]
        return pad_and_stack(items, self.num_tokens(max_num_patches))

    def open(
        self, source: ImageSource, name: str | None = None, least_size: LeastSize | None = None
    ) -> Image.Image:
        """Decodes one image to RGB; arguments as for `decode`."""
        return decode(
            source, exif=self.exif, max_pixels=self.max_pixels, name=name, least_size=least_size
        )

    def to_patches(
        self, image: Image.Image, max_num_patches: int = 256, merge: int = 1
    ) -> ImagePatches:
        """Resizes, scales and cuts one image; nothing is padded.

        Args:
          image: as `open` gives it.
          max_num_patches: the budget at native resolution; not used at fixed resolution.
          merge: what divides the rows and columns of patches at native resolution.

        Returns:
          pixels: [rows * cols, patch_size**2 * 3] in [-1, 1], without padding.
          grid: rows and columns of patches.

        Raises:
          ValueError: the image is empty or not RGB, or an argument is out of its range.
        """
        if image.mode != "RGB" or 0 in image.size:
            size = " x ".join(map(str, image.size))
            raise ValueError(
                f"the image is {size} pixels of mode {image.mode}, expected RGB that is not empty; "
                "ImagePreprocessor.open gives that"
            )
        height, width = self.resized((image.height, image.width), max_num_patches, merge)
        grid = height // self.patch_size, width // self.patch_size
        return self._pixels(image, (height, width)), grid

    @property
    def antialiased(self) -> bool:
        """True where shrinking averages over all pixels, not just those nearest to the new ones."""
        return self.mode == "hf" or self.image_size is None

    def _pixels(self, image: Image.Image, size: tuple[int, int]) -> Float32[np.ndarray, "N P"]:
        if self.mode == "hf":
            levels = patchify(resize_pillow(image, size, self.resample), self.patch_size)
            return _HUGGING_FACE_LEVELS[levels]
        resize = resize_antialias if self.antialiased else resize_no_antialias
        pixels = patchify(resize(np.asarray(image), size), self.patch_size)
        # The official code scales before it resizes; as a resize is linear, this differs only in
        # rounding, and touches far fewer values.
        pixels = pixels.astype(np.float32, copy=False)
        pixels /= 127.5
        pixels -= 1
        return pixels

    def resized(
        self, size: tuple[int, int], max_num_patches: int = 256, merge: int = 1
    ) -> tuple[int, int]:
        """Height and width to which an image of this height and width is resized.

        At native resolution they are whole blocks of `merge` x `merge` patches.

        Raises:
          ValueError: `max_num_patches` or `merge` is less than 1, or the budget holds no block.
        """
        if max_num_patches < 1:
            raise ValueError(f"max_num_patches must be at least 1, got {max_num_patches}.")
        if merge < 1:
            raise ValueError(f"merge must be at least 1, got {merge}.")
        if self.image_size is not None:
            return self.image_size, self.image_size
        if max_num_patches < merge**2:
            raise ValueError(
                f"max_num_patches is {max_num_patches}; a block of {merge} x {merge} patches needs "
                f"at least {merge**2}."
            )
        return target_size(size, self.patch_size * merge, max_num_patches // merge**2)

    def grid(self, size: tuple[int, int], max_num_patches: int = 256) -> tuple[int, int]:
        """Rows and columns of patches of an image of this height and width."""
        height, width = self.resized(size, max_num_patches)
        return height // self.patch_size, width // self.patch_size

    def num_tokens(self, max_num_patches: int = 256) -> int:
        """Patches an image is padded to: the budget, or all of the grid at fixed resolution."""
        if self.image_size is None:
            return max_num_patches
        return (self.image_size // self.patch_size) ** 2

    def explain(self, size: tuple[int, int], max_num_patches: int = 256) -> str:
        """Says in one sentence what becomes of an image of this height and width."""
        height, width = self.resized(size, max_num_patches)
        rows, cols = self.grid(size, max_num_patches)
        sentence = (
            f"{size[0]} x {size[1]} pixels (height x width) are resized to {height} x {width}, "
            f"{rows} x {cols} = {rows * cols} patches of {self.patch_size} pixels"
        )
        if self.image_size is None:
            sentence += f" within the budget of {max_num_patches}"
            if max_num_patches > TRAINED_PATCHES:
                sentence += (
                    f"; SigLIP 2 was trained with at most {TRAINED_PATCHES} patches, above which "
                    "expect mildly worse results"
                )
        return sentence + "."
