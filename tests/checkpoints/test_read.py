"""Refusals that every format has in common: numbers that are none, pointers instead of files."""

import dataclasses

import jax
import numpy as np
import pytest
from train.runs import Sevens, random_state, run, stage

import siglip2_jax
from siglip2_jax.checkpoints import ConversionError, Lazy, NonFiniteError, read, write
from siglip2_jax.checkpoints.orbax import describe
from siglip2_jax.cli import main
from siglip2_jax.config import Checkpoints
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.checkpoint import RunCheckpoints

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 375\n"
BAD = "vision/encoder/blocks/mlp/fc1/bias"


@pytest.fixture
def diverged(fixed):
    """A checkpoint with a NaN and two infinities among the 3 * 40 values of one parameter."""
    array = fixed.params[BAD].read().copy()
    array[1, 3], array[2, 0], array[2, 39] = np.nan, np.inf, -np.inf
    return dataclasses.replace(fixed, params=fixed.params | {BAD: Lazy.of(array)})


@pytest.mark.parametrize("format", ["npz", "hf", "orbax"])
@pytest.mark.slow
def test_nan_and_infinity_are_refused_by_name(tmp_path, diverged, format, capsys):
    path = tmp_path / "model"
    write(diverged, path, format)
    sentence = f"{path}: 3 of the 120 values of {BAD} are NaN or infinite"
    for load in (siglip2_jax.load, siglip2_jax.SigLIP2.from_pretrained):
        with pytest.raises(NonFiniteError) as caught:
            load(path)
        assert str(caught.value).startswith(sentence) and "diverged" in str(caught.value)
    assert main(["convert", str(path), str(tmp_path / "out"), "--to", "npz"]) == 2
    assert capsys.readouterr().err.startswith(f"siglip2: error: {sentence}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_run_that_diverged_is_refused(tmp_path):
    config = run(stage())
    state = random_state(Sevens(config.resolved[0]), make_mesh(1, jax.devices()[:1]), 3)
    t = jax.tree.map(lambda x: x + np.float32(np.nan), state.params["t"])
    record = describe(config.resolved[0].model, config.preprocessing) | {"stage": "main"}
    checkpoints = RunCheckpoints(tmp_path, Checkpoints(every=1))
    checkpoints.save(dataclasses.replace(state, params=state.params | {"t": t}), 3, record)
    checkpoints.close()
    with pytest.raises(NonFiniteError, match="1 of the 1 values of t are NaN or infinite"):
        read(tmp_path).params["t"].read()
    assert np.isfinite(read(tmp_path).params["b"].read())


def test_sums_that_overflow_are_not_taken_for_infinity(tmp_path, fixed):
    large = np.full(fixed.params[BAD].shape, 3e38, np.float32)
    params = fixed.params | {BAD: Lazy.of(large)}
    write(dataclasses.replace(fixed, params=params), tmp_path / "a.npz", "npz")
    np.testing.assert_array_equal(read(tmp_path / "a.npz").params[BAD].read(), large)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_lfs_pointer_for_a_file(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(POINTER)
    with pytest.raises(ConversionError, match=f"model{suffix}: .*is a Git LFS pointer.*lfs pull"):
        read(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_lfs_pointer_for_a_file_of_a_directory(tmp_path, fixed, name):
    write(fixed, tmp_path / "hf", "hf")
    (tmp_path / "hf" / name).write_bytes(POINTER)
    with pytest.raises(ConversionError, match=f"{name}: it is a Git LFS pointer.*lfs pull"):
        read(tmp_path / "hf")
