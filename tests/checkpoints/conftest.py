"""Small checkpoints, the same in every run, whose values show any misplaced element."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from siglip2_jax.checkpoints import Checkpoint, Lazy, Preprocessing
from siglip2_jax.checkpoints.checkpoint import param_shapes
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig

TOWER = {"depth": 3, "mlp_dim": 40}
TEXT = TextConfig(**TOWER, width=24, num_heads=2, vocab_size=50, embed_dim=36)
VISION = VisionConfig(**TOWER, width=36, num_heads=3, patch_size=4, grid=5, image_size=22)
FIXED = ModelConfig(vision=VISION, text=TEXT)
NAFLEX = ModelConfig(
    vision=VisionConfig(
        depth=2, mlp_dim=40, width=36, num_heads=3, patch_size=4, grid=5, image_size=None
    ),
    text=TEXT,
)
MAP = dataclasses.replace(FIXED, text=dataclasses.replace(TEXT, pool="map"))


def values(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Cheap values without a short period, other ones for every path."""
    base = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(65_521)
    return np.resize(base.astype(np.float32), shape)


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[[ModelConfig], Checkpoint]:
    """Makes a checkpoint of the given sizes; its tensors are computed when they are read."""

    def make(config: ModelConfig) -> Checkpoint:
        params = {
            path: Lazy(
                shape, np.dtype(np.float32), lambda path=path, shape=shape: values(path, shape)
            )
            for path, shape in param_shapes(config).items()
        }
        return Checkpoint(config, params, None, Preprocessing(), "orbax", "made")

    return make


@pytest.fixture(params=[FIXED, NAFLEX], ids=["fixed", "naflex"])
def checkpoint(request, make_checkpoint) -> Checkpoint:
    """A tiny model, of fixed and of native resolution; its towers differ in every size."""
    return make_checkpoint(request.param)


@pytest.fixture
def fixed(make_checkpoint) -> Checkpoint:
    return make_checkpoint(FIXED)


@pytest.fixture
def naflex(make_checkpoint) -> Checkpoint:
    return make_checkpoint(NAFLEX)


@pytest.fixture
def mapped(make_checkpoint) -> Checkpoint:
    """Its texts are pooled by attention."""
    return make_checkpoint(MAP)


@pytest.fixture(scope="session")
def assert_equal() -> Callable[[Checkpoint, Checkpoint], None]:
    """Checks that all parameters are float32 and the same to the bit."""

    def check(found: Checkpoint, expected: Checkpoint) -> None:
        assert found.params.keys() == expected.params.keys()
        for path, tensor in found.params.items():
            array = tensor.read()
            assert array.dtype == np.float32 and array.shape == tensor.shape, path
            np.testing.assert_array_equal(array, expected.params[path].read(), err_msg=path)

    return check
