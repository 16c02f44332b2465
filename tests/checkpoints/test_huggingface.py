"""Hugging Face directories without transformers; test_parity.py has it open them."""

import dataclasses
import json
import struct

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from siglip2_jax.checkpoints import (
    ConversionError,
    Preprocessing,
    read,
    safetensors_file,
    write,
)


@pytest.fixture
def directory(tmp_path, checkpoint):
    write(checkpoint, tmp_path / "hf", "hf")
    return tmp_path / "hf"


@pytest.fixture
def fixed_directory(tmp_path, fixed):
    write(fixed, tmp_path / "hf", "hf")
    return tmp_path / "hf"


def edit(path, tower=None, **changes):
    """Changes keys of a JSON file; None takes a key away."""
    data = json.loads(path.read_text())
    target = data[tower] if tower else data
    target.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del target[key]
    path.write_text(json.dumps(data))


def test_round_trip(directory, checkpoint, assert_equal):
    found = read(directory)
    assert found.format == "hf"
    assert found.config == checkpoint.config
    assert_equal(found, checkpoint)
    assert_equal(read(directory / "model.safetensors"), checkpoint)


def test_texts_pooled_by_attention_are_refused(tmp_path, mapped):
    with pytest.raises(ConversionError, match="pools by 'map', which transformers' models do not"):
        write(mapped, tmp_path / "hf", "hf")
    assert not any(tmp_path.iterdir())


def test_transforms_by_hand(directory, checkpoint):
    """q, k, v keep their order, and every matrix is transposed the right way."""
    theirs = load_file(directory / "model.safetensors")
    ours = {path: tensor.read() for path, tensor in checkpoint.params.items()}
    queries = theirs["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    expected = ours["vision/encoder/blocks/attn/query/kernel"][1]  # D, H, C
    for head in range(3):
        np.testing.assert_array_equal(queries[head * 12 : head * 12 + 12], expected[:, head].T)
    out = theirs["text_model.encoder.layers.0.self_attn.out_proj.weight"]
    expected = ours["text/encoder/blocks/attn/out/kernel"][0]  # H, C, D
    np.testing.assert_array_equal(out[:, 12:], expected[1].T)
    fused = theirs["vision_model.head.attention.in_proj_weight"]
    bias = theirs["vision_model.head.attention.in_proj_bias"]
    for part, name in enumerate(("query", "key", "value")):
        rows = slice(part * 36, part * 36 + 36)
        kernel = ours[f"vision/pool/attn/{name}/kernel"].reshape(36, 36)
        np.testing.assert_array_equal(fused[rows], kernel.T)
        np.testing.assert_array_equal(bias[rows], ours[f"vision/pool/attn/{name}/bias"].ravel())
    patches = theirs["vision_model.embeddings.patch_embedding.weight"]
    kernel = ours["vision/embed/kernel"]
    if checkpoint.config.native_resolution:
        np.testing.assert_array_equal(patches, kernel.T)
    else:
        hwio = kernel.reshape(4, 4, 3, 36)
        assert patches[7, 2, 1, 3] == hwio[1, 3, 2, 7]
        np.testing.assert_array_equal(patches, np.einsum("hwio->oihw", hwio))
    assert theirs["logit_scale"].shape == theirs["logit_bias"].shape == (1,)
    assert theirs["text_model.head.weight"].shape == (36, 24)


@pytest.mark.parametrize("scalar", [(), (1,)])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_shards_prefixes_buffers_and_scalars(fixed_directory, fixed, assert_equal, scalar, prefix):
    tensors = load_file(fixed_directory / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = np.arange(25)[None]
    for name in ("logit_scale", "logit_bias"):
        tensors[name] = tensors[name].reshape(scalar)
    tensors = {f"{prefix}{name}": value for name, value in tensors.items()}
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, fixed_directory / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (fixed_directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (fixed_directory / "model.safetensors").unlink()
    assert_equal(read(fixed_directory), fixed)

    (fixed_directory / "model-2.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"model-2\.safetensors is missing"):
        read(fixed_directory)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(fixed_directory, fixed, dtype):
    path = fixed_directory / "model.safetensors"
    save_file({name: x.astype(dtype) for name, x in load_file(path).items()}, path)
    for name in ("vision/embed/kernel", "text/encoder/blocks/mlp/fc1/kernel"):
        expected = fixed.params[name].read().astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(read(fixed_directory).params[name].read(), expected)


def test_config(fixed_directory, fixed):
    config = json.loads((fixed_directory / "config.json").read_text())
    assert config["model_type"] == "siglip" and config["architectures"] == ["SiglipModel"]
    text, vision = config["text_config"], config["vision_config"]
    assert [text[f"{name}_token_id"] for name in ("pad", "eos", "bos")] == [0, 1, 2]
    assert text["projection_size"] == 36 and text["hidden_size"] == 24
    assert vision["image_size"] == 22 and vision["patch_size"] == 4
    processor = json.loads((fixed_directory / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 22, "width": 22} and processor["resample"] == 2


def test_siglip_1_has_its_own_ids(tmp_path, make_checkpoint, fixed):
    text = dataclasses.replace(fixed.config.text, vocab_size=32_000, pad_id=1)
    write(make_checkpoint(dataclasses.replace(fixed.config, text=text)), tmp_path / "hf", "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
    assert [written[f"{name}_token_id"] for name in ("pad", "eos", "bos")] == [1, 1, None]
    found = read(tmp_path / "hf")
    assert found.config.text.pad_id == 1
    assert found.preprocessing.text_norm == "canonicalize"


def test_absent_keys_take_the_class_defaults(tmp_path, make_checkpoint, fixed):
    """12 heads where config.json has none, as for the released base models."""
    vision = dataclasses.replace(fixed.config.vision, num_heads=12)
    config = dataclasses.replace(fixed.config, vision=vision)
    write(make_checkpoint(config), tmp_path / "hf", "hf")
    edit(tmp_path / "hf" / "config.json", "vision_config", num_attention_heads=None)
    assert read(tmp_path / "hf").config == config
    edit(tmp_path / "hf" / "config.json", "vision_config", image_size=[22, 22])
    assert read(tmp_path / "hf").config == config


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("text_config", {"hidden_size": 768}, "hidden_size 768 in text_config, expected 24"),
        ("text_config", {"num_attention_heads": 5}, "cannot be split into 5 heads"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("vision_config", {"image_size": 16}, "makes 16 patches of 4, but there are 25"),
        ("vision_config", {"image_size": "big"}, "image_size 'big', expected a square"),
        ("vision_config", {"patch_size": 4.5}, "patch_size 4.5, expected a square"),
        ("vision_config", {"image_size": [16, 20]}, "expected a square"),
        (None, {"vision_config": 3}, "vision_config 3, expected a JSON object"),
        (None, {"model_type": "clip"}, "a 'clip' model"),
    ],
)
def test_configs_that_contradict_the_tensors(fixed_directory, tower, changes, message):
    edit(fixed_directory / "config.json", tower, **changes)
    with pytest.raises(ConversionError, match=message):
        read(fixed_directory)


@pytest.mark.parametrize(
    "entry",
    [{}, {"dtype": "F32", "shape": [1]}, {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}, 3],
    ids=str,
)
def test_a_header_that_describes_no_tensor(tmp_path, entry):
    header = json.dumps({"logit_scale": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ConversionError, match="the description of logit_scale is damaged"):
        safetensors_file.read(epath.Path(path))


def test_missing_and_broken_files(fixed_directory):
    config, weights = fixed_directory / "config.json", fixed_directory / "model.safetensors"
    config.write_text("{")
    with pytest.raises(ConversionError, match=r"config\.json: it is not JSON"):
        read(fixed_directory)
    config.unlink()
    with pytest.raises(ConversionError, match=r"no config\.json .* heads"):
        read(weights)
    config.write_text('{"model_type": "siglip"}')
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    with pytest.raises(ConversionError, match="cut short"):
        read(fixed_directory)
    weights.write_bytes(data[:100])
    with pytest.raises(ConversionError, match="no header, or is cut short"):
        read(fixed_directory)
    weights.unlink()
    with pytest.raises(ConversionError, match="found no .safetensors file"):
        read(fixed_directory)
    (fixed_directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"only in pytorch_model\.bin, a pickle"):
        read(fixed_directory)


def test_one_tower_is_not_enough(fixed_directory):
    path = fixed_directory / "model.safetensors"
    tensors = {name: x for name, x in load_file(path).items() if name.startswith("vision")}
    save_file(tensors, path)
    with pytest.raises(ConversionError, match="there is no text tower"):
        read(fixed_directory)


def test_the_repositorys_filter_is_kept(fixed_directory):
    assert read(fixed_directory).preprocessing == Preprocessing()
    processor = fixed_directory / "preprocessor_config.json"
    edit(processor, resample=3)
    assert read(fixed_directory).preprocessing.resample == "bicubic"
    edit(processor, resample=None)  # the class default of `siglip`
    assert read(fixed_directory).preprocessing.resample == "bicubic"
    nested = {"image_processor": {"resample": 2}}
    (fixed_directory / "processor_config.json").write_text(json.dumps(nested))
    processor.unlink()
    assert read(fixed_directory).preprocessing.resample == "bilinear"
    edit(fixed_directory / "processor_config.json", image_processor={"resample": 0})
    with pytest.raises(ConversionError, match="resample 0"):
        read(fixed_directory)
