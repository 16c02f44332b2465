"""`siglip2 eval`: a model, some data, numbers; nothing but paths is needed."""

import json

import pytest
from PIL import Image

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


def test_data_may_be_the_data_set_itself(siglip2, model_dir, data):
    found = siglip2("eval", model_dir, "--task", "labels", "--data", data / "caltech101_20")
    assert found.code == 0 and found.out.startswith("labels, 256 patches: top1 ")


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
