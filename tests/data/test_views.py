"""The views of one image: which part they show, what is done to them, and their arrays."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from data.samples import example, preparation
from PIL import Image

from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.collate import collate
from siglip2_jax.data.colour import ColorJitter, GaussianBlur, Grayscale, Solarize
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import tiny_config
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.train.inputs import abstract_batch

SMALL = SelfSupervisedViews(patch_size=4, global_size=24, local_size=12, local_views=3)
CROPS_ONLY = replace(
    SMALL,
    flip=HorizontalFlip(0.0),
    jitter=ColorJitter(probability=0.0),
    grey=Grayscale(0.0),
    global_blur=GaussianBlur(probability=0.0),
    local_blur=GaussianBlur(probability=0.0),
    solarize=Solarize(probability=0.0),
    resample="bilinear",
)
WHOLE = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))
UNCHANGED = replace(CROPS_ONLY, global_crop=WHOLE, local_crop=WHOLE)


def noise(width: int = 36, height: int = 28) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def views(transform: SelfSupervisedViews, image: Image.Image, seed: int = 0) -> dict:
    """The global view and the local ones as images in [0, 255], put together patch by patch."""
    source = {"image": image, "text": "noise", "fields": {}}
    fields = transform(source, np.random.default_rng(seed))["fields"]
    assert fields.keys() == {"global", "local"}
    return {name: [assemble(*x) for x in fields[name].images] for name in fields}


def assemble(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, columns = grid
    assert patches.dtype == np.float32 and len(patches) == rows * columns
    image = np.zeros((rows * 4, columns * 4, 3))
    for i, patch in enumerate(patches):
        y, x = divmod(i, columns)
        image[y * 4 : y * 4 + 4, x * 4 : x * 4 + 4] = patch.reshape(4, 4, 3)
    return (image + 1) * 127.5


def test_arrays_of_a_batch():
    prepare = pickle.loads(pickle.dumps(preparation(SMALL)))
    items = [prepare(example(i), np.random.default_rng(i), 30) for i in range(3)]
    batch = collate(items, 30)
    seen, local = batch.fields["global"], batch.fields["local"]
    assert seen.pixels.shape == (3, 1, 36, 48) and local.pixels.shape == (3, 3, 9, 48)
    assert seen.valid.all() and local.valid.all()
    for pixels in (seen.pixels, local.pixels):
        assert pixels.dtype == np.float32 and -1 <= pixels.min() < -0.5 < 0.5 < pixels.max() <= 1
    np.testing.assert_array_equal(local.yx[1, 2], np.indices((3, 3)).reshape(2, 9).T)
    # Image and text are those of a preparation without views.
    for i, item in enumerate(items):
        plain = preparation()(example(i), np.random.default_rng(i), 30)
        np.testing.assert_array_equal(item["image"][0], plain["image"][0])
        np.testing.assert_array_equal(item["text"], plain["text"])


def test_an_unchanged_view_is_the_resized_image():
    image = noise()
    found = views(UNCHANGED, image)
    for name, size in (("global", 24), ("local", 12)):
        wanted = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float64)
        for view in found[name]:
            np.testing.assert_allclose(view, wanted, rtol=0, atol=1e-4)


def test_large_photos_are_nearly_resized_in_one_go():
    smooth = noise(20, 15).resize((1500, 1125), Image.Resampling.BICUBIC)
    for resample in ("bilinear", "bicubic"):
        (found,) = views(replace(UNCHANGED, resample=resample), smooth)["global"]
        wanted = np.asarray(smooth.resize((24, 24), Image.Resampling[resample.upper()]), np.float64)
        assert abs(found - wanted).mean() < 3


def test_views_show_parts_of_the_areas_asked_for():
    """Red is the column and green the row, so that a view's spread tells its sides."""
    rows, columns = np.indices((200, 240))
    located = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    areas = {"global": [], "local": []}
    places = []
    for seed in range(150):
        for name, images in views(CROPS_ONLY, Image.fromarray(located), seed).items():
            for view in images:
                # The outermost pixels are half a pixel of the view within the crop.
                width, height = ((np.ptp(view[..., c]) + 1) / 240 for c in (0, 1))
                side = len(view)
                share = width * (240 / 240) * height * (240 / 200) * (side / (side - 1)) ** 2
                areas[name].append(share)
            places += [view[..., 0].mean() for view in images if name == "local"]
    for name, (low, high) in {"global": (0.4, 1.0), "local": (0.05, 0.4)}.items():
        found = np.array(areas[name])
        assert low * 0.85 < found.min() < low * 1.25 and 0.93 * high < found.max() < high * 1.1
    assert min(places) < 50 and max(places) > 190


def test_the_generator_decides():
    first, again, other = (views(SMALL, noise(), seed) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (np.array(first[name]) != np.array(other[name])).any()
    one, two, three = first["local"]
    assert (one != two).any() and (two != three).any()


ALWAYS = {
    "flip": (HorizontalFlip(1.0), lambda x: x[:, ::-1]),
    "grey": (Grayscale(1.0), lambda x: np.broadcast_to(x.mean(-1, keepdims=True), x.shape)),
    "solarize": (Solarize(0, 1.0), lambda x: 255 - x),
}


@pytest.mark.parametrize("field", ALWAYS)
def test_changes(field):
    """Flips and colours touch all views, solarization the global one alone."""
    transform, change = ALWAYS[field]
    pixels = np.asarray(noise())
    if field == "grey":
        pixels = np.broadcast_to(pixels[..., :1], pixels.shape) // 2 + np.uint8([0, 0, 9])
    image = Image.fromarray(pixels)
    plain, found = views(UNCHANGED, image), views(replace(UNCHANGED, **{field: transform}), image)
    for name in plain:
        wanted = plain[name]
        if name == "global" or field != "solarize":
            wanted = [change(x) for x in wanted]
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=3)


def test_half_of_the_global_views_are_changed_otherwise():
    """The two of DINO: each image draws which it is, and local views take no part."""
    other = GaussianBlur(probability=0.0), Solarize(0, 1.0)
    plain = views(UNCHANGED, noise())
    (seen,) = plain["global"]
    count = 0
    for seed in range(200):
        found = views(replace(UNCHANGED, other_global=other), noise(), seed)
        np.testing.assert_array_equal(found["local"], plain["local"])
        inverted = found["global"][0] != seen
        wanted = 255 - seen if inverted.any() else seen
        np.testing.assert_allclose(found["global"][0], wanted, rtol=0, atol=1e-4)
        count += inverted.any()
    assert 75 < count < 125


@pytest.mark.parametrize(("field", "blurred"), [("global_blur", "global"), ("local_blur", "local")])
def test_blurs(field, blurred):
    change = {field: GaussianBlur((2.0, 2.0), 1.0)}
    plain, found = views(UNCHANGED, noise()), views(replace(UNCHANGED, **change), noise())
    for name in plain:
        ratio = np.std(found[name]) / np.std(plain[name])
        assert ratio < 0.6 if name == blurred else ratio == 1


def test_defaults():
    """DINO's, with both of its global augmentations on the one global view."""
    made = SelfSupervisedViews()
    assert (made.global_crop.area, made.local_crop.area) == ((0.4, 1.0), (0.05, 0.4))
    jitter = made.jitter
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    assert strengths == (0.4, 0.4, 0.2, 0.1) and jitter.probability == 0.8
    assert (made.global_blur.probability, made.local_blur.probability) == (1.0, 0.5)
    assert (made.grey.probability, made.solarize.probability) == (0.2, 0.2)
    fields = made({"image": noise(400, 300), "fields": {}}, np.random.default_rng(0))["fields"]
    assert fields["global"].num_tokens == 256 and len(fields["global"].images) == 1
    assert fields["local"].num_tokens == 36 and len(fields["local"].images) == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (300, 2)])
def test_the_smallest_images(size):
    found = views(SMALL, noise(*size))
    assert [len(found[name]) for name in ("global", "local")] == [1, 3]


def test_shapes_are_known_before_data_is_read():
    data = Data(source=Folder("nowhere"), transforms=(replace(SMALL, patch_size=4),))
    stage = Stage(name="main", data=data, batch_size=8, steps=1, objectives={"sigmoid": Sigmoid()})
    config = TrainConfig(model=tiny_config(), stages=(stage,), tokenizer="")
    extra = abstract_batch(config.resolved[0], 16, 8).fields
    assert extra["global"].pixels.shape == (8, 1, 36, 48)
    assert extra["local"].valid.shape == (8, 3, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_size": 25}, r"SelfSupervisedViews.global_size must be .* patch size 4, got 25"),
        ({"local_size": 0}, "local_size must be a positive multiple"),
        ({"local_views": 0}, "local_views must be at least 1, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
    ],
)
def test_options_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **fields)


def test_the_filter_is_checked():
    with pytest.raises((ValueError, TypeError), match="resample"):  # the type checker may be faster
        replace(SMALL, resample="nearest")
