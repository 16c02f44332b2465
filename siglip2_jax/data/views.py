"""The augmented views that self-distillation and masked prediction read; NumPy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.colour import ColorJitter, GaussianBlur, Grayscale, Solarize
from siglip2_jax.data.prepare import Transform, Views
from siglip2_jax.preprocess.patches import ImagePatches, patchify
from siglip2_jax.preprocess.resize import Resample

# Pillow shrinks by whole numbers first, to no less than this many times the size asked for: close
# to a resize in one go, which takes more than twice as long on images of several megapixels.
REDUCING_GAP = 2.0


@dataclass(frozen=True)
class SelfSupervisedViews:
    """Adds one large view of the image and several small ones; image and text stay as they are.

    In a batch they are `Patches`: `fields["global"]` [B, 1, N, P], `fields["local"]` [B, V, N, P].
    SigLIP 2 (arXiv 2502.14786, section 2.3) shows the teacher one global view and the student 8
    local ones, and leaves the rest to SILC (arXiv 2310.13355); areas and colours are those of DINO
    (arXiv 2104.14294), the one global view having what DINO's two have between them.

    Each view is a crop, whose shape is drawn relative to the image's own, squashed to a square,
    perhaps flipped, and then changed in colour.

    Attributes:
      patch_size: side of a patch in pixels, as the model has it.
      global_size: side of the global view in pixels, a multiple of `patch_size`.
      local_size: side of the local views in pixels, a multiple of `patch_size`.
      local_views: V, how many local views there are.
      global_crop: the part of the image that the global view shows.
      local_crop: the part that a local view shows.
      flip: of all views.
      jitter: of all views.
      grey: of all views.
      global_blur: of the global view, in its pixels.
      local_blur: of local views, in their pixels.
      solarize: of the global view.
      other_global: a blur and a solarization that a random half of the global views get in place of
        `global_blur` and `solarize`; None treats all alike. DINO blurs one of its two global views
        always and solarizes the other: with `solarize=Solarize(probability=0.0)` and
        `other_global=(GaussianBlur(probability=0.1), Solarize(probability=0.2))`, so do these.
      resample: the filter, "bilinear" or "bicubic", antialiased.
    """

    patch_size: int = 16
    global_size: int = 256
    local_size: int = 96
    local_views: int = 8
    global_crop: RandomResizedCrop = RandomResizedCrop(area=(0.4, 1.0))
    local_crop: RandomResizedCrop = RandomResizedCrop(area=(0.05, 0.4))
    flip: HorizontalFlip = HorizontalFlip(0.5)
    jitter: ColorJitter = ColorJitter(0.4, 0.4, 0.2, 0.1, probability=0.8)
    grey: Grayscale = Grayscale(0.2)
    global_blur: GaussianBlur = GaussianBlur(probability=1.0)
    local_blur: GaussianBlur = GaussianBlur(probability=0.5)
    solarize: Solarize = Solarize(probability=0.2)
    other_global: tuple[GaussianBlur, Solarize] | None = None
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        for field in ("patch_size", "local_views"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"SelfSupervisedViews.{field} must be at least 1, got {getattr(self, field)}"
                )
        for field in ("global_size", "local_size"):
            size = getattr(self, field)
            if size < 1 or size % self.patch_size:
                raise ValueError(
                    f"SelfSupervisedViews.{field} must be a positive multiple of the patch size "
                    f"{self.patch_size}, got {size}"
                )
        if self.resample not in ("bilinear", "bicubic"):
            raise ValueError(
                'SelfSupervisedViews.resample must be "bilinear" or "bicubic", got '
                f"{self.resample!r}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with the fields `global` and `local`."""
        colours = (self.flip, self.jitter, self.grey)
        finish = (self.global_blur, self.solarize)
        if self.other_global is not None and rng.random() < 0.5:
            finish = self.other_global
        global_effects = (*colours, *finish)
        local_effects = (*colours, self.local_blur)
        image = {"image": example["image"]}
        global_view = self._view(image, rng, self.global_crop, self.global_size, global_effects)
        crops = tuple(
            self._view(image, rng, self.local_crop, self.local_size, local_effects)
            for _ in range(self.local_views)
        )
        example["fields"]["global"] = Views((global_view,), len(global_view[0]))
        example["fields"]["local"] = Views(crops, len(crops[0][0]))
        return example

    def _view(
        self,
        view: dict[str, Any],
        rng: np.random.Generator,
        crop: RandomResizedCrop,
        size: int,
        changes: tuple[Transform, ...],
    ) -> ImagePatches:
        part: Image.Image = crop(view, rng)["image"]
        resample = Image.Resampling[self.resample.upper()]
        view = {"image": part.resize((size, size), resample, reducing_gap=REDUCING_GAP)}
        for change in changes:  # colours last: a view has far fewer pixels than an image
            view = change(view, rng)
        pixels = patchify(np.asarray(view["image"]), self.patch_size)
        side = size // self.patch_size
        return pixels / np.float32(127.5) - np.float32(1), (side, side)
