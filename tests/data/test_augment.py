"""Crops and flips, on an image whose pixels say where they come from."""

import pickle

import numpy as np
import pytest
from data.samples import example, preparation
from PIL import Image

from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.collate import collate

WIDTH, HEIGHT = 240, 160


def located(width=WIDTH, height=HEIGHT):
    """Red is the column, green the row."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    return {"image": Image.fromarray(pixels), "text": "somewhere", "name": "located"}


def crops(transform, count, seed=0):
    """Left, top, width and height of some crops, each checked to be a part of the image."""
    source, rng = located(), np.random.default_rng(seed)
    whole, boxes = np.asarray(source["image"]), []
    for _ in range(count):
        found = np.asarray(transform(source, rng)["image"])
        left, top, _ = (int(x) for x in found[0, 0])
        height, width = found.shape[:2]
        np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])
        boxes.append((left, top, width, height))
    return np.array(boxes)


def test_crops_have_the_areas_and_shapes_asked_for():
    left, top, width, height = crops(RandomResizedCrop((0.25, 0.6), (0.5, 1.5)), 2000).T
    area = width * height / (WIDTH * HEIGHT)
    ratio = (width / height) / (WIDTH / HEIGHT)
    rounding = 0.5 / width.min() + 0.5 / height.min()
    assert area.min() > 0.25 * (1 - rounding) and area.max() < 0.6 * (1 + rounding)
    assert ratio.min() > 0.5 * (1 - rounding) and ratio.max() < 1.5 * (1 + rounding)
    # The ends are reached, and in between areas are uniform: mean and deviation say so.
    assert area.min() < 0.26 and area.max() > 0.59 and ratio.min() < 0.52 and ratio.max() > 1.45
    assert area.mean() == pytest.approx(0.425, abs=4 * 0.35 / np.sqrt(12 * 2000))
    assert area.std() == pytest.approx(0.35 / np.sqrt(12), rel=0.05)
    # Every place is as likely: the free space is left of the crop as often as right of it.
    for start, size, side in ((left, width, WIDTH), (top, height, HEIGHT)):
        share = (start + 0.5) / (side - size + 1)
        assert share.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * 2000))
        assert share.min() < 0.02 and share.max() > 0.98


def test_shapes_are_uniform_in_the_logarithm():
    *_, width, height = crops(RandomResizedCrop((0.3, 0.3), (0.5, 2.0)), 2000, seed=1).T
    wider = np.mean(width / height > WIDTH / HEIGHT)
    assert wider == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))


def test_a_large_crop_is_only_as_lopsided_as_fits():
    *_, width, height = crops(RandomResizedCrop((0.9, 1.0), (0.25, 4.0)), 200).T
    assert (width * height / (WIDTH * HEIGHT) > 0.89).all()
    assert (crops(RandomResizedCrop((1.0, 1.0), (0.25, 4.0)), 5) == [0, 0, WIDTH, HEIGHT]).all()


def test_the_generator_decides():
    transform = pickle.loads(pickle.dumps(RandomResizedCrop()))
    np.testing.assert_array_equal(crops(transform, 20, seed=3), crops(RandomResizedCrop(), 20, 3))
    assert (crops(transform, 20, seed=3) != crops(transform, 20, seed=4)).any(axis=1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_a_pixel_is_left_of_the_smallest_images(size):
    source, rng = located(*size), np.random.default_rng(0)
    for _ in range(20):
        assert min(RandomResizedCrop((0.01, 0.02))(source, rng)["image"].size) == 1


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips(probability):
    transform, source, rng = HorizontalFlip(probability), located(), np.random.default_rng(0)
    whole, flips = np.asarray(source["image"]), 0
    for _ in range(1000):
        found = np.asarray(transform(source, rng)["image"])
        flipped = bool(found[0, 0, 0])
        np.testing.assert_array_equal(found, whole[:, ::-1] if flipped else whole)
        flips += flipped
    deviation = np.sqrt(1000 * probability * (1 - probability))
    assert abs(flips - 1000 * probability) <= 4 * deviation


def test_examples_are_left_as_they_are():
    for transform in (RandomResizedCrop((0.2, 0.5)), HorizontalFlip(1.0)):
        source = located()
        before = dict(source)
        changed = transform(source, np.random.default_rng(0))
        assert source == before and source["image"] is before["image"]
        assert changed.keys() == before.keys() and changed["text"] == "somewhere"
        assert changed["image"] is not before["image"]


def test_they_work_in_the_preparation_of_a_batch():
    prepare = preparation(RandomResizedCrop((0.2, 0.4)), HorizontalFlip())
    items = [prepare(example(i), np.random.default_rng(i), 30) for i in range(6)]
    batch = collate(items, 30)
    assert not batch.fields and np.isfinite(batch.image.pixels).all()
    plain, again = preparation()(example(2), np.random.default_rng(2), 30), items[2]
    repeated = prepare(example(2), np.random.default_rng(2), 30)
    np.testing.assert_array_equal(repeated["image"][0], again["image"][0])
    np.testing.assert_array_equal(plain["text"], again["text"])  # the caption is chosen before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop((0.0, 1.0)), r"area must be two shares .* got \(0.0, 1.0\)"),
        (lambda: RandomResizedCrop((0.6, 0.5)), "area must be two shares"),
        (lambda: RandomResizedCrop((0.5, 1.5)), "area must be two shares"),
        (lambda: RandomResizedCrop(aspect=(0.0, 1.0)), "aspect must be two ratios"),
        (lambda: RandomResizedCrop(aspect=(1.1, 1.2)), r"aspect .* got \(1.1, 1.2\)"),
        (lambda: HorizontalFlip(1.1), "probability must be from 0 to 1, got 1.1"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shrink():
    """The longer side is cut down, the shape stays; small images are the same object."""
    pixels = np.zeros((60, 200, 3), np.uint8)
    pixels[:, 100:] = 200
    wide = {"image": Image.fromarray(pixels), "text": "a"}
    small = Shrink(50)(wide, np.random.default_rng(0))["image"]
    assert small.size == (50, 15)
    found = np.asarray(small)
    assert (found[:, :23] == 0).all() and (found[:, 27:] == 200).all()
    assert Shrink(200)(wide, np.random.default_rng(0)) is wide
    assert Shrink(1)(wide, np.random.default_rng(0))["image"].size == (1, 1)
    with pytest.raises(ValueError, match="Shrink.side must be at least 1, got 0"):
        Shrink(0)
