"""Studies of curation and of aspect ratio: what they count, cut and write into their pages."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.samples import picture
from etils import epath
from flax import nnx
from models.builders import TINY
from PIL import Image

from siglip2_jax.config import load_config
from siglip2_jax.data.mismatched import FIELD
from siglip2_jax.data.text import read_rows
from siglip2_jax.models.siglip2 import SigLIP2
from siglip2_jax.objectives.base import View
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.types import Batch, Features, Patches

ROOT = Path(__file__).parents[2]
PAGES = ("evidence", "evidence_curation", "evidence_aspect")
R10 = ("image_to_text@10", "text_to_image@10")


def load(name: str):
    """A script of the studies, and with it the modules of its config."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = sys.path[:]
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def curation():
    return load("evidence_curation")


@pytest.fixture(scope="module")
def aspect():
    return load("evidence_aspect")


@pytest.fixture
def data(tmp_path) -> Path:
    """Twenty training images of Flickr8k and one to measure."""
    folder = tmp_path / "data" / "flickr8k_1k"
    (folder / "images").mkdir(parents=True)
    rows = [
        {"file": f"{i}.jpg", "split": "train" if i < 20 else "val", "captions": [f"no {i}"]}
        for i in range(21)
    ]
    for i, row in enumerate(rows):
        (folder / "images" / row["file"]).write_bytes(picture(i))
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_teacher_and_student_share_no_image(curation, data, tmp_path):
    """The student has ten images, three of them noise."""
    prepared = tmp_path / "prepared"
    for _ in range(2):  # as when a study goes on
        curation.prepare(data, prepared)
    rows = [row for _, row in read_rows(prepared / "flickr8k" / "captions.jsonl")]
    assert [row["file"] for row in rows] == [f"{i}.jpg" for i in range(20)]
    student = {row["file"] for row in rows if row["part"] == "student"}
    exchanged = {row["file"] for row in rows if row["exchanged"]}
    assert len(student) == 10 and len(exchanged) == 3 and exchanged < student
    small = sys.modules["small_curation"]

    def files(arm: str) -> dict[str, bool]:
        opened = small.source_of(arm, "", str(prepared)).open()
        examples = [opened[i] for i in range(len(opened))]
        right = {Path(x["name"]).name: x["captions"] for x in examples}
        return {name: captions == (f"no {name[:-4]}",) for name, captions in right.items()}

    noisy = files("curated")
    assert set(noisy) == student and {x for x, right in noisy.items() if not right} == exchanged
    assert noisy == files("uniform")
    assert files("clean") == dict.fromkeys(student - exchanged, True)
    (right, weight), *others = small.source_of("teacher", str(data), str(prepared)).parts
    opened = right.open()
    owned = {Path(opened[i]["name"]).name for i in range(len(opened))}
    assert owned == {row["file"] for row in rows} - student
    assert weight == sum(x for _, x in others)


def test_arms_differ_in_what_they_say(curation, data, tmp_path):
    """A curated step reads twice what uniform reads; both train on 32 from the same base."""
    assert curation.ARMS[0] == "uniform"
    stages = {}
    for arm in curation.ARMS:
        (stages[arm],) = load_config(
            curation.CONFIG, [f"data={data}", f"prepared={data}", "runs=/r", f"arm={arm}"]
        ).resolved
    reads = {arm: stage.read_size for arm, stage in stages.items()}
    assert reads == {"uniform": 32, "curated": 64, "informed": 64, "clean": 32}
    assert {(x.batch_size, x.start.workdir) for x in stages.values()} == {(32, "/r/base/seed0")}
    teachers = [stages[arm].curation.teacher.workdir for arm in ("curated", "informed")]
    assert teachers == ["/r/teacher/seed0", "/r/informed_teacher/seed0"]
    with pytest.raises(ValueError, match="arm is 'x'; there are base, teacher"):
        load_config(curation.CONFIG, ["arm=x"])


def test_the_loss_counts_clean_pairs(curation):
    n, rng = 8, np.random.default_rng(0)
    image = Patches(
        np.zeros((n, 1, 3), np.float32), np.zeros((n, 1, 2), np.int32), np.ones((n, 1), bool)
    )
    marks = jnp.asarray([1, 0, 0, 1, 0, 0, 1, 0], jnp.float32)
    batch = Batch(image, np.zeros((n, 4), np.int32), {FIELD: marks})
    rows = rng.normal(size=(2, n, 24)).astype(np.float32)
    images, texts = (jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True)) for x in rows)
    features = Features(None, images, images, None, np.ones((n, 2), np.int32), texts)
    view = View(
        SigLIP2(TINY, rngs=nnx.Rngs(0)), None, features, batch, jax.random.key(0), jnp.int32(0)
    )
    counting = sys.modules["small_curation"].CountingSigmoid()
    (loss, report), (plain, usual) = counting.loss(None, view), Sigmoid().loss(None, view)
    assert loss == plain and report.pop("clean") == 1 - 3 / 8 and report.keys() == usual.keys()


def test_shares_of_clean_pairs_by_steps(curation):
    """The last interval is shorter; lines of evaluators alone count in none."""
    width = curation.INTERVAL
    values = [0.5, 1.0] * (width // 2) + [1.0] * width + [0.0, 0.5]
    lines = [{"step": i + 1, "sigmoid/clean": x} for i, x in enumerate(values)]
    lines.insert(3, {"step": 3, "eval/flickr8k/image_to_text@10": 0.1})
    assert curation.clean_shares(lines) == [0.75, 1.0, 0.25]


def test_clean_pairs_above_noisy_ones(curation):
    marks = np.array([False, False, True, True])
    assert curation.above(np.array([0.9, 0.4, 0.5, 0.1]), marks) == 3 / 4
    assert curation.above(np.array([0.5, 0.4, 0.5, 0.5]), marks) == 1 / 4


def test_tables_of_curation(curation):
    def row(arm, seed, clean, recall):
        scores = dict.fromkeys((f"eval/flickr8k/{x}" for x in R10), recall)
        scores["eval/flickr8k/text_to_image@10"] += 0.1
        return {"arm": arm, "seed": seed, "clean": clean, "scores": scores}

    runs = [
        row("uniform", 0, [0.7, 0.7], 0.2),
        row("curated", 0, [0.8, 0.9], 0.3),
        row("uniform", 1, [0.6, 0.8], 0.2),
        row("curated", 1, [0.8, 1.0], 0.24),
    ]
    floor = row("", 0, [], 0.1)["scores"] | {"tells": 0.9}
    lines = list(curation.tables({"runs": runs, "floors": {"informed_teacher": floor}}))
    assert lines[2] == "| informed teacher |  | 15.0 | 10.0 | 20.0 |  | 90.0 |"
    assert lines[3].startswith("| uniform | 70.0 | 25.0 | 20.0 | 30.0 |")
    assert lines[6].startswith("| minus uniform | clean among those trained on, % | mean R@10")
    assert lines[8].startswith("| curated | +17.5 (-14.3 to +49.3) | +7.0 (-31.1 to +45.1) |")
    assert lines[-4:] == [
        "| clean, %, in steps | 1–50 | 51–100 |",
        "|---|---|---|",
        "| uniform | 65.0 ± 7.1 | 75.0 ± 7.1 |",
        "| curated | 80.0 | 95.0 ± 7.1 |",
    ]


@pytest.mark.parametrize(
    ("size", "elongation", "wanted"),
    [
        ((300, 200), 4.0, (300, 75)),
        ((200, 300), 4.0, (75, 300)),
        ((200, 300), 1.0, (200, 200)),
        ((500, 100), 4.0, (400, 100)),
        ((100, 100), 2.0, (100, 50)),
        ((2, 1), 8.0, (2, 1)),
    ],
)
def test_strips_are_as_large_as_their_shape_allows(aspect, size, elongation, wanted):
    assert sys.modules["small_aspect"].strip_size(size, elongation) == wanted


def test_strips_lie_at_the_centre(aspect):
    """A photo whose pixels tell their column and row."""
    small = sys.modules["small_aspect"]
    rows, columns = np.indices((80, 120), np.uint8)
    image = Image.fromarray(np.stack([columns, rows, rows], -1))
    rng = np.random.default_rng(0)
    cut = np.asarray(small.Strip((4.0, 4.0))({"image": image}, rng)["image"])
    assert cut.shape == (30, 120, 3)
    assert cut[0, 0].tolist() == [0, 25, 25] and cut[-1, -1].tolist() == [119, 54, 54]
    assert small.Squash(16)({"image": image}, rng)["image"].size == (16, 16)


def test_random_strips_have_all_shapes_alike(aspect):
    """Ratios from 1 to 2 are as many as those from 2 to 4; none is beyond."""
    strip, rng = sys.modules["small_aspect"].Strip((1.0, 4.0)), np.random.default_rng(0)
    image = Image.new("RGB", (800, 600))
    sizes = [strip({"image": image}, rng)["image"].size for _ in range(400)]
    ratios = np.array([width / height for width, height in sizes])
    assert 1 <= ratios.min() < 1.05 and 3.9 < ratios.max() <= 4.01
    assert 0.42 < np.mean(ratios < 2) < 0.58


def test_both_arms_see_the_same_strips_at_the_same_budget(aspect, data):
    """Their transforms differ in the last alone, in training and in validation."""
    stages = {}
    for arm in aspect.ARMS:
        (stages[arm],) = load_config(aspect.CONFIG, [f"data={data}", f"arm={arm}"]).resolved
    square, native = stages["square"], stages["native"]
    assert square.data.transforms[:-1] == native.data.transforms and square.model == native.model
    assert square.lengths == native.lengths and square.data.source == native.data.source
    preprocess = ImagePreprocessor(16, None)
    for a, b in zip(square.evals, native.evals, strict=True):
        assert a.name == b.name and a.max_num_patches == b.max_num_patches == 64
        if not a.name.startswith("flickr8k"):
            continue
        squashed, kept = a.source.open()[0], b.source.open()[0]
        assert squashed["captions"] == kept["captions"] == ("no 20",)
        assert squashed["image"].size == (128, 128)
        assert preprocess.grid((128, 128), 64) == (8, 8)
        wanted = {"whole": (40, 28), "1to1": (28, 28), "2to1": (40, 20), "4to1": (40, 10)}
        assert kept["image"].size == wanted[a.name.removeprefix("flickr8k_")]
    used = aspect.patches_used([x for x in native.evals if "flickr8k" in x.name], preprocess)
    assert used["flickr8k_4to1"] == used["flickr8k_1to1"] == 64 > used["flickr8k_2to1"]
    with pytest.raises(ValueError, match="arm is 'x'; there are square, native"):
        load_config(aspect.CONFIG, ["arm=x"])


def test_tables_of_aspect_ratios(aspect):
    def scores(square_bin, long_bin):
        values = {"1to1": square_bin, "4to1": long_bin, "2to1": 0.3, "whole": 0.3}
        return {f"eval/flickr8k_{name}/{x}": value for name, value in values.items() for x in R10}

    runs = [
        {"arm": "square", "seed": 0, "scores": scores(0.3, 0.2)},
        {"arm": "native", "seed": 0, "scores": scores(0.31, 0.26)},
        {"arm": "square", "seed": 1, "scores": scores(0.3, 0.2)},
        {"arm": "native", "seed": 1, "scores": scores(0.31, 0.24)},
    ]
    names = [f"{x}_{cut}" for x in ("flickr8k", "caltech101") for cut in aspect.BINS]
    patches = {arm: dict.fromkeys(names, 60.0) for arm in aspect.ARMS}
    floors = {"untrained square, seed 0": scores(0.1, 0.1)}
    lines = list(aspect.tables({"runs": runs, "floors": floors, "patches": patches}))
    heads = [cell.strip() for cell in lines[0].split("|")]
    assert heads[2:6] == ["R@10 whole, %", "R@10 1:1, %", "R@10 2:1, %", "R@10 4:1, %"]
    assert lines[2].startswith("| untrained square | 30.0 | 10.0 | 30.0 | 10.0 |")
    assert lines[4].startswith("| native | 30.0 | 31.0 | 30.0 | 25.0 ± 1.4 |")
    last = [cell.strip() for cell in lines[8].split("|")]
    assert last[1] == "native" and last[5:7] == ["+5.0 (-7.7 to +17.7)", "+4.0 (-8.7 to +16.7)"]
    assert lines[-1] == "| native, caltech101 | 60.0 | 60.0 | 60.0 | 60.0 |"


@pytest.mark.parametrize("name", PAGES)
def test_a_report_replaces_what_is_between_the_marks(name, aspect, tmp_path):
    studies = sys.modules["studies"]
    page = tmp_path / f"{name}.md"
    before = (ROOT / "docs" / page.name).read_text()
    page.write_text(before)
    for lines in (["| old |"], ["| a |", "| b |"]):
        studies.write_report(page, {"runs": [1, 2], "cpu_hours": 0.5}, lines)
    after = page.read_text()
    done = "\n2 runs, 0.5 CPU hours of training.\n\n| a |\n| b |\n\n"
    assert after.split(studies.START)[1].split(studies.END)[0] == done
    for outside in (lambda x: x.split(studies.START)[0], lambda x: x.split(studies.END)[1]):
        assert outside(after) == outside(before)
    assert json.loads((tmp_path / f"{name}.json").read_text())["cpu_hours"] == 0.5


def test_no_run_begins_beyond_the_budget(aspect, tmp_path):
    studies, begun = sys.modules["studies"], []
    runs = [studies.Run("a", i, epath.Path(tmp_path), (), 1) for i in range(3)]

    def train(run) -> int:
        begun.append(run.seed)
        with (tmp_path / "cpu.jsonl").open("a") as file:
            file.write(json.dumps({"cpu_s": 1500}) + "\n")
        return 0

    timed = studies.timed(train, tmp_path, 0.6)
    codes = [timed(run) for run in runs]
    assert codes == [0, 0, 143] and begun == [0, 1]
    rows = [row for _, row in read_rows(tmp_path / "cpu.jsonl")]
    assert [row.get("seed") for row in rows] == [None, 0, None, 1]
    assert studies.spent(tmp_path) == pytest.approx(3000 / 3600, abs=0.01)


def test_mistakes_are_one_sentence(curation, tmp_path, monkeypatch, capsys):
    """Data that are not there end a script with code 2, without a traceback."""
    arguments = ["x", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "out"), "--try"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert sys.modules["studies"].exit_code(curation.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "captions.jsonl" in error
