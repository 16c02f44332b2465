"""Images read and preprocessed ahead of the device, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from siglip2_jax.data.prefetch import prefetch_batches
from siglip2_jax.preprocess.decode import ImageError, ImageSource, as_images
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches, pad_and_stack
from siglip2_jax.types import Patches

Images = Patches | ImageSource | Iterable[ImageSource]


class ImageBatch(NamedTuple):
    """Preprocessed images.

    Attributes:
      errors: for each image None, or why it is unreadable.
      patches: of the readable ones; None where there are none.
      data_wait: seconds that they were waited for.
    """

    errors: list[ImageError | None]
    patches: Patches | None
    data_wait: float = 0.0


def image_batches(
    images: Images,
    preprocess: ImagePreprocessor,
    max_num_patches: int,
    batch_size: int,
    merge: int = 1,
) -> Iterator[ImageBatch]:
    """Preprocesses images on threads, in bounded memory; `Patches` are one batch as they are.

    Args:
      images: any number of them.
      preprocess: makes them patches.
      max_num_patches: the token budget of an image.
      batch_size: images of a batch.
      merge: what divides the rows and columns of patches at native resolution.

    Raises:
      ValueError: an argument is out of its range.
    """
    if isinstance(images, Patches):
        yield ImageBatch([None] * len(images.valid), images)
        return
    num_tokens = preprocess.num_tokens(max_num_patches)

    def prepare(image: ImageSource) -> ImagePatches | ImageError:
        try:
            return preprocess.to_patches(preprocess.open(image), max_num_patches, merge)
        except ImageError as error:
            return error

    for batch, data_wait in prefetch_batches(prepare, as_images(images), batch_size):
        good = [item for item in batch if not isinstance(item, ImageError)]
        errors = [item if isinstance(item, ImageError) else None for item in batch]
        yield ImageBatch(errors, pad_and_stack(good, num_tokens) if good else None, data_wait)
