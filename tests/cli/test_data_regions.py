"""`siglip2 data regions`, and the targets made of its rows in `siglip2 data inspect`."""

import json
import os
import re
import sys

import pytest
from data.samples import picture

from siglip2_jax.data.regions import Region, read_regions
from siglip2_jax.data.sources import Folder

DOG = {"category": "Dog <b>", "bbox": [16, 8, 32, 16], "iscrowd": 0}
CONFIG = """
from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.objectives.sigmoid import Sigmoid


def config():
    stage = Stage(
        name="main",
        steps=1,
        batch_size=4,
        data=Data(
            source=Folder({path!r}, captions="regions.jsonl"),
            transforms=(DecoderTargets(str(TOKENIZER)),),
        ),
        lengths=Lengths(budgets=(8, 16), batch_scale=()),
        objectives={{"sigmoid": Sigmoid()}},
    )
    return TrainConfig(model=tiny_config(), stages=(stage,), tokenizer=str(TOKENIZER))
"""


@pytest.fixture
def folder(tmp_path):
    """Four pictures with a box, and one that is no picture."""
    path = tmp_path / "pairs"
    (path / "images").mkdir(parents=True)
    rows = []
    for i in range(5):
        (path / "images" / f"{i}.jpg").write_bytes(picture(i, 64, 32) if i < 4 else b"no picture")
        rows.append({"file": f"{i}.jpg", "captions": [f"number {i}"], "width": 64, "height": 32})
        rows[-1]["boxes"] = [DOG, DOG]
    (path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_annotated_boxes_become_targets_that_are_drawn(siglip2, folder, tmp_path):
    options = "data", "regions", "--folder", folder, "--captions", "annotations.jsonl"
    options += "--annotations", "--max-per-image", 1, "--out", folder / "regions.jsonl"
    result = siglip2(*options, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"rows": 4, "regions": 4, "skipped": 1, "resumed": 0}
    assert "regions: 5/5" in result.err
    errors = (folder / "regions.errors.jsonl").read_text()
    assert "4.jpg" in errors and len(errors.splitlines()) == 1
    examples = Folder(str(folder), captions="regions.jsonl").open()
    region = Region((0.25, 0.25, 0.75, 0.75), "Dog <b>", 1.0)
    assert [read_regions(examples[i]) for i in range(4)] == [(region,)] * 4
    again = siglip2(*options)
    assert again.code == 2 and "regions.jsonl exists already" in again.err

    (tmp_path / "config.py").write_text(CONFIG.format(path=str(folder)))
    page = tmp_path / "batch.html"
    result = siglip2("data", "inspect", tmp_path / "config.py", "--count", 4, "--out", page)
    assert result.code == 0, result.err
    lines = re.findall(r"<br>(\w+: .*?)(?=<br>|<)", page.read_text())
    assert lines.count("refer: dog &lt;b&gt; [0.250 0.250 0.750 0.750]") == 8
    assert lines.count("ground: dog &lt;b&gt; [0.250 0.250 0.750 0.750]") == 8
    assert lines.count("caption: number 0") == 2


def test_categories_are_looked_for_in_every_image(siglip2, folder, monkeypatch):
    """The lines of a file, each once, in place of what the captions say."""
    asked = []

    class Detector:
        def __init__(self, repo, device, *, threshold):
            self.threshold = threshold

        def detect(self, image, queries):
            asked.append(queries)
            return [Region((0.0, 0.0, 0.5, 0.5), queries[-1], 0.6)]

        def __repr__(self):
            return "Detector()"

    monkeypatch.setattr("siglip2_jax.data.tools.owlv2.Owlv2Detector", Detector)
    (folder / "categories.txt").write_text("dog\n\n  red kite \ndog\n", encoding="utf-8-sig")
    options = "data", "regions", "--folder", folder, "--captions", "annotations.jsonl"
    options += "--detector", "owlv2", "--categories", folder / "categories.txt"
    result = siglip2(*options, "--out", folder / "regions.jsonl")
    assert result.code == 0, result.err
    assert asked == [("dog", "red kite")] * 4
    examples = Folder(str(folder), captions="regions.jsonl").open()
    assert [x.phrase for i in range(4) for x in read_regions(examples[i])] == ["red kite"] * 4


def test_no_row_can_be_used(siglip2, folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no image")
    options = "data", "regions", "--folder", folder, "--captions", "annotations.jsonl"
    result = siglip2(*options, "--annotations", "--out", folder / "regions.jsonl")
    assert result.code == 1 and "0 rows with 0 regions, 5 left out" in result.out
    assert not (folder / "regions.jsonl").exists() and (folder / "regions.errors.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--annotations",), "captions.jsonl: no such file"),
        (("--captions", "annotations.jsonl", "--detector", "owlv2"), "siglip2_jax[regions]"),
        (
            ("--captions", "annotations.jsonl", "--annotations", "--model", "x"),
            "--model, --device and --categories are of --detector",
        ),
        (
            ("--captions", "annotations.jsonl", "--annotations", "--categories", "x"),
            "--model, --device and --categories are of --detector",
        ),
        (
            ("--captions", "annotations.jsonl", "--detector", "owlv2", "--categories", "no.txt"),
            "no.txt",
        ),
        (
            ("--captions", "annotations.jsonl", "--detector", "owlv2", "--categories", os.devnull),
            f"{os.devnull} is empty; expected one object category per line",
        ),
    ],
)
def test_bad_input_is_one_sentence(siglip2, folder, options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    before = sorted(folder.iterdir())
    result = siglip2("data", "regions", "--folder", folder, "--out", folder / "r.jsonl", *options)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--annotations", "--min-score", "1.1"), "'1.1' is not a number from 0 to 1"),
        (("--annotations", "--min-score", "nan"), "'nan' is not a number from 0 to 1"),
        (("--annotations", "--max-per-image", "0"), "not a whole number of at least 1"),
        (("--annotations", "--detector", "owlv2"), "not allowed with argument"),
        ((), "one of the arguments --annotations --detector is required"),
    ],
)
def test_options_are_checked(siglip2, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        siglip2("data", "regions", "--folder", "x", "--out", "y.jsonl", *options)
    assert error.value.code == 2 and message in capsys.readouterr().err
