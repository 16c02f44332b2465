"""Regions: reading them, COCO's boxes, and moving them with the pixels."""

import json
import math

import numpy as np
import pytest
from data.samples import example
from PIL import Image, ImageDraw

from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.records import decode_example, encode_example
from siglip2_jax.data.regions import Region, cropped, flipped, from_coco, read_regions

DOG = {"box": [0.1, 0.2, 0.5, 0.6], "phrase": "a dog", "score": 0.7}


def test_regions_read_back_from_a_pack():
    row = {**example(0), "regions": [DOG, {"box": [0, 0, 1, 1], "phrase": "всё"}]}
    wanted = (Region((0.1, 0.2, 0.5, 0.6), "a dog", 0.7), Region((0.0, 0.0, 1.0, 1.0), "всё", 1.0))
    assert read_regions(row) == wanted
    assert read_regions(decode_example(encode_example(row))) == wanted
    again = {"regions": [region.as_dict() for region in wanted]}
    assert read_regions(json.loads(json.dumps(again))) == wanted and wanted[0].as_dict() == DOG
    numpy = {"regions": [{**DOG, "box": list(np.array(DOG["box"])), "score": np.float64(0.7)}]}
    assert read_regions(numpy) == wanted[:1]
    assert (
        read_regions({}) == read_regions({"regions": None}) == read_regions({"regions": []}) == ()
    )


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"box": 1}, "no 0: regions must be a list, found {'box': 1}"),
        (["a dog"], "no 0: region 0 cannot be used (expected an object with box and phrase"),
        ([DOG, {**DOG, "box": [0, 0, 1]}], "no 0: region 1 cannot be used (a box must be four num"),
        ([{**DOG, "box": [0, 0, 1, "1"]}], "a box must be four numbers, found [0, 0, 1, '1']"),
        ([{**DOG, "box": [0, 0, 1, math.nan]}], "a box must be four numbers"),
        ([{**DOG, "box": [0, 0, 1, 1.01]}], "ymin, xmin, ymax, xmax with 0 <= ymin < ymax <= 1 an"),
        ([{**DOG, "box": [0.5, 0, 0.5, 1]}], "got [0.5, 0.0, 0.5, 1.0]"),
        ([{**DOG, "phrase": " "}], "a phrase must not be blank"),
        ([{**DOG, "phrase": None}], "a phrase must be a text, found None"),
        ([{**DOG, "score": 1.5}], "a score must be from 0 to 1, got 1.5"),
        ([{**DOG, "score": None}], "a score must be a number, found None"),
    ],
)
def test_malformed_regions(regions, message):
    with pytest.raises(ValueError) as error:
        read_regions({**example(0), "regions": regions})
    assert message in str(error.value) and str(error.value).startswith("no 0: ")


def coco(*boxes, width=200, height=100):
    return {"file": "a.jpg", "width": width, "height": height, "boxes": list(boxes)}


def test_boxes_of_coco():
    row = coco(
        {"category": "dog", "bbox": [20, 10, 100, 50], "iscrowd": 0, "area": 5000},
        {"category": "people", "bbox": [0, 0, 10, 10], "iscrowd": 1},
        {"category": "kite", "bbox": [-10, 90.5, 60, 40]},
        {"category": "line", "bbox": [10, 10, 0, 40]},
        {"category": "outside", "bbox": [200, 10, 40, 40]},
    )
    dog = Region((0.1, 0.1, 0.6, 0.6), "dog", 1.0)
    assert from_coco(row) == (dog, Region((0.905, 0.0, 1.0, 0.25), "kite", 1.0))
    assert from_coco({"boxes": None}) == from_coco({"boxes": []}) == from_coco({}) == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"boxes": "all"}, "a row: boxes must be a list, found 'all'"),
        (coco({"category": "dog"}), "a.jpg: box 0 must have a category and a bbox of four numbers"),
        (coco({"category": 3, "bbox": [0, 0, 1, 1]}), "a.jpg: box 0 must have a category"),
        (coco({"category": "x", "bbox": [0, 0, 1, 1]}, width=None), "found (None, 100)"),
        (coco({"category": "x", "bbox": [0, 0, 1, 1]}, height=0), "image's width and height"),
    ],
)
def test_malformed_boxes_of_coco(row, message):
    with pytest.raises(ValueError) as error:
        from_coco(row)
    assert message in str(error.value)


def test_development_boxes(shared):
    lines = (shared / "data/coco_mini/annotations.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    found = [from_coco(row) for row in rows]
    for row, regions in zip(rows, found, strict=True):
        kept = [box for box in row["boxes"] or [] if not box["iscrowd"]]
        assert [region.phrase for region in regions] == [box["category"] for box in kept]
        sides = np.array([row["height"], row["width"]] * 2)
        boxes = np.array([region.box for region in regions]).reshape(-1, 4) * sides
        x, y, w, h = np.array([box["bbox"] for box in kept]).reshape(-1, 4).T
        wanted = np.stack([y, x, y + h, x + w], axis=1).clip(0, sides)
        np.testing.assert_allclose(boxes, wanted, rtol=1e-12)
    assert sum(map(len, found)) == 1086


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def painted(seed, width=96, height=64):
    """A black picture with a box of each colour, in a quarter of its own; regions name them."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", (width, height))
    draw, regions = ImageDraw.Draw(image), []
    for i, colour in enumerate(COLOURS):
        left = int(rng.integers(width // 4)) + i % 2 * width // 2
        top = int(rng.integers(height // 4)) + i // 2 * height // 2
        right = left + int(rng.integers(1, width // 4))
        bottom = top + int(rng.integers(1, height // 4))
        draw.rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[colour])
        box = [top / height, left / width, bottom / height, right / width]
        regions.append({"box": box, "phrase": colour, "score": 0.5})
    return {"image": image, "name": "painted", "regions": regions}


def visible(image, colour):
    """The box of a colour in pixels, as top, left, bottom and right; None if there is none."""
    rows, columns = np.nonzero((np.asarray(image) == COLOURS[colour]).all(axis=-1))
    if not len(rows):
        return None
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def area(box):
    top, left, bottom, right = box
    return (bottom - top) * (right - left)


@pytest.mark.parametrize("min_visible", [0.0, 0.5, 1.0])
def test_boxes_and_pixels_agree_after_crops_and_flips(min_visible):
    transforms = RandomResizedCrop((0.1, 0.9), min_visible=min_visible), HorizontalFlip()
    kept = dropped = 0
    for seed in range(100):
        source, rng = painted(seed), np.random.default_rng(seed)
        before = json.dumps(source["regions"])
        changed = source
        for transform in transforms:
            changed = transform(changed, rng)
        assert json.dumps(source["regions"]) == before
        found = {region.phrase: region.box for region in read_regions(changed)}
        height, width = changed["image"].height, changed["image"].width
        for colour in COLOURS:
            seen, whole = visible(changed["image"], colour), visible(source["image"], colour)
            # A box of which enough is in the picture is there, where its pixels are; others not.
            assert (colour in found) == (
                seen is not None and area(seen) >= min_visible * area(whole)
            )
            if colour in found:
                box = np.array(found[colour]) * [height, width, height, width]
                np.testing.assert_allclose(box, seen, rtol=0, atol=1e-9)
                kept += 1
            else:
                dropped += 1
    assert min(kept, dropped) > 30


def test_a_crop_of_one_box():
    region, size = Region((0.25, 0.25, 0.75, 0.75), "x", 0.5), (40, 80)
    assert cropped(region, size, (0, 0, 40, 80), 1.0) == region
    # Columns 10 to 30 and rows 20 to 60; half of it is right of column 20.
    half = (20, 0, 40, 80)
    assert cropped(region, size, half, 0.5) == Region((0.25, 0.0, 0.75, 0.5), "x", 0.5)
    assert cropped(region, size, half, 0.51) is None
    assert cropped(region, size, (20, 20, 30, 60), 0.5).box == (0, 0, 1, 1)
    assert cropped(region, size, (30, 0, 40, 80), 0.0) is None  # beside it
    thin = Region((0.0, 0.0, 1.0, 0.02), "x")  # 0.8 pixels
    assert cropped(thin, size, (0, 0, 40, 80), 0.0) is None
    assert flipped(Region((0.1, 0.0, 0.2, 0.25), "left")) == Region((0.1, 0.75, 0.2, 1.0), "left")


def test_examples_without_regions_are_changed_as_ever():
    for transform in (RandomResizedCrop((0.2, 0.5)), HorizontalFlip(1.0)):
        plain = painted(0)
        regions = plain.pop("regions")
        one = transform(plain, np.random.default_rng(0))
        two = transform({**plain, "regions": regions}, np.random.default_rng(0))
        assert one.keys() == plain.keys() and one["image"].tobytes() == two["image"].tobytes()
        assert transform({**plain, "regions": None}, np.random.default_rng(0))["regions"] is None
        bad = {**plain, "regions": ["dog"]}
        with pytest.raises(ValueError, match="painted: region 0 cannot be used"):
            transform(bad, np.random.default_rng(0))


def test_min_visible_is_checked():
    with pytest.raises(ValueError, match="min_visible must be from 0 to 1, got 1.5"):
        RandomResizedCrop(min_visible=1.5)
