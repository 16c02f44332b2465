"""Runs in proportion: nothing changes at 1, everything fits together below."""

import pytest

from siglip2_jax.config.scale import ScaledRecipe
from siglip2_jax.models.config import RELEASES

FULL, SMALL = ScaledRecipe(1.0), ScaledRecipe(1e-6)


@pytest.mark.parametrize("variant", RELEASES, ids=lambda v: v.name)
def test_published_at_one(variant):
    assert FULL.model(variant.config) == variant.config
    assert (FULL.steps(976_562), FULL.batch(32_768), FULL.tokens(1024)) == (976_562, 32_768, 1024)
    assert (FULL.side(378, 14), FULL.width(1152), FULL.depth(27)) == (378, 1152, 27)


@pytest.mark.parametrize("variant", RELEASES, ids=lambda v: v.name)
@pytest.mark.parametrize("value", [1e-7, 1e-6, 3e-5, 1e-3, 0.3])
def test_sizes_fit_together(variant, value):
    """Heads divide widths, patches fill images; embeddings of both towers have one size."""
    model = ScaledRecipe(value).model(variant.config, vocab_size=1024)
    vision, text = model.vision, model.text
    assert vision.width == text.embed_dim and text.vocab_size == 1024
    assert vision.width % vision.num_heads == text.width % text.num_heads == 0
    assert vision.patch_size == variant.config.vision.patch_size and text.length == 64
    if vision.image_size is not None:
        assert vision.image_size == vision.grid * vision.patch_size
    assert (vision.image_size is None) == (variant.config.vision.image_size is None)


def test_proportions():
    """A millionth of the examples: a thousandth of batch and steps, a tenth of the width."""
    assert SMALL.steps(1_220_703) * SMALL.batch(32_768) == pytest.approx(40_000, rel=0.03)
    assert SMALL.steps(20_000) == 20 and SMALL.batch(32_768) == 32
    assert SMALL.width(768) == 64 and SMALL.depth(12) == 2 and SMALL.tokens(1024) == 102
    assert SMALL.side(256, 16) == SMALL.side(256, 32) == 96  # a teacher may cut finer patches
    assert ScaledRecipe(1e-12).steps(10) == 1 and ScaledRecipe(1e-12).tokens(64) == 4


@pytest.mark.parametrize("value", [0, -1.0, 1.5])
def test_no_share(value):
    with pytest.raises(ValueError, match="it is a share of the run, above 0 and up to 1"):
        ScaledRecipe(float(value))
