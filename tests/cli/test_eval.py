"""`siglip2 eval`: a model, some data, numbers; nothing but paths is needed."""

import json
import sys

import jax
import pytest
from PIL import Image
from train.processes import LIGHT, ONE_LENGTH, metrics, train
from train.runs import run, save_run, stage

from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.sharding import make_mesh

NAMES = "red", "green", "blue"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`caltech101_20` in plain colours, all in its validation split."""
    root = tmp_path_factory.mktemp("data")
    (root / "caltech101_20" / "images").mkdir(parents=True)
    rows = []
    for i in range(9):
        path = root / "caltech101_20" / "images" / f"{i}.png"
        Image.new("RGB", (8, 8 + i), NAMES[i % 3]).save(path)
        rows.append(json.dumps({"file": path.name, "split": "val", "name": NAMES[i % 3]}))
    path.write_bytes(b"no photo")
    (root / "caltech101_20" / "labels.jsonl").write_text("\n".join(rows))
    return root


def test_numbers_report_and_json(siglip2, model_dir, data, tmp_path):
    out, file = tmp_path / "out", tmp_path / "out.json"
    command = ["eval", model_dir, "--task", "caltech,coco", "--data", data]
    found = siglip2(*command, "--budgets", "4,9", "--out", out, "--json", file)
    assert found.code == 0
    lines = found.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "caltech, 4 patches",
        "caltech, 9 patches",
        "coco, 4 patches",
        "coco, 9 patches",
        "report",
    ]
    assert "top1 " in lines[0] and "9 images" in lines[0] and "data wait" in lines[0]
    assert "no data" in lines[2] and "dataset_coco.json" in lines[2]
    assert "counted as wrong: " in found.err and "8.png" in found.err
    rows = json.loads(file.read_text())
    assert [row["dataset"] for row in rows] == ["caltech", "caltech"] + ["mscoco_captions"] * 2
    assert rows[0]["task"] == "zeroshot_classification" and rows[0]["metrics"].keys() == {
        "acc1",
        "acc5",
        "mean_per_class_recall",
    }
    page = (out / "report.html").read_text()
    assert "caltech" in page and "dataset_coco.json" in page
    assert (out / "report.md").is_file() and (out / "report.json").is_file()


def test_without_the_extra_the_way_to_a_page_is_said(
    siglip2, model_dir, data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    for name in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"siglip2_jax.benchmarks.report.{name}", raising=False)
    command = ["eval", model_dir, "--task", "labels", "--data", data / "caltech101_20"]
    found = siglip2(*command, "--max-num-patches", 9, "--out", tmp_path)
    assert found.code == 0 and found.out.endswith(f"report: {tmp_path / 'report.md'}\n")
    assert "pip install 'siglip2_jax[report]'" in found.err
    assert not (tmp_path / "report.html").exists()


def test_data_may_be_the_data_set_itself(siglip2, model_dir, data):
    found = siglip2("eval", model_dir, "--task", "labels", "--data", data / "caltech101_20")
    assert found.code == 0 and found.out.startswith("labels, 256 patches: top1 ")


def test_prompts_are_chosen_and_named(siglip2, model_dir, data, tmp_path):
    out, file = tmp_path / "out", tmp_path / "out.json"
    command = ["eval", model_dir, "--task", "labels", "--data", data / "caltech101_20"]
    command += ["--max-num-patches", 9, "--out", out, "--json", file]
    assert siglip2(*command).code == 0
    (row,) = json.loads(file.read_text())
    assert row["siglip2_jax"]["protocol"]["templates"] == "clip_paper"
    assert "templates clip_paper" in (out / "report.md").read_text()
    assert siglip2(*command, "--templates", "a photo of a {}").code == 0
    (row,) = json.loads(file.read_text())
    assert row["siglip2_jax"]["protocol"]["templates"] == "a photo of a {}"
    for report in ("report.md", "report.html"):
        assert "templates a photo of a {}" in (out / report).read_text()
    assert len(list((out / "results").iterdir())) == 2
    with pytest.raises(SystemExit, match="2"):
        siglip2(*command, "--templates", "a photo")


@pytest.mark.slow
def test_prompts_of_the_run_are_compared(siglip2, data, tmp_path):
    evals = (ZeroShot(source=Folder("nowhere")),)  # with the default, "a photo of a {}"
    save_run(tmp_path / "run", run(stage(evals=evals)), [10], make_mesh(1, jax.devices()[:1]))
    command = ["eval", tmp_path / "run", "--task", "labels,caltech", "--max-num-patches", 9]
    command += ["--data", data / "caltech101_20"]

    def line(*options) -> str:
        found = siglip2(*command, *options)
        assert found.code == 0
        lines = [x for x in found.err.splitlines() if "counted as wrong" not in x]
        return "\n".join(x for x in lines if x.startswith("siglip2:"))

    differs = "measured with the prompts {}, but the run's evaluators used a photo of a {{}}; see"
    assert differs.format("clip_paper") in line()  # of labels; caltech has that prompt
    assert line("--templates", "a photo of a {}") == ""


RUN = """
import dataclasses
from siglip2_jax.config import load_config
from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.zero_shot import ZeroShot

def config():
    run = load_config({light!r})
    rows = Folder({root!r}, captions="labels.jsonl", template="{{name}}")
    val = ZeroShot(source=rows, name="val", templates=("a {{}} thing",), max_num_patches=9)
    stage = dataclasses.replace(run.stages[0], evals=(val,))
    return dataclasses.replace(run, stages=(stage,))
"""


@pytest.mark.slow
def test_a_run_is_measured_as_it_measured_itself(siglip2, data, tmp_path):
    root, workdir, file = data / "caltech101_20", tmp_path / "run", tmp_path / "out.json"
    (tmp_path / "config.py").write_text(RUN.format(light=str(LIGHT), root=str(root)))
    (end,) = train(tmp_path / "config.py", workdir, "stages.main.steps=10", *ONE_LENGTH)
    assert end.code == 0, end.text
    (stage,) = json.loads((workdir / "config.json").read_text())["stages"]
    assert stage["evals"][0]["templates"] == ["a {} thing"]
    command = ["eval", workdir, "--task", "labels", "--data", root, "--max-num-patches", 9]
    assert "the run's evaluators used a {} thing" in siglip2(*command).err
    found = siglip2(*command, "--templates", "a {} thing", "--json", file)
    assert found.code == 0 and "evaluators" not in found.err
    (row,) = json.loads(file.read_text())
    top1 = metrics(workdir)[-1]["eval/val/top1"]
    assert row["metrics"]["acc1"] == pytest.approx(top1, abs=1e-9)


def test_suite(siglip2, model_dir, data, tmp_path):
    path = tmp_path / "suite.py"
    path.write_text(
        "from siglip2_jax.benchmarks.suite import Entry, Suite\n"
        "def suite():\n    return Suite((Entry('caltech', (4,)), Entry('refcoco_val')))\n"
    )
    found = siglip2("eval", model_dir, "--suite", path, "--data", data)
    assert found.code == 0 and len(found.out.splitlines()) == 2
    assert "refs(unc).p" in found.out.splitlines()[1]


def test_no_data_at_all_is_no_success(siglip2, model_dir, tmp_path):
    found = siglip2("eval", model_dir, "--task", "imagenet", "--data", tmp_path)
    assert found.code == 1 and "classnames.json" in found.out


def test_tasks_are_listed(siglip2):
    found = siglip2("eval", "-", "--task", "list")
    assert found.code == 0 and {"imagenet", "coco", "xm3600"} <= set(found.out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "pass one of --task NAME and --suite FILE"),
        (("--task", "a", "--suite", "b"), "pass one of --task NAME and --suite FILE"),
        (("--task", "caltech"), "--data is None; expected the directory"),
        (("--task", "caltech", "--data", "/nowhere"), "--data is /nowhere; expected"),
        (("--task", "caltec", "--data", "."), "there is no task 'caltec'; there are imagenet"),
        (("--suite", "none.py", "--data", "."), "none.py: no such file; expected a Python file"),
    ],
)
def test_bad_input_is_one_sentence(siglip2, model_dir, options, message):
    found = siglip2("eval", model_dir, *options)
    assert found.code == 2 and message in found.err and len(found.err.splitlines()) == 1
