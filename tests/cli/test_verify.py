"""`siglip2 verify`: whole checkpoints pass, damaged and foreign ones do not."""

import json

import numpy as np
import pytest

from siglip2_jax import load
from siglip2_jax.cli import golden
from siglip2_jax.models.config import Variant


def checks(result) -> dict:
    return {check["name"]: check for check in json.loads(result.out)}


@pytest.fixture(scope="module")
def published(model_dir) -> np.ndarray:
    """Logits of the tiny model for the published texts and drawings."""
    return golden.golden_logits(load(model_dir, preproc="hf"))


@pytest.fixture
def release(monkeypatch, model_dir, published):
    """Makes the tiny model a release, with its logits published but for an error."""

    def make(error: float) -> None:
        variant = Variant("Tiny", "tiny", "nobody/tiny", load(model_dir).config)
        monkeypatch.setattr("siglip2_jax.inference.towers.find_variant", lambda config: variant)
        monkeypatch.setitem(golden.LOGITS, "Tiny", published + error)

    return make


def test_a_whole_checkpoint(siglip2, model_dir):
    result = siglip2("verify", model_dir)
    assert result.code == 0 and result.err == ""
    marks = [line.split()[0] for line in result.out.splitlines()]
    assert marks == ["ok", "ok", "ok", "ok", "-"]
    assert "none are published for this model" in result.out


def test_published_logits(siglip2, model_dir, bare_npz, release):
    release(error=5e-4)
    good = checks(siglip2("verify", model_dir, "--json"))["published logits"]
    assert good["passed"] is True and "21 logits agree" in good["detail"]

    release(error=0.1)
    result = siglip2("verify", model_dir, "--json")
    assert result.code == 1
    bad = checks(result)["published logits"]
    assert bad["passed"] is False and "off by 0.1 at most" in bad["detail"]

    asked_not = siglip2("verify", bare_npz, "--no-golden", "--json")
    assert asked_not.code == 0 and checks(asked_not)["published logits"]["passed"] is None
    no_tokenizer = siglip2("verify", bare_npz, "--json")
    assert no_tokenizer.code == 0
    assert "pass --tokenizer" in checks(no_tokenizer)["published logits"]["detail"]


def test_nan_is_named(siglip2, bare_npz, tmp_path):
    model = load(bare_npz)
    positions = model.params["vision"]["pos"]
    positions["table"] = positions["table"].at[1, 2, 3].set(np.nan)
    model.save(tmp_path / "model.npz", "npz")
    result = siglip2("verify", tmp_path / "model.npz")
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "1 of the" in failed[0] and "vision/pos/table" in failed[0]
