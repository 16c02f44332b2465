import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig, two_towers
from siglip2_jax.models.flops import contrastive_flops, forward_flops, training_flops
from siglip2_jax.models.siglip2 import abstract_model
from siglip2_jax.train.chips import CHIPS, find_chip
from siglip2_jax.types import Patches

B16 = two_towers("B", patch_size=16, image_size=None)


def test_hand_count_of_a_small_model():
    vision = VisionConfig(
        width=8, depth=2, mlp_dim=32, num_heads=2, patch_size=2, grid=4, image_size=None
    )
    text = TextConfig(
        width=4, depth=3, mlp_dim=12, num_heads=1, vocab_size=100, embed_dim=8, length=5
    )
    n, t = 6, 5
    image = 2 * n * 12 * 8  # embedding of 2 * 2 * 3 values
    image += 2 * (4 * 2 * n * 8 * 8)  # q, k, v, out of two blocks
    image += 2 * (2 * 2 * n * n * 8)  # scores and mix
    image += 2 * (2 * 2 * n * 8 * 32)  # MLPs
    image += 2 * n * 8 * 2 + 2 * n * 8 * 2  # pooling: scores of two heads, tokens by their weights
    image += 2 * 1 * 8 * 8 + 2 * 1 * 8 * 8 + 2 * 2 * 1 * 8 * 32  # its values, out, its MLP
    texts = 3 * (4 * 2 * t * 4 * 4 + 2 * 2 * t * t * 4 + 2 * 2 * t * 4 * 12)
    texts += 2 * 1 * 4 * 8  # the head reads one position
    config = ModelConfig(vision=vision, text=text)
    assert forward_flops(config, n) == image + texts
    mapped = ModelConfig(vision=vision, text=dataclasses.replace(text, pool="map"))
    pool = 2 * (2 * t * 4 * 1) + 2 * (2 * 4 * 4) + 2 * 2 * 4 * 12  # of one head
    assert forward_flops(mapped, n) == image + texts + pool
    assert training_flops(config, n) == 3 * (image + texts)
    assert training_flops(config, n, frozen=("vision",)) == image + 3 * texts
    assert training_flops(config, n, frozen=("text",)) == 3 * image + texts
    assert training_flops(config, n, frozen=("text", "vision")) == image + texts
    assert training_flops(config, n, idle=("text",)) == 3 * image
    assert training_flops(config, n, frozen=("text", "vision"), idle=("text",)) == image


def test_published_count_of_b16():
    batch = 32_768
    total = batch * training_flops(B16, 256) + 3 * contrastive_flops(batch, B16.vision.width)
    # Others compute a query, and keys and values of all patches, to pool.
    n, d, heads = 256, B16.vision.width, B16.vision.num_heads
    theirs = 2 * d * d + 2 * 2 * n * d * d + 2 * 2 * n * d + 2 * d * d
    ours = 2 * 2 * n * d * heads + 2 * 2 * d * d
    total += 3 * batch * (theirs - ours)
    assert total / 256 == pytest.approx(22.23e12, rel=5e-4)


def test_frozen_must_name_towers():
    with pytest.raises(ValueError, match=r"frozen names \['img'\]"):
        training_flops(B16, 256, frozen=("img",))
    with pytest.raises(ValueError, match=r"idle names \['txt'\]"):
        training_flops(B16, 256, idle=("txt",))


def test_agrees_with_the_compilers_count():
    batch, patches = 2, 64
    shape = {"width": 256, "depth": 2, "mlp_dim": 1024, "num_heads": 4}
    config = ModelConfig(
        vision=VisionConfig(**shape, patch_size=16, grid=2, image_size=None),
        text=TextConfig(**shape, vocab_size=64, embed_dim=256, length=32),
    )
    graphdef, params = abstract_model(config, Compute(scan=False))
    shapes = (
        jax.ShapeDtypeStruct((batch, patches, 768), np.float32),
        jax.ShapeDtypeStruct((batch, patches, 2), np.int32),
        jax.ShapeDtypeStruct((batch, patches), bool),
        jax.ShapeDtypeStruct((batch, 32), np.int32),
    )

    def embed(params, pixels, yx, valid, ids):
        image = Patches(pixels=pixels, yx=yx, valid=valid)
        features = nnx.merge(graphdef, params).encode(image, ids)
        return features.image, features.text

    compiled = jax.jit(embed).lower(params, *shapes).compile()
    counted = compiled.cost_analysis()["flops"]
    ours = batch * forward_flops(config, patches)
    # The compiler counts elementwise work as well.
    assert ours <= counted <= 1.02 * ours


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_chips_are_found_by_device_kind(device_kind, name):
    assert find_chip(device_kind).name == name


def test_no_chip_for_a_cpu():
    assert find_chip(jax.devices("cpu")[0].device_kind) is None


def test_device_kinds_are_unambiguous():
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
