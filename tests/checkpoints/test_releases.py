"""Every release goes through every format and comes back as the same bytes."""

import dataclasses
import filecmp
import shutil

import pytest

from siglip2_jax.checkpoints import big_vision, read, write
from siglip2_jax.models.config import RELEASES, ModelConfig

BY_NAME = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)


def cut(config: ModelConfig, vocab_size: int | None = None) -> ModelConfig:
    """Two layers a tower; everything else in full, except perhaps the vocabulary."""
    vision = dataclasses.replace(config.vision, depth=2)
    text = dataclasses.replace(config.text, depth=2)
    if vocab_size:
        text = dataclasses.replace(text, vocab_size=vocab_size)
    return ModelConfig(vision=vision, text=text)


def assert_same_config(found: ModelConfig, expected: ModelConfig) -> None:
    """All but the pixels that fill no patch, which an official file does not show."""
    patches = expected.vision.grid * expected.vision.patch_size
    size = None if expected.native_resolution else patches
    vision = dataclasses.replace(expected.vision, image_size=size)
    assert found == ModelConfig(vision=vision, text=expected.text)


@BY_NAME
def test_npz_to_huggingface_and_back(tmp_path, make_checkpoint, release):
    checkpoint = make_checkpoint(cut(release.config, vocab_size=512))
    write(checkpoint, tmp_path / "first.npz", "npz")
    write(read(tmp_path / "first.npz"), tmp_path / "hf", "hf")
    found = read(tmp_path / "hf")
    assert_same_config(found.config, checkpoint.config)
    write(found, tmp_path / "last.npz", "npz")
    assert filecmp.cmp(tmp_path / "first.npz", tmp_path / "last.npz", shallow=False)
    for path in (tmp_path / "first.npz", tmp_path / "last.npz", tmp_path / "hf/model.safetensors"):
        path.unlink()  # pytest keeps the directories of its last runs


@pytest.mark.slow
@BY_NAME
def test_full_vocabulary_through_all_formats(tmp_path, make_checkpoint, release):
    checkpoint = make_checkpoint(cut(release.config))
    paths = [tmp_path / name for name in ("a.npz", "ours", "hf", "ours_again", "b.npz")]
    write(checkpoint, paths[0], "npz")
    for source, target, format in zip(
        paths[:-1], paths[1:], ("orbax", "hf", "orbax", "npz"), strict=True
    ):
        write(read(source), target, format)
        if source != paths[0]:
            shutil.rmtree(source)
    assert filecmp.cmp(paths[0], paths[-1], shallow=False)
    assert_same_config(read(paths[-1]).config, checkpoint.config)
    paths[0].unlink()
    paths[-1].unlink()


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
