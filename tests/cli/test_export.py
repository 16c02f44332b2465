"""`siglip2 export`."""

import importlib.util
import json
import os

import numpy as np
import pytest

from siglip2_jax import load
from siglip2_jax.export import stablehlo_loader


@pytest.mark.slow
def test_stablehlo(siglip2, model_dir, tmp_path):
    pytest.importorskip("flatbuffers")
    target = tmp_path / "exported"
    arguments = ("export", model_dir, target, "--to", "stablehlo")
    result = siglip2(*arguments, "--text-norm", "canonicalize", "--no-exif", "--json")
    assert result.code == 0, result.err
    summary, model = json.loads(result.out), stablehlo_loader.load(target)
    for key in ("model", "weights", "image", "text", "logit", "programs"):
        assert summary[key] == model.settings[key], key
    assert summary["text"]["norm"] == "canonicalize" and summary["image"]["exif"] is False
    embedder = load(model_dir)
    assert embedder.tokenizer is not None
    ids = embedder.tokenizer(["a cat", "two dogs"]).ids
    expected = embedder.embed_tokens(ids)
    np.testing.assert_allclose(model.embed_tokens(ids), expected, rtol=0, atol=1e-6)
    refused = siglip2(*arguments)
    assert refused.code == 2 and refused.err.endswith(
        f"{target} exists: choose another path, or ask to overwrite it\n"
    )
    assert siglip2(*arguments, "--overwrite").out == f"wrote {target}\n"
    assert os.listdir(tmp_path) == ["exported"]


def test_without_flatbuffers(siglip2, model_dir, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else find(name)
    )
    result = siglip2("export", model_dir, tmp_path / "new", "--to", "stablehlo")
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.endswith("which is not installed: pip install flatbuffers\n")
    assert os.listdir(tmp_path) == []
