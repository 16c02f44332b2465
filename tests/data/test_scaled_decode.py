"""Training with a scaled decode: images hardly differ, and where they would it is refused."""

import dataclasses
import io
from contextlib import closing
from math import isqrt

import numpy as np
import pytest
from data.samples import preparation
from PIL import Image

from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.colour import GaussianBlur
from siglip2_jax.data.sources import Memory
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import TOKENIZER, shipped_examples, tiny_config
from siglip2_jax.models.config import VisionConfig
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess import image as module
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.train.inputs import open_tokenizer, stage_pipeline, stage_reading


def photo(i: int, scale: float = 1.0) -> dict:
    item = shipped_examples()[i]
    image = Image.open(item.image)
    size = tuple(round(scale * side) for side in image.size)
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return {"image": stream.getvalue(), "captions": item.captions, "name": str(i), "regions": []}


@pytest.fixture
def decoded(monkeypatch):
    """Sizes (height, width) of the images that were decoded."""
    sizes, decode = [], module.decode

    def noting(*arguments, **options):
        image = decode(*arguments, **options)
        sizes.append(image.size[::-1])
        return image

    monkeypatch.setattr(module, "decode", noting)
    return sizes


@pytest.mark.parametrize("aspect", ["keep", "square"])
@pytest.mark.parametrize("budget", [16, 49, 100, 256])
def test_patches_are_nearly_the_same(aspect, budget, decoded):
    targets = DecoderTargets(str(TOKENIZER))
    options = {"patch_size": 4, "aspect": aspect}
    transforms = HorizontalFlip(0.5), Shrink(300), targets
    full = preparation(*transforms, **options)
    fast = preparation(*transforms, scaled_decode=True, **options)
    differences = []
    for i in range(12):
        rngs = np.random.default_rng(i), np.random.default_rng(i)
        wanted, found = (
            prepare(photo(i), rng, budget) for prepare, rng in zip((full, fast), rngs, strict=True)
        )
        size, scaled = decoded[-2:]
        grid = (isqrt(budget),) * 2 if aspect == "square" else wanted["image"][1]
        # Half the image is enough whenever it has 1.5 times the sides of the result.
        assert (scaled < size) == all(x // 2 >= 6 * n for x, n in zip(size, grid, strict=True))
        assert all(x >= 6 * n for x, n in zip(scaled, grid, strict=True)) or scaled == size
        assert abs(np.subtract(found["image"][1], wanted["image"][1])).max() <= 1
        np.testing.assert_array_equal(found["text"], wanted["text"])
        for task, ids in wanted["targets"].items():
            np.testing.assert_array_equal(found["targets"][task], ids)
        if found["image"][1] == wanted["image"][1]:
            differences.append(127.5 * abs(found["image"][0] - wanted["image"][0]).mean())
    assert len(differences) >= 9 and np.mean(differences) < 2.3


def test_fixed_resolution_in_mode_hf(decoded):
    preprocess = ImagePreprocessor(14, 100, "hf")  # 100 pixels, 7 patches of 14
    prepare = dataclasses.replace(preparation(), preprocess=preprocess, scaled_decode=True)
    found = prepare(photo(0, 2), np.random.default_rng(0), 1)
    assert min(decoded[-1]) >= 150 and max(decoded[-1]) == 320
    np.testing.assert_allclose(
        found["image"][0], preprocess.to_patches(preprocess.open(photo(0, 2)["image"]))[0], atol=0.3
    )


def test_evaluation_decodes_in_full(monkeypatch):
    """Evaluators and embedders have no such option."""
    drafts = []
    monkeypatch.setattr(Image.Image, "draft", lambda *arguments: drafts.append(arguments))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", Image.Image.draft)
    preprocess = ImagePreprocessor(16, None)
    preprocess.to_patches(preprocess.open(photo(0)["image"]), 4)
    preparation()(photo(0), np.random.default_rng(0), 4)
    assert not drafts
    preparation(scaled_decode=True)(photo(0), np.random.default_rng(0), 4)
    assert len(drafts) == 1


@pytest.mark.parametrize("transform", [RandomResizedCrop(), GaussianBlur(), SelfSupervisedViews()])
def test_transforms_that_need_all_pixels(transform):
    name = type(transform).__name__
    with pytest.raises(ValueError, match=f"leaves fewer pixels than {name} may need"):
        preparation(HorizontalFlip(), transform, scaled_decode=True)
    with pytest.raises(ValueError, match=f"stage 'one': scaled_decode .* {name} may need"):
        config(transforms=(transform,), scaled_decode=True)


def test_resizes_without_antialiasing():
    with pytest.raises(ValueError, match='mode "reference" does not at fixed resolution'):
        preparation(image_size=32, scaled_decode=True)
    sizes = dataclasses.asdict(tiny_config().vision) | {"grid": 4, "image_size": 64}
    vision = VisionConfig(**sizes)
    with pytest.raises(ValueError, match="stage 'one': scaled_decode smooths images"):
        config(dataclasses.replace(tiny_config(), vision=vision), scaled_decode=True)


def config(model=None, **data) -> TrainConfig:
    source = Memory(tuple(photo(i) for i in range(3)))
    stage = Stage(
        name="one",
        steps=2,
        batch_size=2,
        data=Data(source=source, **data),
        objectives={"sigmoid": Sigmoid()},
    )
    return TrainConfig(model=model or tiny_config(), stages=(stage,), tokenizer=str(TOKENIZER))


@pytest.mark.parametrize("scaled_decode", [False, True])
def test_a_run_does_as_its_config_says(scaled_decode):
    run = config(scaled_decode=scaled_decode)
    pipeline = stage_pipeline(run.resolved[0], open_tokenizer(run))
    assert pipeline.prepare.scaled_decode is scaled_decode
    with closing(pipeline.batches(stage_reading(run.resolved[0]))) as batches:
        assert next(batches).bad == 0
