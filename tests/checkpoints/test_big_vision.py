"""Official files: every layout, prefix, age and scalar shape, and files that are not official."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from siglip2_jax.checkpoints import ConversionError, big_vision, read, write
from siglip2_jax.models.config import RELEASES


def arrays(checkpoint, **layouts) -> dict[str, np.ndarray]:
    """An official checkpoint as a dict."""
    rules = big_vision.rules(
        checkpoint.config,
        layouts.get("vision", "unrolled"),
        layouts.get("text", "unrolled"),
    )
    return {
        f"params/{name}": array for name, array in big_vision.to_theirs(rules, checkpoint.params)
    }


@pytest.mark.parametrize("vision", ["unrolled", "stacked"])
@pytest.mark.parametrize("text", ["unrolled", "stacked"])
@pytest.mark.parametrize(("prefix", "scalar"), [("params/", (1,)), ("", ())])
def test_layouts(tmp_path, checkpoint, assert_equal, vision, text, prefix, scalar):
    tensors = arrays(checkpoint, vision=vision, text=text)
    for name in ("params/t", "params/b"):
        tensors[name] = tensors[name].reshape(scalar)
    tensors = {name.replace("params/", prefix): value for name, value in tensors.items()}
    np.savez(tmp_path / "model.npz", **tensors)
    found = read(tmp_path / "model.npz")
    assert found.format == "npz"
    assert found.config.native_resolution == checkpoint.config.native_resolution
    assert found.config.text == checkpoint.config.text
    assert_equal(found, checkpoint)


@pytest.mark.parametrize("layout", ["unrolled", "stacked"])
def test_write_is_official(tmp_path, checkpoint, layout):
    path = epath.Path(tmp_path / "model.npz")
    big_vision.write(path, checkpoint.config, checkpoint.params, vision=layout, text=layout)
    expected = arrays(checkpoint, vision=layout, text=layout)
    with np.load(path, allow_pickle=False) as found:
        assert sorted(found.files) == sorted(expected)
        for name in found.files:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("format", ["npz", "orbax"])
@pytest.mark.slow
def test_texts_pooled_by_attention(tmp_path, mapped, fixed, assert_equal, format):
    path = tmp_path / ("model.npz" if format == "npz" else "model")
    write(mapped, path, format)
    found = read(path)
    assert found.config.text == mapped.config.text != fixed.config.text
    assert_equal(found, mapped)
    names = arrays(mapped).keys() - arrays(fixed).keys()
    vision = {name for name in arrays(fixed) if "img/MAPHead_0" in name}
    assert names == {name.replace("img/", "txt/") for name in vision} and len(names) == 15


def test_patches_and_positions_by_hand(fixed, naflex):
    conv = arrays(fixed)
    kernel = fixed.params["vision/embed/kernel"].read()
    assert conv["params/img/embedding/kernel"].shape == (4, 4, 3, 36)
    assert conv["params/img/embedding/kernel"][1, 2, 0, 7] == kernel[(1 * 4 + 2) * 3 + 0, 7]
    assert conv["params/img/pos_embedding"].shape == (1, 25, 36)
    positions = fixed.params["vision/pos/table"].read()
    assert conv["params/img/pos_embedding"][0, 5 * 3 + 2, 9] == positions[3, 2, 9]
    assert arrays(naflex)["params/img/embedding/kernel"].shape == (48, 36)
    assert arrays(naflex)["params/img/pos_embedding"].shape == (5, 5, 36)


def test_old_names_are_understood(tmp_path, fixed, assert_equal):
    tensors = arrays(fixed)
    old = {name.replace("img/MAPHead_0/", "img/"): value for name, value in tensors.items()}
    table = old.pop("params/img/pos_embedding")
    old["params/img/Transformer/posembed_input/pos_embedding"] = table
    first = np.float32(0.5) * old["params/txt/pos_embedding"]  # halves add up exactly
    old["params/txt/pos_embedding"] = old["params/txt/Encoder_0/pos_embedding"] = first
    np.savez(tmp_path / "old.npz", **old)
    assert_equal(read(tmp_path / "old.npz"), fixed)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path, fixed, dtype):
    tensors = {name: value.astype(dtype) for name, value in arrays(fixed).items()}
    np.savez_compressed(tmp_path / "half.npz", **tensors)
    found = read(tmp_path / "half.npz").params["text/head/kernel"].read()
    expected = fixed.params["text/head/kernel"].read().astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["fixed", "naflex"])
def test_oracles(oracle, kind):
    found = read(oracle.checkpoint(kind))
    assert found.config.native_resolution == (kind == "naflex")
    with np.load(oracle.checkpoint(kind)) as expected:
        kernel = expected["params/img/embedding/kernel"]
        kernel = kernel.reshape(-1, kernel.shape[-1])
        np.testing.assert_array_equal(found.params["vision/embed/kernel"].read(), kernel)
        name = "params/txt/Encoder_0/encoderblock{}/MlpBlock_0/Dense_1/kernel".format
        layer_1 = expected[name("_1")] if name("_1") in expected else expected[name("")][1]
        blocks = found.params["text/encoder/blocks/mlp/fc2/kernel"].read()
        np.testing.assert_array_equal(blocks[1], layer_1)


def test_so400m14_384_keeps_its_image_size():
    vision = next(r for r in RELEASES if r.name == "So400m/14 384").config.vision
    assert big_vision._sized(vision).image_size == 384
    assert vision.grid * vision.patch_size == 378


def save(path, tensors) -> str:
    np.savez(path, **tensors)
    return str(path)


def test_foreign_tensors_and_wrong_shapes_are_listed(tmp_path, fixed):
    tensors = arrays(fixed)
    del tensors["params/img/Transformer/encoderblock_1/LayerNorm_0/bias"]
    tensors["params/txt/head/kernel"] = np.zeros((5, 36), np.float32)
    tensors["opt/0/count"] = np.zeros((), np.int32)
    with pytest.raises(ConversionError) as error:
        read(save(tmp_path / "model.npz", tensors))
    assert sorted(error.value.problems) == [
        "img/Transformer/encoderblock_1/LayerNorm_0/bias is missing",
        "opt/0/count is not a tensor of this model",
        "txt/head/kernel has shape (5, 36), expected (24, 36)",
    ]
    assert "model.npz: 3 problems" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "img" in k}, "there is no text tower"),
        (lambda t: {"kernel": np.zeros(3)}, "there is no vision tower"),
        (lambda t: t | {"params/img/pos_embedding": np.zeros((1, 26, 36))}, "26 rows.*square"),
        (lambda t: t | {"params/txt/head/bias": np.zeros(24)}, "24 values .* 36"),
        (lambda t: t | {"params/txt/pos_embedding": np.zeros((64, 24))}, "expected 3 axes"),
    ],
)
def test_other_models(tmp_path, fixed, change, message):
    with pytest.raises(ConversionError, match=message):
        read(save(tmp_path / "model.npz", change(arrays(fixed))))


def test_pickles_are_never_loaded(tmp_path, fixed):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    tensors = arrays(fixed) | {"params/extra": np.array([Trap()], object)}
    with pytest.raises(ConversionError, match="params/extra holds pickled Python objects"):
        read(save(tmp_path / "model.npz", tensors))
    with zipfile.ZipFile(tmp_path / "torch.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    with pytest.raises(ConversionError, match="a PyTorch pickle"):
        read(tmp_path / "torch.bin")


def test_truncated_and_damaged_files(tmp_path, fixed):
    path = tmp_path / "model.npz"
    write(fixed, path, "npz")
    data = path.read_bytes()
    (tmp_path / "short.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConversionError, match=r"short\.npz: the \.npz is cut short or damaged"):
        read(tmp_path / "short.npz")
    table = fixed.params["text/embed/table"].read().tobytes()
    start = data.index(table)
    path.write_bytes(data[:start] + bytes(len(table)) + data[start + len(table) :])
    with pytest.raises(ConversionError, match="txt/Embed_0/embedding is damaged"):
        read(path).params["text/embed/table"].read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, world", "is text"),
        (b"", "is empty"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"\x80\x04", "pickle"),
        (b"\xff\xfe\x00\x01", "unknown kind"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    (tmp_path / "model.npz").write_bytes(content)
    with pytest.raises(ConversionError, match=f"{message}.*a source is"):
        read(tmp_path / "model.npz")
