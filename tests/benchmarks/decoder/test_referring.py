"""Boxes found for expressions: photos of all shapes, what cannot be read, JSON lines."""

import json

import numpy as np
import pytest
from inference.captioners import saying, training_ids, writes_caption
from inference.samples import noise
from PIL import Image

from siglip2_jax.benchmarks.decoder.expressions import (
    ExpressionFile,
    box_of_pixels,
    held_out_images,
)
from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.benchmarks.decoder.referring import Referring


def write_rows(folder, rows):
    path = folder / "expressions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(file, box, expression="a red dog", split="val"):
    return {"file": file, "expression": expression, "box": box, "split": split}


@pytest.fixture
def photos(tmp_path):
    """A wide one, a high one that its file holds lying, and one that is cut short."""
    Image.fromarray(noise(20, 40)).save(tmp_path / "wide.png")
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.fromarray(noise(12, 30)).save(tmp_path / "high.png", exif=lying)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    return tmp_path


def test_the_share_of_boxes_that_are_found(photos):
    """The decoder says [0.1, 0.2, 0.5, 0.75] of everything that has the length of "a red dog"."""
    rows = [
        row("wide.png", [0.1, 0.2, 0.5, 0.75]),
        row("high.png", [0.1, 0.2, 0.5, 0.75]),
        row("wide.png", [0.1, 0.2, 0.3, 0.75]),  # half of it, and so 0.5
        row("high.png", [0.1, 0.2, 0.29, 0.75]),  # 0.475
        row("wide.png", [0.6, 0.8, 1, 1]),
        row("broken.jpg", [0.1, 0.2, 0.5, 0.75]),
        row("broken.jpg", [0.1, 0.2, 0.5, 0.75]),
        row("wide.png", [0.1, 0.2, 0.5, 0.75], "a red dog by a tree"),  # half a box is left
        row("high.png", [0.1, 0.2, 0.5, 0.75], "red dog " * 30),  # leaves no room
        row("wide.png", [0.1, 0.2, 0.5, 0.75], split="train"),
    ]
    path = write_rows(photos, rows)
    source = ExpressionFile(str(path), str(photos), "val")
    evaluator = Referring(source=source, max_num_patches=16)
    seen = []
    model = saying(writes_caption(), training_ids("refer"))
    with pytest.warns(UserWarning, match="broken.jpg.*nothing is written about it") as caught:
        found = evaluator(model)
    assert len(caught) == 1
    measured = MeasuredCaptioner(model, batch_size=4)
    measured.report_to(lambda *progress: seen.append(progress), len(rows))
    assert evaluator(measured) == found and seen == [(1, 3), (2, 3), (3, 3)]
    assert measured.images == 3 and "broken.jpg" in measured.failed[0]
    assert found == {
        "acc@0.5": pytest.approx(3 / 9),
        "mean_iou": pytest.approx((1 + 1 + 0.5 + 0.475) / 9, abs=1e-9),
        "unparsed": 2.0,
        "unreadable": 2.0,
    }


def test_a_set_of_one_unreadable_photo(photos):
    path = write_rows(photos, [row("absent.png", [0, 0, 1, 1])])
    with pytest.warns(UserWarning, match="absent.png: no such file"):
        found = Referring(source=ExpressionFile(str(path), str(photos)))(writes_caption())
    assert found == {"acc@0.5": 0, "mean_iou": 0, "unparsed": 0, "unreadable": 1}


def test_boxes_as_shares_and_as_pixels(tmp_path):
    size = {"width": 40, "height": 20}
    pixels = {"file": "b.png", "expression": "x", "split": "testA", "bbox": [8, 2, 22, 8], **size}
    path = write_rows(tmp_path, [row("a.png", [0.1, 0.2, 0.5, 0.75]) | size, pixels])
    a, b = ExpressionFile(str(path), "photos").open()
    assert a == ("photos/a.png", "a.png", "a red dog", (0.1, 0.2, 0.5, 0.75))
    assert b.image_id == "b.png" and b.box == pytest.approx(a.box, abs=1e-15)
    (only,) = ExpressionFile(str(path), "photos", "testA").open()
    assert only == b
    assert box_of_pixels([-5, 10, 15, 30], 40, 20, "x") == (0.5, 0, 1, 0.25)


def test_photos_that_are_held_out(tmp_path):
    splits = {"a": "train", "b": "val", "c": "testA"}
    rows = [row(file, [0, 0, 1, 1], split=split) for file, split in splits.items()]
    (tmp_path / "other").mkdir()
    one = write_rows(tmp_path, [*rows, row("b", [0, 0, 1, 1], split="train")])
    other = write_rows(tmp_path / "other", [row("a", [0, 0, 1, 1]), row("d", [0, 0, 1, 1])])
    sources = [ExpressionFile(str(path), "photos") for path in (one, other)]
    assert sources[0].held_out() == {"b", "c"}
    assert held_out_images(sources) == {"a", "b", "c", "d"}
    assert held_out_images([]) == set()


@pytest.mark.parametrize(
    "line, message",
    [
        ({"file": "a"}, 'line 2: expected an object with the texts "file" and "expression"'),
        (row("a", [0, 0, 1, 1], " "), "line 2: expected an object"),
        (["a"], "line 2: expected an object"),
        (row("a", [0, 0, 1]), "line 2: .*a box must be four numbers"),
        (row("a", [10, 20, 50, 75]), "line 2: .*as shares of the image, got"),
        (row("a", [0.5, 0.2, 0.5, 0.7]), "line 2: .*as shares of the image, got"),
        (row("a", None) | {"bbox": [1, 2, 3, 4]}, "line 2: .*need the image's width and height"),
        (row("a", None) | {"bbox": [1, 2, 0, 4], "width": 9, "height": 9}, "line 2: .*no area"),
        (row("a", None) | {"bbox": "x", "width": 9, "height": 9}, "line 2: .*bbox of four numbers"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, message):
    path = write_rows(tmp_path, [row("a", [0, 0, 1, 1]), line])
    with pytest.raises(ValueError, match=message):
        ExpressionFile(str(path), "photos").open()


def test_files_without_rows(tmp_path):
    with pytest.raises(ValueError, match="absent: no such file"):
        ExpressionFile(str(tmp_path / "absent"), "photos").open()
    path = write_rows(tmp_path, [row("a", [0, 0, 1, 1])])
    with pytest.raises(ValueError, match="no row has split='testB'"):
        ExpressionFile(str(path), "photos", "testB").open()
    path.write_text("\n")
    with pytest.raises(ValueError, match="jsonl: no rows"):
        ExpressionFile(str(path), "photos").open()
    path.write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        ExpressionFile(str(path), "photos").open()


@pytest.mark.slow
def test_real_boxes(shared, tmp_path):
    """A decoder that answers with the whole photo is right where the box fills half of it."""
    folder = shared / "data" / "coco_mini"
    rows, areas = [], []
    for line in (folder / "annotations.jsonl").read_text().splitlines():
        photo = json.loads(line)
        for box in (photo["boxes"] or [])[:3]:
            sizes = {"width": photo["width"], "height": photo["height"]}
            rows.append({"file": photo["file"], "expression": "it", "bbox": box["bbox"], **sizes})
            areas.append(box["bbox"][2] * box["bbox"][3] / photo["width"] / photo["height"])
    source = ExpressionFile(str(write_rows(tmp_path, rows)), str(folder / "images"))
    whole = training_ids("refer", phrase="it", box=[0, 0, 1, 1])
    found = Referring(source=source, max_num_patches=16)(saying(writes_caption(), whole))
    assert found["unparsed"] == found["unreadable"] == 0 and len(rows) > 50
    assert found["acc@0.5"] == pytest.approx(np.mean(np.array(areas) >= 0.5)) and found["acc@0.5"]
    assert found["mean_iou"] == pytest.approx(np.mean(areas), abs=1e-6)
