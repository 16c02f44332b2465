"""Every release goes through every format and comes back as the same bytes."""

import dataclasses
import filecmp
import shutil

import pytest

from siglip2_jax.checkpoints import big_vision, read, write
from siglip2_jax.models.config import RELEASES, ModelConfig

QUICK = ("B/16 NaFlex",)
BY_NAME = pytest.mark.parametrize(
    "release",
    [
        pytest.param(x, id=x.name, marks=() if x.name in QUICK else pytest.mark.slow)
        for x in RELEASES
    ],
)


def cut(config: ModelConfig, vocab_size: int | None = None) -> ModelConfig:
    """One layer a tower; everything else in full, except perhaps the vocabulary."""
    vision = dataclasses.replace(config.vision, depth=1)
    text = dataclasses.replace(config.text, depth=1)
    if vocab_size:
        text = dataclasses.replace(text, vocab_size=vocab_size)
    return ModelConfig(vision=vision, text=text)


def assert_same_config(found: ModelConfig, expected: ModelConfig) -> None:
    """All but the pixels that fill no patch, which an official file does not show."""
    patches = expected.vision.grid * expected.vision.patch_size
    size = None if expected.native_resolution else patches
    vision = dataclasses.replace(expected.vision, image_size=size)
    assert found == ModelConfig(vision=vision, text=expected.text)


def assert_round_trip(checkpoint, folder) -> None:
    """Goes from .npz through both directories and back: the same bytes, the same sizes."""
    paths = [folder / name for name in ("a.npz", "hf", "ours", "b.npz")]
    write(checkpoint, paths[0], "npz")
    for source, target, format in zip(paths[:-1], paths[1:], ("hf", "orbax", "npz"), strict=True):
        write(read(source), target, format)
        if source != paths[0]:
            assert_same_config(read(source).config, checkpoint.config)
            shutil.rmtree(source)  # pytest keeps the directories of its last runs
    assert filecmp.cmp(paths[0], paths[-1], shallow=False)
    assert_same_config(read(paths[-1]).config, checkpoint.config)
    paths[0].unlink()
    paths[-1].unlink()


@BY_NAME
@pytest.mark.slow
def test_every_format_and_back(tmp_path, make_checkpoint, release):
    assert_round_trip(make_checkpoint(cut(release.config, vocab_size=512)), tmp_path)


@pytest.mark.slow
def test_full_vocabulary(tmp_path, make_checkpoint):
    """A table of 256,000 rows, which is read and written in parts."""
    (release,) = (release for release in RELEASES if release.name == "B/16 NaFlex")
    assert_round_trip(make_checkpoint(cut(release.config)), tmp_path)


def test_a_full_release_is_recognised(tmp_path, make_checkpoint):
    """Sizes alone: the tensors of So400m/14 384 are never computed."""
    release = next(release for release in RELEASES if release.name == "So400m/14 384")
    checkpoint = make_checkpoint(release.config)
    rules = big_vision.rules(release.config, "stacked", "stacked")
    tensors = {}
    for rule in rules:
        tensor = checkpoint.params[rule.ours[0]]
        shape = rule.transform.shape(tensor.shape)
        tensors[rule.theirs] = dataclasses.replace(tensor, shape=shape)
    assert big_vision.infer_config(tensors) == release.config
