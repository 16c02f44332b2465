"""All or nothing; tokenizers; whatever else is common to the formats."""

import dataclasses
import inspect
import math
import tracemalloc

import numpy as np
import pytest
from etils import epath

from siglip2_jax.checkpoints import ConversionError, Lazy, read, write
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

FORMATS = ["npz", "hf", "orbax"]


def break_at(checkpoint, path: str, error: BaseException):
    def fail() -> np.ndarray:
        raise error

    broken = dataclasses.replace(checkpoint.params[path], read=fail)
    return dataclasses.replace(checkpoint, params=checkpoint.params | {path: broken})


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [ConversionError(["damaged"]), KeyboardInterrupt()])
def test_failure_leaves_nothing(tmp_path, fixed, format, error):
    with pytest.raises(type(error)):
        write(break_at(fixed, "text/head/kernel", error), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_failure_keeps_what_was_there(tmp_path, fixed, assert_equal, format):
    write(fixed, tmp_path / "out", "npz")
    with pytest.raises(ConversionError):
        broken = break_at(fixed, "b", ConversionError(["damaged"]))
        write(broken, tmp_path / "out", format, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_equal(read(tmp_path / "out"), fixed)


def test_a_failed_rename_puts_the_old_one_back(tmp_path, fixed, assert_equal, monkeypatch):
    path = tmp_path / "out"
    write(fixed, path, "npz")
    rename = type(epath.Path(path)).rename

    def fail_on_the_new_one(self, target):
        if self.name.endswith(".new"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(epath.Path(path)), "rename", fail_on_the_new_one)
    with pytest.raises(OSError, match="no"):
        write(fixed, path, "npz", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert_equal(read(path), fixed)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten_unasked(tmp_path, fixed, naflex, format):
    path = tmp_path / "new" / "out"
    write(fixed, path, format)
    with pytest.raises(FileExistsError, match="out exists"):
        write(naflex, path, format)
    assert read(path).config.vision.image_size is not None
    write(naflex, path, format, overwrite=True)
    assert read(path).config.vision.image_size is None
    (tmp_path / "empty").mkdir()
    write(naflex, tmp_path / "empty", format)
    assert read(tmp_path / "empty").format == format


def test_bad_requests(tmp_path, fixed):
    with pytest.raises(ValueError, match="format 'safetensors' is unknown"):
        inspect.unwrap(write)(fixed, tmp_path / "out", "safetensors")
    with pytest.raises(ValueError, match="local paths only"):
        write(fixed, "gs://bucket/out", "npz")


@pytest.mark.parametrize("format", FORMATS)
def test_progress_counts_every_tensor(tmp_path, fixed, format):
    seen = []
    write(fixed, tmp_path / "out", format, progress=lambda *report: seen.append(report))
    total = seen[0][2]
    assert [done for _, done, _ in seen] == list(range(1, total + 1))
    assert total == len({name for name, _, _ in seen}) >= len(fixed.params) - 4


def test_tensors_are_read_once(tmp_path, fixed):
    reads = []

    def counting(path, tensor):
        return dataclasses.replace(tensor, read=lambda: reads.append(path) or tensor.read())

    params = {path: counting(path, tensor) for path, tensor in fixed.params.items()}
    for format in FORMATS:
        reads.clear()
        write(dataclasses.replace(fixed, params=params), tmp_path / format, format)
        assert sorted(reads) == sorted(params)


def test_arrays_in_memory_can_be_written(tmp_path, fixed, assert_equal):
    params = {path: Lazy.of(tensor.read()) for path, tensor in fixed.params.items()}
    write(dataclasses.replace(fixed, params=params), tmp_path / "out", "npz")
    assert_equal(read(tmp_path / "out"), fixed)


@pytest.mark.slow
def test_tokenizers_travel(tmp_path, shared, make_checkpoint, fixed):
    tokenizer = Tokenizer.load(shared / "data" / "tokenizer" / "gemma_256k.model")
    text = dataclasses.replace(fixed.config.text, vocab_size=tokenizer.vocab_size)
    checkpoint = make_checkpoint(dataclasses.replace(fixed.config, text=text))
    write(checkpoint, tmp_path / "ours", "orbax", tokenizer=tokenizer)
    ours = read(tmp_path / "ours")
    assert ours.tokenizer.name == "tokenizer.model"
    write(ours, tmp_path / "hf", "hf")
    hf = read(tmp_path / "hf")
    assert Tokenizer.load(hf.tokenizer).name == tokenizer.name
    assert (tmp_path / "hf" / "tokenizer_config.json").exists()

    with pytest.raises(TokenizerError, match="token table has 50 rows"):
        write(fixed, tmp_path / "wrong", "hf", tokenizer=tokenizer)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("format", ["npz", "hf"])
def test_memory_holds_a_part_only(tmp_path, make_checkpoint, format):
    """Orbax, which allocates outside of Python, was measured on the full g-opt."""
    tower = {"width": 128, "depth": 16, "mlp_dim": 512, "num_heads": 4}
    config = ModelConfig(
        vision=VisionConfig(**tower, patch_size=16, grid=16, image_size=None),
        text=TextConfig(**tower, vocab_size=512, embed_dim=128),
    )
    checkpoint = make_checkpoint(config)
    write(checkpoint, tmp_path / "a", "npz" if format == "hf" else "hf")
    total = sum(4 * math.prod(tensor.shape) for tensor in checkpoint.params.values())
    tracemalloc.start()
    write(read(tmp_path / "a"), tmp_path / "b", format)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total / 2
