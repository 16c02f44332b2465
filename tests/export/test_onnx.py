"""Exports to ONNX, run by onnxruntime as a user runs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import siglip2_jax
from siglip2_jax.cli import main
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import shipped_examples
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.export import onnx_graphs, onnx_int8
from siglip2_jax.export.onnx_embedder import OnnxEmbedder
from siglip2_jax.export.onnx_graphs import export_onnx, sample_patches
from siglip2_jax.export.onnx_int8 import Int8
from siglip2_jax.testing import TINY, TINY_FIXED, tiny_embedder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.onnx

# Two blocks: their weights are stacked, so that each is a slice that folding makes a constant.
DEEP = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, depth=2),
    text=dataclasses.replace(TINY.text, depth=2),
)
LABELS = ["a dog", "a cat, asleep"]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "native"
    export_onnx(tiny_embedder(DEEP), path, labels=LABELS)
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "fixed"
    export_onnx(tiny_embedder(TINY_FIXED), path)
    return path


def run(directory: Path, name: str, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        directory / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


@pytest.mark.parametrize("grid", [(3, 20), (14, 18), (1, 70), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_gives_our_embeddings_on_any_grid(native, grid, batch):
    images = sample_patches(DEEP, np.random.default_rng(batch), [grid] * batch)
    embeddings = run(native, "image", **vars(images))
    assert embeddings.shape == (batch, TINY.text.embed_dim)
    np.testing.assert_allclose(
        embeddings, tiny_embedder(DEEP).embed_images(images), rtol=0, atol=1e-6
    )


def test_padding_changes_nothing(native):
    rng = np.random.default_rng(0)
    images = sample_patches(DEEP, rng, [(3, 20)])
    assert np.isnan(images.pixels[:, 60:]).all() and images.valid.shape[1] > 60
    bare = {name: x[:, :60] for name, x in vars(images).items()}
    np.testing.assert_allclose(
        run(native, "image", **vars(images)), run(native, "image", **bare), rtol=0, atol=1e-6
    )


def test_gives_our_embeddings_of_texts_and_squares(native, fixed):
    ids = np.random.default_rng(0).integers(0, 1000, (5, 64)).astype(np.int32)
    for directory, config in ((native, DEEP), (fixed, TINY_FIXED)):
        expected = tiny_embedder(config).embed_tokens(ids)
        np.testing.assert_allclose(run(directory, "text", ids=ids), expected, rtol=0, atol=1e-6)
    images = sample_patches(TINY_FIXED, np.random.default_rng(0))
    expected = tiny_embedder(TINY_FIXED).embed_images(images)
    np.testing.assert_allclose(run(fixed, "image", **vars(images)), expected, rtol=0, atol=1e-6)


def test_wrong_shapes_are_errors(native, fixed):
    with pytest.raises(Exception, match="Got: 63 Expected: 64"):
        run(native, "text", ids=np.zeros((1, 63), np.int32))
    images = sample_patches(DEEP, np.random.default_rng(0), [(3, 20)])
    with pytest.raises(Exception, match="Got: 64 Expected: 16"):
        run(fixed, "image", **vars(images))


def test_same_model_gives_the_same_bytes(native, tmp_path):
    export_onnx(tiny_embedder(DEEP), tmp_path / "again", labels=LABELS)
    assert digests(tmp_path / "again") == digests(native)
    assert set(digests(native)) == {
        "image.onnx",
        "text.onnx",
        "export.json",
        "labels.json",
        "siglip2_inputs.py",
        "tokenizer.model",
    }
    other = tiny_embedder(DEEP, seed=1)
    export_onnx(other, tmp_path / "other", labels=LABELS)
    assert digests(tmp_path / "other")["image.onnx"] != digests(native)["image.onnx"]


def test_files_name_the_model(native):
    settings = json.loads((native / "export.json").read_text())
    program = settings["programs"]["image"]
    assert program["opset"] == 23
    assert program["inputs"]["pixels"] == ["float32", "batch", "patches", 48]
    assert set(settings["files"]) == set(digests(native)) - {"export.json"}
    graph = onnx.load(native / "image.onnx")
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 23)]
    (prop,) = graph.metadata_props
    inside = json.loads(prop.value)
    assert prop.key == "siglip2" and inside["weights"] == settings["weights"]
    for section in ("model", "image", "text", "logit"):
        assert inside[section] == settings[section]


def test_labels_are_embedded(native):
    written = json.loads((native / "labels.json").read_text())
    assert written["labels"] == LABELS
    expected = tiny_embedder(DEEP).embed_texts(LABELS)
    np.testing.assert_allclose(written["embeddings"], expected, rtol=0, atol=1e-6)


def test_large_weights_are_beside_the_graph(native, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "MOST_INSIDE", 10_000)
    export_onnx(tiny_embedder(DEEP), tmp_path / "large", quantize=None)
    assert {"image.onnx.data", "text.onnx.data"} <= set(digests(tmp_path / "large"))
    images = sample_patches(DEEP, np.random.default_rng(0))
    np.testing.assert_array_equal(
        run(tmp_path / "large", "image", **vars(images)), run(native, "image", **vars(images))
    )
    report = export_onnx(tiny_embedder(DEEP), tmp_path / "int8", quantize=Int8())
    assert report["int8"]["text"]["cosine"]["mean"] > 0.99
    settings = json.loads((tmp_path / "int8" / "export.json").read_text())
    assert settings["files"].keys() == digests(tmp_path / "int8").keys() - {"export.json"}


def test_graphs_that_differ_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "TOLERANCE", 1e-12)
    with pytest.raises(ValueError, match="differ from the model's by up to"):
        export_onnx(tiny_embedder(), tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_rounded_weights_are_refused(tmp_path):
    tiny_embedder().save(tmp_path / "model")
    model = siglip2_jax.load(tmp_path / "model", weights="bfloat16")
    with pytest.raises(ValueError, match="weights are rounded to bfloat16"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions")
    rows = [
        json.dumps({"file": x.image.name, "captions": list(x.captions)})
        for x in shipped_examples()[:2]
    ]
    (path / "captions.jsonl").write_text("\n".join(rows))
    (path / "images").symlink_to(shipped_examples()[0].image.parent)
    return path


def test_int8_converts_the_products(native, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_int8, "MOST_RECALL_LOST", 1.0)  # one of two images is half of all
    model = tiny_embedder(DEEP)
    retrieval = Retrieval(source=Folder(str(captions)), max_num_patches=16)
    report = export_onnx(model, tmp_path / "int8", quantize=Int8(retrieval))["int8"]
    # In each block four projections and two of the MLP; the patches; one layer of the head.
    assert report["image"]["converted"] >= 2 * 6 + 1
    assert report["text"] | {"cosine": None} == {"products": 13, "converted": 13, "cosine": None}
    graph = onnx.load(tmp_path / "int8" / "text.onnx").graph
    assert sum(x.op_type == "MatMulInteger" for x in graph.node) == 13
    before, after = (
        OnnxEmbedder(model, directory).embed_texts(LABELS)
        for directory in (native, tmp_path / "int8")
    )
    assert 1e-4 < np.abs(before - after).max() < 0.1
    recall = retrieval(OnnxEmbedder(model, tmp_path / "int8"))
    assert {name: x["after"] for name, x in report["recall"].items()} == recall
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["dtype"] == "int8"
    sizes = [(x / "text.onnx").stat().st_size for x in (native, tmp_path / "int8")]
    assert sizes[1] < 0.6 * sizes[0]


def test_int8_of_unfolded_weights_is_refused(tmp_path):
    weights = onnx.helper.make_tensor("w", 1, [2, 8, 8], np.ones(128, np.float32))
    nodes = []
    for i in range(2):
        index = onnx.helper.make_node("Constant", [], [f"i{i}"], value_int=i)
        slices = onnx.helper.make_node("Gather", ["w", f"i{i}"], [f"w{i}"], axis=0)
        product = onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"])
        nodes += [index, slices, product]
    values = [onnx.helper.make_tensor_value_info(name, 1, [4, 8]) for name in ("x0", "x2")]
    graph = onnx.helper.make_graph(nodes, "unfolded", values[:1], values[1:], [weights])
    opsets = [onnx.helper.make_opsetid("", 23)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "unfolded.onnx")
    with pytest.raises(ValueError, match="only 0 of 2 products with weights can be int8"):
        onnx_int8.quantize(tmp_path / "unfolded.onnx", tmp_path / "int8.onnx")


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ("LEAST_MEAN_COSINE", 1.01, "changes image embeddings too much"),
        ("LEAST_COSINE", 1.01, "changes image embeddings too much"),
        ("MOST_RECALL_LOST", -0.01, "loses too much: image_to_text@1 falls from"),
    ],
)
def test_int8_that_loses_too_much_is_refused(
    captions, tmp_path, monkeypatch, bound, value, message
):
    monkeypatch.setattr(onnx_int8, bound, value)
    retrieval = Retrieval(source=Folder(str(captions)), max_num_patches=16)
    with pytest.raises(ValueError, match=message):
        export_onnx(tiny_embedder(), tmp_path / "bad", quantize=Int8(retrieval))
    assert not list(tmp_path.iterdir())


def test_command(captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_int8, "MOST_RECALL_LOST", 1.0)  # one of two images is half of all
    tiny_embedder().save(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "onnx"]
    options = ["--int8", "--check", str(captions), "--max-num-patches", "16"]
    assert main([*command, *options, "--labels", ",".join(LABELS)]) == 0
    out = capsys.readouterr().out
    assert "7 of 7 products with weights" in out and "text_to_image@1 " in out
    assert (tmp_path / "out" / "labels.json").exists()
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--dtype", "bfloat16"]) == 2
    assert "leave out --dtype" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--check", str(captions)]) == 2
    assert "add --int8" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-6
    assert not (tmp_path / "out" / "labels.json").exists()
