"""Against the transformers library and PyTorch, where they are installed."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.preprocess.image import ImagePreprocessor, target_size
from siglip2_jax.preprocess.patches import patchify
from siglip2_jax.preprocess.resize import resize_antialias

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these libraries say on import is not ours
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        Siglip2ImageProcessorPil,
        get_image_size_for_max_num_patches,
    )

SIZES = [(480, 640), (97, 331), (64, 64), (1200, 300), (20, 30), (768, 1024), (1, 400)]


def photo(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height * width).integers(0, 256, (9, 9, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
    grain = np.random.default_rng(1).integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def test_target_size() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        height, width = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        patch, budget = rng.choice([14, 16]), rng.choice([64, 128, 256, 576, 784, 1024])
        expected = get_image_size_for_max_num_patches(height, width, patch, budget)
        assert target_size((height, width), patch, budget) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("budget", [64, 256, 1024])
def test_native(size: tuple[int, int], budget: int) -> None:
    image = photo(*size)
    theirs = Siglip2ImageProcessorPil(max_num_patches=budget)(image, return_tensors="np")
    preprocess = ImagePreprocessor(16, None, "hf")
    pixels, grid = preprocess.to_patches(preprocess.open(image), budget)
    assert grid == tuple(theirs["spatial_shapes"][0])
    np.testing.assert_array_equal(pixels, theirs["pixel_values"][0, : len(pixels)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("patch", "resolution"), [(16, 224), (14, 384)])
def test_fixed(size: tuple[int, int], resample: str, patch: int, resolution: int) -> None:
    image = photo(*size)
    processor = SiglipImageProcessorPil(
        size={"height": resolution, "width": resolution},
        resample=Image.Resampling[resample.upper()],
    )
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    preprocess = ImagePreprocessor(patch, resolution, "hf", resample)
    pixels, _ = preprocess.to_patches(preprocess.open(image))
    np.testing.assert_array_equal(pixels, patchify(theirs, patch))


def test_files(shared: Path) -> None:
    for path in sorted((shared / "data/demo_photos").glob("*.[jJ]*")):
        with Image.open(path) as image:
            theirs = Siglip2ImageProcessorPil()(image.convert("RGB"), return_tensors="np")
        preprocess = ImagePreprocessor(16, None, "hf", exif=False)
        pixels, _ = preprocess.to_patches(preprocess.open(path))
        np.testing.assert_array_equal(pixels, theirs["pixel_values"][0, : len(pixels)])


@pytest.mark.parametrize("size", SIZES)
def test_antialiased_resize(size: tuple[int, int]) -> None:
    image = np.asarray(photo(*size))
    for target in ((224, 288), (33, 71), (1, 1)):
        planes = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        theirs = torch.nn.functional.interpolate(
            planes, target, mode="bilinear", antialias=True, align_corners=False
        )
        ours = resize_antialias(image, target)
        assert np.abs(ours - theirs[0].numpy().transpose(1, 2, 0)).max() <= 1e-3 * 255
