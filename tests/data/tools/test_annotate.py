"""Rows with regions: written, limited, continued after a stop; what is left out is listed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from data.samples import picture
from PIL import Image

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.regions import Region, read_regions
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.tools.annotate import Limits, Summary, annotate
from siglip2_jax.data.tools.annotators import Annotations, Detections

DOG = {"category": "dog", "bbox": [10, 7, 20, 14], "iscrowd": 0, "segmentation": [[1, 2]]}


@dataclass(frozen=True)
class StandIn:
    """Finds every query, the longer the surer, in a box that tells the image's width."""

    step: float = 0.05

    def detect(self, image: Image.Image, queries: Sequence[str]) -> list[Region]:
        box = (0.0, 0.0, 0.5, 10 / image.width)
        return [Region(box, query, self.step * len(query)) for query in queries]


def write_folder(path, changes=()):
    """Eight rows of pictures 40 + i pixels wide; row 3 has no picture and row 6 half of one."""
    (path / "images").mkdir(parents=True)
    rows = []
    for i in range(8):
        row = {"file": f"{i}.png", "captions": [f"a dog {i}", "the dog"], "width": 40, "height": 28}
        rows.append({**row, "boxes": [DOG] if i else None, "é": "\u2028"})
        data = b"nothing" if i == 3 else picture(i, 40 + (i if i == 1 else 0), 28, "PNG")
        data = data[: len(data) // 2] if i == 6 else data
        (path / "images" / row["file"]).write_bytes(data)
    for i, change in changes:
        rows[i] |= change
    (path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return rows


@pytest.fixture
def rows(tmp_path):
    return write_folder(tmp_path)


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_annotated_boxes(tmp_path, rows):
    steps, out = [], tmp_path / "regions.jsonl"
    done = annotate(Folder(str(tmp_path)), out, Annotations(), progress=lambda *n: steps.append(n))
    # Row 1 is a pixel wider than its row says, which rounding explains.
    assert done == Summary(rows=6, regions=5, skipped=2, resumed=0)
    region = {"box": [0.25, 0.25, 0.75, 0.75], "phrase": "dog", "score": 1.0}
    kept = [row | {"regions": [region] if i else []} for i, row in enumerate(rows)]
    assert lines(out) == [row for i, row in enumerate(kept) if i not in (3, 6)]
    assert steps == [(i + 1, 8) for i in range(8)]
    errors = lines(tmp_path / "regions.errors.jsonl")
    assert [(row["index"], row["file"]) for row in errors] == [(3, "3.png"), (6, "6.png")]
    assert "not an image file" in errors[0]["error"] and "6.png" in errors[1]["error"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("images", "captions.jsonl", "regions.jsonl", "regions.errors.jsonl")
    }
    examples = Folder(str(tmp_path), captions="regions.jsonl").open()
    assert read_regions(examples[1]) == (Region((0.25, 0.25, 0.75, 0.75), "dog", 1.0),)
    assert examples[1]["captions"] == ("a dog 1", "the dog")


def test_a_missing_file_stops_and_can_be_put_back(tmp_path, rows):
    image, out = tmp_path / "images" / "4.png", tmp_path / "regions.jsonl"
    data = image.read_bytes()
    image.unlink()
    with pytest.raises(SourceError, match=r"4\.png: there is no such file; put it back, or remove"):
        annotate(Folder(str(tmp_path)), out, Annotations())
    assert not out.exists()
    image.write_bytes(data)
    assert annotate(Folder(str(tmp_path)), out, Annotations()).skipped == 2


def test_detections_are_of_the_captions_and_limited(tmp_path, rows):
    annotator = Detections(StandIn(), longest=2)
    annotate(Folder(str(tmp_path)), tmp_path / "a.jsonl", annotator)
    found = lines(tmp_path / "a.jsonl")[2]["regions"]
    assert found[0]["box"] == [0, 0, 0.5, 0.25]
    # "2" scores 0.05, below the lowest score; "a dog" and "dog 2" the same, and keep their order.
    assert [(x["phrase"], round(x["score"], 9)) for x in found] == [
        *(("the dog", 0.35), ("a dog", 0.25), ("dog 2", 0.25), ("dog", 0.15))
    ]
    limits = Limits(min_score=0.2, count=2)
    annotate(Folder(str(tmp_path)), tmp_path / "b.jsonl", annotator, limits)
    assert lines(tmp_path / "b.jsonl")[2]["regions"] == found[:2]
    blank = Image.new("RGB", (4, 4))
    assert Detections(StandIn())(blank, {"captions": ("a photo", "of it")}) == []


def test_a_part_of_the_rows(tmp_path, rows):
    source = Folder(str(tmp_path), where=(("file", "2.png"),))
    assert annotate(source, tmp_path / "a.jsonl", Annotations()).rows == 1
    assert lines(tmp_path / "a.jsonl")[0]["file"] == "2.png"
    assert not (tmp_path / "a.errors.jsonl").exists()


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_an_interrupted_job_continues(tmp_path, rows, stop):
    class Stopped(Exception):
        pass

    def progress(done, total):
        if done == stop:
            raise Stopped

    source, out = Folder(str(tmp_path)), tmp_path / "deeper" / "out.jsonl"
    with pytest.raises(Stopped):
        annotate(source, out, Annotations(), progress=progress)
    partial = out.with_name("out.jsonl.partial")
    assert not out.exists() and partial.is_dir()
    with pytest.raises(ValueError, match=r"was made with limits 'Limits\(min_score=0.1"):
        annotate(source, out, Annotations(), Limits(0.5))
    steps = []
    done = annotate(source, out, Annotations(), progress=lambda *n: steps.append(n))
    assert done == Summary(rows=6, regions=5, skipped=2, resumed=stop)
    assert steps == [(i + 1, 8) for i in range(stop, 8)]
    annotate(source, tmp_path / "whole.jsonl", Annotations())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"out.jsonl", "out.errors.jsonl"}
    with pytest.raises(ValueError, match="out.jsonl exists already; choose another name"):
        annotate(source, out, Annotations())


def test_rows_that_changed_or_a_damaged_file_are_noticed(tmp_path, rows):
    source, record = Folder(str(tmp_path)), tmp_path / "out.jsonl.partial" / "settings.json"
    with pytest.raises(ZeroDivisionError):
        annotate(source, tmp_path / "out.jsonl", Annotations(), progress=lambda *_: 1 / 0)
    begun = record.read_bytes()
    (tmp_path / "captions.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match=r"settings.json was made with rows .*\(now"):
        annotate(source, tmp_path / "out.jsonl", Annotations())
    assert record.read_bytes() == begun
    record.write_bytes(b"{\n" + begun)
    with pytest.raises(
        ValueError, match=r"settings.json is damaged .* delete .*\.partial to start"
    ):
        annotate(source, tmp_path / "out.jsonl", Annotations())


def test_rows_the_annotator_refuses(tmp_path):
    turned, broken = {"width": 28, "height": 40}, {"boxes": [{"bbox": 1}]}
    write_folder(tmp_path, [(1, turned), (2, broken)])
    done = annotate(Folder(str(tmp_path)), tmp_path / "out.jsonl", Annotations())
    assert done.skipped == 4
    errors = [row["error"] for row in lines(tmp_path / "out.errors.jsonl")]
    assert "boxes are of an image of 28 x 40 pixels" in errors[0]
    assert "box 0 must have a category" in errors[1]


def test_nothing_could_be_used(tmp_path):
    write_folder(tmp_path, [(i, {"boxes": 1}) for i in range(8)])
    done = annotate(Folder(str(tmp_path)), tmp_path / "out.jsonl", Annotations())
    assert done == Summary(rows=0, regions=0, skipped=8, resumed=0)
    names = {path.name for path in tmp_path.glob("out*")}
    assert names == {"out.errors.jsonl"}


@pytest.mark.parametrize("options", [{"min_score": -0.1}, {"min_score": 2.0}, {"count": 0}])
def test_limits_are_checked(options):
    with pytest.raises(ValueError, match="must be"):
        Limits(**options)


def test_development_boxes(tmp_path, shared):
    source = Folder(str(shared / "data/coco_mini"), captions="annotations.jsonl")
    out = tmp_path / "regions.jsonl"
    done = annotate(source, out, Annotations())
    assert done == Summary(rows=187, regions=1086, skipped=0, resumed=0)
    examples = Folder(source.path, captions=str(out)).open()
    assert sum(len(read_regions(examples[i])) for i in range(len(examples))) == 1086
