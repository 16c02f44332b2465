"""`siglip2 push`, and the results that `siglip2 convert` writes into a model card."""

import json

import pytest

from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.checkpoints import hub


def measured(pretrained, top1=0.7031, **fields):
    return Result(
        dataset="imagenet",
        task="zeroshot_classification",
        model="B/16 256",
        pretrained=str(pretrained),
        metrics={"top1": top1, "top1/part": 0.5},
        protocol={"num_patches": 256, "resolution": 256, "templates": "clip_paper"},
        **fields,
    ).to_json()


@pytest.fixture
def pushed(monkeypatch):
    """The calls of `push`, without a hub."""
    asked = []

    def push(directory, repository, **options):
        asked.append((directory, repository, options))
        return hub.Upload(f"https://hub/{repository}", "0123", hub.exported_files(directory))

    monkeypatch.setattr(hub, "push", push)
    return asked


def test_push(siglip2, model_dir, tmp_path, pushed):
    export = tmp_path / "export"
    assert siglip2("convert", model_dir, export, "--to", "hf").code == 0
    plain = siglip2("push", export, "me/flowers")
    assert (plain.code, plain.out) == (0, "https://hub/me/flowers\n")
    (export / "notes.txt").write_text("for me")
    words = ["--private", "--revision", "v2", "--message", "Second"]
    result = siglip2("push", export, "me/flowers", *words)
    assert result.out.splitlines() == [
        "not uploaded, as they are no part of the export: notes.txt",
        "https://hub/me/flowers",
    ]
    summary = json.loads(siglip2("push", export, "me/flowers", "--json").out)
    assert summary["url"] == "https://hub/me/flowers" and summary["commit"] == "0123"
    assert summary["not_uploaded"] == ["notes.txt"] and "README.md" in summary["files"]
    default = {"private": None, "revision": None, "message": None}
    chosen = {"private": True, "revision": "v2", "message": "Second"}
    expected = [default, chosen, default]
    assert pushed == [(str(export), "me/flowers", options) for options in expected]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/absent", "me/flowers"], "there is no such directory"),
        (["{tmp}", "me/flowers"], "it is no export; write one with `siglip2 convert"),
        (["{tmp}", "flowers"], "'flowers' is no name of a repository"),
    ],
)
def test_what_cannot_be_pushed(siglip2, tmp_path, words, said):
    result = siglip2("push", *(word.format(tmp=tmp_path) for word in words))
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1
    assert said in result.err


@pytest.mark.parametrize("report", [False, True])
def test_results_that_are_named(siglip2, model_dir, tmp_path, report):
    rows = [measured("anywhere")]
    results = tmp_path / "mine.json"
    results.write_text(json.dumps({"results": rows, "rows": []} if report else rows))
    result = siglip2(
        "convert", model_dir, tmp_path / "hf", "--to", "hf", "--results", results, "--json"
    )
    assert result.code == 0 and json.loads(result.out)["results"] == str(results)
    card = (tmp_path / "hf" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| imagenet")]
    assert row.startswith("| imagenet | 256 px | top1 | 70.31 | ")
    assert row.endswith("| templates clip_paper |") and "anywhere" not in card


def test_results_beside_the_source(siglip2, bare_npz, tmp_path):
    source = tmp_path / "model.npz"
    source.write_bytes(bare_npz.read_bytes())
    rows = [measured(source), measured("another.npz", 0.1)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    result = siglip2("convert", source, tmp_path / "hf", "--to", "hf")
    expected = f"wrote {tmp_path / 'hf'}, with results of {tmp_path / 'results.json'}\n"
    assert (result.code, result.out) == (0, expected)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| top1 | 70.31 |" in card and "| top1 | 10.00 |" not in card


@pytest.mark.parametrize("content", ["[]", "not JSON", '{"results": 1}', '[{"dataset": "x"}]'])
def test_files_of_other_programs_are_passed_over(siglip2, bare_npz, tmp_path, content):
    source = tmp_path / "model.npz"
    source.write_bytes(bare_npz.read_bytes())
    (tmp_path / "report.json").write_text(content)
    assert siglip2("convert", source, tmp_path / "hf", "--to", "hf").code == 0
    assert "## Results" not in (tmp_path / "hf" / "README.md").read_text()
    named = ["--results", tmp_path / "report.json", "--overwrite"]
    result = siglip2("convert", source, tmp_path / "hf", "--to", "hf", *named)
    assert result.code == 2 and f"{tmp_path}/report.json" in result.err


def test_results_of_several_models_are_refused(siglip2, model_dir, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([measured("a"), measured("b")]))
    words = ["convert", model_dir, tmp_path / "x", "--results", tmp_path / "r.json", "--to"]
    result = siglip2(*words, "hf")
    assert result.code == 2 and "holds results of 2 models (a, b), expected those of" in result.err
    result = siglip2(*words, "orbax")
    assert result.code == 2 and "--to orbax has none" in result.err
    assert not (tmp_path / "x").exists()
