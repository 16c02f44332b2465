"""Tasks, one after the other: found or missing, measured once, remembered while nothing changes."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from siglip2_jax.benchmarks import suite as suites
from siglip2_jax.benchmarks.suite import (
    Entry,
    Suite,
    evaluate,
    parse_entries,
    protocol,
)
from siglip2_jax.benchmarks.suite_file import load_suite
from siglip2_jax.benchmarks.tasks.base import Setting
from siglip2_jax.benchmarks.tasks.catalogue import all_tasks, choose_tasks
from siglip2_jax.benchmarks.tasks.held_out import held_out
from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.testing import TINY_FIXED, tiny_embedder

NAMES = "red", "green", "blue"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`caltech101_20` with plain colours, one of them no photo, and `flickr8k_1k`."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, file in (("caltech101_20", "labels.jsonl"), ("flickr8k_1k", "captions.jsonl")):
        (root / name / "images").mkdir(parents=True)
        rows = []
        for i in range(24):
            colour = rng.integers(0, 60, 3)
            colour[i % 3] = 250
            path = root / name / "images" / f"{i}.png"
            Image.new("RGB", (8 + i % 4, 12), tuple(map(int, colour))).save(path)
            split = "train" if i < 12 else "val"
            fields = {"name": NAMES[i % 3]} if "labels" in file else {"captions": [f"photo {i}"]}
            rows.append(json.dumps({"file": path.name, "split": split} | fields))
        (root / name / file).write_text("\n".join(rows))
    (root / "caltech101_20" / "images" / "20.png").write_bytes(b"no photo")
    return root


def entries(*names: str) -> Suite:
    return Suite(tuple(Entry(name, (9,)) for name in names))


def test_results_say_how_they_were_made(data):
    model = tiny_embedder()
    caltech, flickr, coco = evaluate(
        model, entries("caltech", "flickr8k", "coco"), data, pretrained="here"
    )
    assert caltech.metrics.keys() == {"top1", "top5", "mean_per_class"}
    assert (caltech.model, caltech.pretrained, caltech.task) == (
        "custom",
        "here",
        "zeroshot_classification",
    )
    assert caltech.images == 12 and caltech.images_per_s > 0 and 0 <= caltech.data_wait <= 1
    assert len(caltech.failed) == 1 and "20.png" in caltech.failed[0]
    assert caltech.protocol == {
        "num_patches": 9,
        "resolution": None,
        "preproc": "reference",
        "text_norm": "reference",
        "dtype": "float32",
        "weights": "float32",
        "canonical": False,
        "ties": "wrong",
        "border": 0,
        "crop": 1.0,
        "templates": "a photo of a {}",
    }
    assert flickr.metrics.keys() == {
        f"{way}@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    assert flickr.protocol["full_stop"] == "keep" and flickr.images == 12
    assert coco.metrics == {} and "dataset_coco.json" in coco.missing
    assert "Karpathy" in coco.missing and str(data / "coco") in coco.missing


def test_one_device_and_eight_give_the_same_numbers(data):
    """To the last digit, by rows that agree to rounding."""
    plan = entries("caltech", "flickr8k")
    model = tiny_embedder()
    alone = [x.metrics for x in evaluate(model, plan, data, pretrained="", batch_size=2)]
    model.replicate_over(jax.devices())
    assert model.mesh.size == 8
    shared = [x.metrics for x in evaluate(model, plan, data, pretrained="", batch_size=16)]
    assert shared == alone


def test_what_is_done_is_not_done_again(data, tmp_path, monkeypatch):
    plan, out = entries("caltech", "flickr8k"), tmp_path / "out"
    first = list(evaluate(tiny_embedder(), plan, data, out, pretrained="x"))
    assert not (out / "parts").exists()

    def refuse(*_, **__):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(suites, "_measure", refuse)
        assert list(evaluate(tiny_embedder(), plan, data, out, pretrained="x")) == first
        with pytest.raises(AssertionError, match="measured again"):  # other weights
            list(evaluate(tiny_embedder(seed=1), plan, data, out, pretrained="x"))
        other = Suite((Entry("caltech", (4,)),))
        with pytest.raises(AssertionError, match="measured again"):  # another protocol
            list(evaluate(tiny_embedder(), other, data, out, pretrained="x"))
    (path, *_) = (out / "results").iterdir()
    path.write_text("{")
    again = list(evaluate(tiny_embedder(), plan, data, out, pretrained="x"))
    assert [x.metrics for x in again] == [x.metrics for x in first]


def test_prompts_are_chosen_named_and_told_apart(data, tmp_path):
    model, plan, out = tiny_embedder(), entries("caltech", "labels", "flickr8k"), tmp_path / "out"

    def measured(*templates):
        root = data / "caltech101_20"
        return list(evaluate(model, plan, root, out, pretrained="", templates=templates))

    caltech, labels, _ = measured()
    assert caltech.protocol["templates"] == "a photo of a {}"
    assert labels.protocol["templates"] == "clip_paper"
    for templates in (("{}",), ("a {}", "the {}")):
        caltech, labels, flickr = measured(*templates)
        rows = Folder(
            str(data / "caltech101_20"),
            captions="labels.jsonl",
            where=(("split", "val"),),
            template="{name}",
        )
        with pytest.warns(UserWarning, match=r"20\.png"):
            alone = ZeroShot(source=rows, templates=templates, max_num_patches=9)(model)
        assert caltech.metrics == labels.metrics == alone
        assert caltech.protocol["templates"] == " / ".join(templates)
        assert flickr.missing and "templates" not in flickr.protocol
    before = len(list((out / "results").iterdir()))
    many = ("a {}", "the {}", "one {}", "my {}"), ("a {}", "the {}", "one {}", "some {}")
    for templates in many:  # of one name, and yet two measurements
        assert measured(*templates)[0].protocol["templates"] == "4 from 'a {}' on"
    assert len(list((out / "results").iterdir())) == before + 4


def test_fixed_resolution_is_measured_once(data):
    model = tiny_embedder(TINY_FIXED)
    plan = Suite((Entry("caltech", (4, 9, 16)),))
    (found,) = evaluate(model, plan, data, pretrained="")
    assert found.protocol["num_patches"] == 16 and found.protocol["resolution"] == 16


def test_every_task_can_be_found_or_says_how(tmp_path):
    tasks = all_tasks()
    for name, task in tasks.items():
        assert task.name == name and task.setup_hint and not task.setup_hint.endswith(".")
        if task.required_files:
            assert task.find(tmp_path) is None
            assert task.missing(tmp_path).startswith(str(tmp_path / task.folder))
    with pytest.raises(ValueError, match="there is no task 'imagnet'; there are imagenet, "):
        choose_tasks(["imagnet"])


def test_published_sets_are_read_from_their_directory(tmp_path):
    for name in ("xm3600", "sugarcrepe"):
        (task,) = choose_tasks([name])
        evaluator = task.make(Setting(root=tmp_path, budget=4))
        assert (evaluator.path, evaluator.max_num_patches) == (str(tmp_path), 4)


def test_folder_or_data_directory(data):
    (task,) = choose_tasks(["caltech"])
    assert task.find(data) == task.find(data / "caltech101_20") == data / "caltech101_20"


def test_folders_of_classes(data, tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / f"{name}_thing").mkdir()
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}_thing" / f"{i}.png")
    (task,) = choose_tasks(["folders"])
    evaluator = task.make(Setting(root=tmp_path, budget=4))
    assert isinstance(evaluator, ZeroShot)
    assert evaluator.classes.names == ("blue thing", "green thing", "red thing")
    assert protocol(evaluator, tiny_embedder(), 4)["templates"] == "clip_paper"


def test_suites_are_files(tmp_path):
    found = load_suite("configs/evals/paper.py")
    assert {entry.task.name for entry in found.entries} > {"imagenet", "coco", "xm3600"}
    (tmp_path / "s.py").write_text("def suite():\n    return 3")
    with pytest.raises(ValueError, match="must return a Suite, not int"):
        load_suite(tmp_path / "s.py")
    with pytest.raises(ValueError, match="no task was given"):
        parse_entries(" , ", (9,))
    with pytest.raises(ValueError, match="budgets are \\(0,\\)"):
        parse_entries("caltech", (0,))


def test_which_rows_are_measured_on(tmp_path):
    path = tmp_path / "rows.jsonl"

    def found(*splits):
        path.write_text("\n".join(json.dumps({"split": x} if x else {}) for x in splits))
        return held_out(path)

    assert found("train", "test", "val") == (("split", "test"),)
    assert found("train", "val") == (("split", "val"),)
    assert found(None, None) == ()
    with pytest.raises(ValueError, match="its splits are train; expected test"):
        found("train")


def test_a_suite_takes_a_task_of_its_own(data, tmp_path):
    """No catalogue holds it: the suite's file makes the task itself."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from siglip2_jax.benchmarks.suite import Entry, Suite\n"
        "from siglip2_jax.benchmarks.tasks.base import Task\n"
        "from siglip2_jax.data import Folder\n"
        "from siglip2_jax.evals.retrieval import Retrieval\n\n"
        "def make(setting):\n"
        "    return Retrieval(source=Folder(str(setting.root)), max_num_patches=setting.budget)\n\n"
        "MINE = Task(name='mine', kind='zeroshot_retrieval', folder='flickr8k_1k',\n"
        "    required_files=('captions.jsonl',), setup_hint='make it', make=make,\n"
        "    metric='text_to_image@1')\n\n"
        "def suite():\n"
        "    return Suite((Entry(MINE, (9,)), Entry('flickr8k', (9,))))\n"
    )
    plan = load_suite(file)
    assert [entry.task.name for entry in plan.entries] == ["mine", "flickr8k"]
    mine, _ = evaluate(tiny_embedder(), plan, data, pretrained="here")
    assert mine.dataset == "mine" and 0 <= mine.metrics["text_to_image@1"] <= 1
    with pytest.raises(ValueError, match="mine: budgets"):
        Entry(plan.entries[0].task, (0,))
