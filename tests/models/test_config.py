"""The table of releases against the published sizes."""

import math

import pytest

from siglip2_jax.models.config import (
    RELEASES,
    SIGLIP1_RELEASES,
    ModelConfig,
    TextConfig,
    Tower,
    VisionConfig,
    find_variant,
    two_towers,
)
from siglip2_jax.models.siglip2 import abstract_model, flatten

# Name, grid, tokens, millions of parameters: vision (pooling head included), text, total.
PUBLISHED = [
    ("B/32 256", 8, 64, 94.6, 282.3, 376.9),
    ("B/16 224", 14, 196, 92.9, 282.3, 375.2),
    ("B/16 256", 16, 256, 92.9, 282.3, 375.2),
    ("B/16 384", 24, 576, 93.2, 282.3, 375.5),
    ("B/16 512", 32, 1024, 93.5, 282.3, 375.8),
    ("L/16 256", 16, 256, 316.0, 565.6, 881.5),
    ("L/16 384", 24, 576, 316.3, 565.6, 881.9),
    ("L/16 512", 32, 1024, 316.7, 565.6, 882.3),
    ("So400m/14 224", 16, 256, 427.7, 707.8, 1135.5),
    ("So400m/14 384", 27, 729, 428.2, 707.8, 1136.0),
    ("So400m/16 256", 16, 256, 427.9, 707.8, 1135.7),
    ("So400m/16 384", 24, 576, 428.3, 707.8, 1136.0),
    ("So400m/16 512", 32, 1024, 428.8, 707.8, 1136.6),
    ("g-opt/16 256", 16, 256, 1163.2, 708.2, 1871.4),
    ("g-opt/16 384", 24, 576, 1163.7, 708.2, 1871.9),
    ("B/16 NaFlex", 16, None, 92.9, 282.3, 375.2),
    ("So400m/16 NaFlex", 16, None, 427.9, 707.8, 1135.7),
]


@pytest.mark.parametrize(("variant", "published"), list(zip(RELEASES, PUBLISHED, strict=True)))
def test_parameter_counts_are_the_published_ones(variant, published):
    leaves = flatten(abstract_model(variant.config)[1])
    count = {
        prefix: round(
            sum(math.prod(x.shape) for k, x in leaves.items() if k.startswith(prefix)) / 1e6, 1
        )
        for prefix in ("vision/", "text/", "")
    }
    vision = variant.config.vision
    assert (variant.name, vision.grid, vision.num_patches, *count.values()) == published


def test_every_release_is_found_by_its_sizes():
    every = RELEASES + SIGLIP1_RELEASES
    assert [find_variant(v.config) for v in every] == list(every)
    assert len({v.hf for v in every}) == len({v.npz for v in every}) == 25


def test_sizes_survive_json():
    for variant in RELEASES + SIGLIP1_RELEASES:
        assert ModelConfig.from_json(variant.config.to_json()) == variant.config


def test_native_resolution_is_told_apart():
    assert two_towers("B", patch_size=16, image_size=None).native_resolution
    assert not two_towers("B", patch_size=16, image_size=256).native_resolution


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="width 100 cannot be split into 3 heads"):
        Tower(width=100, depth=1, mlp_dim=1, num_heads=3)


@pytest.mark.parametrize("name", ["width", "depth", "mlp_dim", "num_heads"])
def test_a_tower_has_some_of_everything(name):
    sizes = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1} | {name: 0}
    with pytest.raises(ValueError, match="each must be at least 1"):
        Tower(**sizes)


def test_an_unknown_size_is_answered_with_the_sizes():
    with pytest.raises(ValueError, match="no size 'H'; choose one of B, L, So400m, g-opt, or"):
        two_towers("H", patch_size=16, image_size=None)


TOWER = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1}
VISION = {**TOWER, "patch_size": 4, "grid": 2, "image_size": None}
TEXT = {**TOWER, "vocab_size": 10, "embed_dim": 8}


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"width": 16}, {}, "8 values and image embeddings 16, .* set text.embed_dim to 16"),
        ({"patch_size": 0}, {}, "patch_size 0 and grid 2; each must be at least 1"),
        ({"grid": 0}, {}, "patch_size 4 and grid 0; each must be at least 1"),
        ({"image_size": 3}, {}, "images of 3 pixels hold no patch of 4"),
        ({}, {"vocab_size": 0}, "vocab_size 0, embed_dim 8 and length 64; each"),
        ({}, {"embed_dim": 0}, "embed_dim 0"),
        ({}, {"length": 0}, "length 0"),
        ({}, {"pad_id": 10}, "pad_id is 10; it must be one of the 10 token ids"),
        ({}, {"pad_id": -1}, "pad_id is -1"),
    ],
)
def test_sizes_that_make_no_model_are_refused(vision, text, message):
    ModelConfig(vision=VisionConfig(**VISION), text=TextConfig(**TEXT))
    with pytest.raises(ValueError, match=message):
        ModelConfig(vision=VisionConfig(**VISION | vision), text=TextConfig(**TEXT | text))


def test_other_ways_to_pool_texts_are_refused():
    with pytest.raises((ValueError, TypeError), match="pool"):  # the type checker may be faster
        TextConfig(**TEXT, pool="mean")
