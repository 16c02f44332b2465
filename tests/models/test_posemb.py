"""The position table resized by two matrices, against a float64 formula and JAX's own resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.builders import patches
from models.numpy_reference import positions, resize_matrix

from siglip2_jax.models.posemb import PositionTable, grid_size, triangle_weights

GRIDS = [(16, 16), (4, 64), (64, 4), (1, 64), (7, 36), (23, 34), (128, 8), (1, 1), (1, 300)]


@pytest.fixture(scope="module")
def table():
    return PositionTable(16, 24, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [1, 2, 7, 15, 16, 17, 36, 64, 100, 1000])
def test_weights_equal_the_float64_formula(size):
    found = triangle_weights(jnp.arange(size)[None], jnp.array([size]), 16)[0]
    np.testing.assert_allclose(found, resize_matrix(size, 16), atol=2e-6)


@pytest.mark.parametrize("grid", [1, 7, 14, 16, 24, 27, 32, 63])
def test_the_native_grid_is_exactly_the_identity(grid):
    found = triangle_weights(jnp.arange(grid)[None], jnp.array([grid]), grid)[0]
    np.testing.assert_array_equal(found, np.eye(grid))
    table = PositionTable(grid, 8, rngs=nnx.Rngs(1))
    image = patches([(grid, grid)], grid * grid)
    embedded = jax.jit(table.__call__)(image.yx, image.valid)[0]
    np.testing.assert_array_equal(embedded, table.table[...].reshape(grid * grid, 8))


@pytest.mark.parametrize("grid", GRIDS)
def test_any_grid_equals_both_references(table, grid):
    rows, columns = grid
    image = patches([grid], rows * columns + 3)
    found = table(jnp.asarray(image.yx), jnp.asarray(image.valid))[0, : rows * columns]
    values = np.asarray(table.table[...])
    np.testing.assert_allclose(found, positions(values.astype(float), *grid), atol=2e-6)
    resized = jax.image.resize(values, (rows, columns, 24), "linear", antialias=True)
    np.testing.assert_allclose(found, resized.reshape(-1, 24), atol=2e-6)


def test_grid_size_counts_valid_patches_only():
    image = patches([(3, 5), (0, 0), (6, 1)], 20)
    np.testing.assert_array_equal(
        grid_size(jnp.asarray(image.yx), jnp.asarray(image.valid)), [(3, 5), (0, 0), (6, 1)]
    )
