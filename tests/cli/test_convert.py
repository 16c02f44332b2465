"""`siglip2 convert` and `siglip2 info`."""

import json

import numpy as np
import pytest

from siglip2_jax import checkpoints

FORMATS = ("npz", "hf", "orbax")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.slow
def test_every_format(siglip2, model_dir, tmp_path, name):
    target = tmp_path / ("model.npz" if name == "npz" else "model")
    result = siglip2("convert", model_dir, target, "--to", name, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    expected, found = checkpoints.read(model_dir), checkpoints.read(target)
    assert found.format == summary["format"] == name and found.config == expected.config
    assert summary["tensors"] == len(expected.params)
    # The tokenizer goes along where there is room for it.
    assert (found.tokenizer is None) == (summary["tokenizer"] is None) == (name == "npz")
    for path, tensor in expected.params.items():
        np.testing.assert_array_equal(found.params[path].read(), tensor.read(), err_msg=path)

    refused = siglip2("convert", model_dir, target, "--to", name)
    assert refused.code == 2 and f"{target} exists" in refused.err
    assert siglip2("convert", model_dir, target, "--to", name, "--overwrite").code == 0


def test_info(siglip2, model_dir, bare_npz):
    facts = json.loads(siglip2("info", model_dir, "--json").out)
    assert facts["format"] == "hf" and facts["variant"] == "none of the released sizes"
    assert facts["vision"]["width"] == 24 and facts["text"]["vocab_size"] == 1024
    sizes = {path: np.prod(x.shape) for path, x in checkpoints.read(model_dir).params.items()}
    assert facts["parameters"]["total"] == sum(sizes.values())
    assert facts["parameters"]["total"] - 2 == sum(
        facts["parameters"][tower] for tower in ("vision", "text")
    )
    assert facts["temperature"] == pytest.approx(np.exp(2.3), abs=1e-3) and facts["bias"] == -9.5
    assert facts["preprocessing"] == facts["text_norm"] == "reference"
    assert facts["tokenizer"] == str(model_dir / "tokenizer.model")

    bare = siglip2("info", bare_npz)
    assert bare.code == 0 and bare.err == ""
    assert "native (NaFlex)" in bare.out and "none beside the model" in bare.out
