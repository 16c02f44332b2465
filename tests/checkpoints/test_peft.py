"""Adapters in peft's layout: written of runs, merged again, and opened by peft itself."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from models.builders import patches
from train.runs import SMALL, Sevens, numbers, run, save_run, stage

import siglip2_jax
from siglip2_jax.checkpoints import (
    ConversionError,
    Lazy,
    read,
    safetensors_file,
    write,
    write_adapter,
)
from siglip2_jax.cli import main
from siglip2_jax.config import Adapters, Group, Optim, Pretrained
from siglip2_jax.demo import HERE
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import random_params
from siglip2_jax.train.start import initialize_stage
from siglip2_jax.train.state import plain_params

FIXED = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, image_size=256, grid=16)
)
LINEAR = (
    Adapters(pattern="vision/encoder/.*/(query|fc1)/kernel", rank=4, alpha=10.0),
    Adapters(pattern="(vision|text)/encoder/.*|text/head/kernel", rank=3),
    Adapters(pattern="vision/(embed|pool/mlp/fc.)/kernel", rank=2, alpha=1.0),
)
LOGITS = Optim(groups=(Group(pattern="t|b"),))
IMAGES = sorted((HERE / "photos").iterdir())[:3]
TEXTS = ["a dog on the beach", "two cats", ""]


def trained(workdir, adapters=LINEAR, model=SMALL, optim=LOGITS, **fields):
    """A run with adapters, and its state."""
    config = run(stage(adapters=adapters, optim=optim, **fields), model=model)
    rng = np.random.default_rng(1)
    pairs = Sevens(config.resolved[0]).pairs.init(jax.random.key(0))
    changes = {
        path: 0.3 * rng.standard_normal(x.shape, np.float32) for path, x in pairs.items() if x.ndim
    }
    params = flatten(random_params(model)) | pairs | changes
    params = {path: np.asarray(x) for path, x in params.items()}
    return save_run(workdir, config, [10], make_mesh(1, jax.devices()[:4]), params)[10]


def write_base(workdir, state, directory) -> None:
    """Writes the model without its adapters, for transformers."""
    checkpoint, leaves = read(workdir), numbers(state.params)
    params = {path: Lazy.of(leaves[path]) for path in checkpoint.params}
    write(dataclasses.replace(checkpoint, params=params), directory, "hf")


def embeddings(model) -> list[np.ndarray]:
    return [model.embed_images(IMAGES, max_num_patches=40), model.embed_texts(TEXTS)]


@pytest.fixture(scope="module", params=[SMALL, FIXED], ids=["naflex", "fixed"])
def saved(request, tmp_path_factory):
    """A run, its base for transformers, and its adapter."""
    folder = tmp_path_factory.mktemp("run")
    state = trained(folder / "run", model=request.param)
    write_base(folder / "run", state, folder / "base")
    tensors = write_adapter(folder / "run", folder / "adapter")
    written = safetensors_file.read(epath.Path(folder / "adapter/adapter_model.safetensors"))
    assert tensors == len(written)
    return folder, state


def test_a_run_is_read_as_the_merged_model(saved):
    folder, state = saved
    expected = numbers(plain_params(state.params))
    found = flatten(siglip2_jax.load(folder / "run").params)
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    kernel = "vision/encoder/blocks/attn/query/kernel"
    state = numbers(state.params)
    a, b = (state[f"adapters/{kernel}/{leaf}"] for leaf in "ab")
    scale = state[f"adapters/{kernel}/scale"]
    by_hand = state[kernel] + (scale * a @ b).reshape(state[kernel].shape)
    np.testing.assert_allclose(found[kernel], by_hand, rtol=0, atol=1e-5)


def test_an_adapter_on_its_base_is_the_run(saved):
    folder, _ = saved
    expected, found = read(folder / "run"), read(folder / "base", adapter=folder / "adapter")
    plain = read(folder / "base")
    for path, tensor in expected.params.items():
        x = tensor.read()
        np.testing.assert_allclose(found.params[path].read(), x, rtol=0, atol=1e-5, err_msg=path)
        learned = any(f"adapters/{path}/" in k for k in numbers(saved[1].params))
        assert np.array_equal(plain.params[path].read(), x) != learned, path
    model = siglip2_jax.load(folder / "base", adapter=folder / "adapter", tokenizer=folder / "run")
    for have, want in zip(
        embeddings(model), embeddings(siglip2_jax.load(folder / "run")), strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-5)


def test_the_bias_of_a_start_is_written_though_it_did_not_learn(tmp_path):
    state = trained(tmp_path / "run", adapters=LINEAR[2:], optim=Optim())
    write_adapter(tmp_path / "run", tmp_path / "adapter")
    file = safetensors_file.read(epath.Path(tmp_path / "adapter/adapter_model.safetensors"))
    assert file["base_model.model.logit_bias"].read() == state.params["b"]


def test_the_configuration_names_what_differs(saved):
    settings = json.loads((saved[0] / "adapter/adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["bias"]) == ("LORA", 3, "none")
    query = "vision_model.encoder.layers.1.self_attn.q_proj"
    assert settings["rank_pattern"][query] == 4
    assert settings["base_model_name_or_path"] is None
    assert len(settings["target_modules"]) == 2 * 6 + 2 * 6 + 1 + 3
    assert not any("pool" in name or "in_proj" in name for name in settings["target_modules"])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # within peft
def test_peft_opens_it(saved):
    """Embeddings of transformers' model with peft's adapter, and its temperature and bias."""
    torch = pytest.importorskip("torch")
    transformers, peft = (pytest.importorskip(name) for name in ("transformers", "peft"))
    folder, _ = saved
    ours, size = siglip2_jax.load(folder / "run"), 16
    ids = np.random.default_rng(0).integers(0, 1024, (2, 64)).astype(np.int32)
    if ours.config.native_resolution:
        batch = patches([(3, 5), (1, 9)], 16, size)
        inputs = {"pixel_values": batch.pixels, "pixel_attention_mask": batch.valid.astype(int)}
        inputs["spatial_shapes"] = batch.yx.max(1) + 1
    else:
        batch = patches([(16, 16)] * 2, 256, size)
        pixels = batch.pixels.reshape(2, 16, 16, size, size, 3).transpose(0, 5, 1, 3, 2, 4)
        inputs = {"pixel_values": pixels.reshape(2, 3, 256, 256)}
    inputs = {name: torch.from_numpy(np.asarray(x)) for name, x in inputs.items()}
    base = transformers.AutoModel.from_pretrained(folder / "base").eval()
    model = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids.astype(np.int64)), **inputs)
    image, text = ours.embed_images(batch), ours.embed_tokens(ids)
    np.testing.assert_allclose(image, theirs.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, theirs.text_embeds.numpy(), rtol=0, atol=1e-5)
    assert ours.bias == model.base_model.model.logit_bias.item()
    assert np.float32(ours.params["t"]) == model.base_model.model.logit_scale.item()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"adapters": ()}, "it holds no adapters; train some"),
        (
            {"adapters": (Adapters(pattern="vision/pool/.*", rank=2),)},
            "vision/pool/attn/.*/kernel has an adapter, but is no layer of its own",
        ),
        (
            {"optim": Optim(groups=(Group(pattern="vision/.*/scale"),))},
            "vision/.*/scale was trained, too, which an adapter cannot hold; write the merged",
        ),
    ],
    ids=["none", "pool", "more"],
)
def test_what_an_adapter_cannot_hold(tmp_path, fields, reason):
    trained(tmp_path / "run", **fields)
    with pytest.raises(ConversionError, match=reason):
        write_adapter(tmp_path / "run", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_convert_writes_and_merges(saved, tmp_path, capsys):
    folder, _ = saved
    assert main(["convert", str(folder / "run"), str(tmp_path / "a"), "--to", "lora"]) == 0
    merged = ["convert", str(folder / "base"), str(tmp_path / "m"), "--to", "hf"]
    assert main([*merged, "--adapter", str(tmp_path / "a")]) == 0
    expected = read(folder / "run")
    for path, tensor in read(tmp_path / "m").params.items():
        np.testing.assert_allclose(
            tensor.read(), expected.params[path].read(), rtol=0, atol=1e-5, err_msg=path
        )
    capsys.readouterr()
    again = ["convert", str(folder / "run"), str(tmp_path / "a"), "--to", "lora"]
    assert main(again) == 2 and "exists" in capsys.readouterr().err
    assert main([*again, "--overwrite", "--tokenizer", "x"]) == 2
    assert "an adapter is written alone; leave --tokenizer out" in capsys.readouterr().err
    assert main([*again, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "lora"


def edited(folder, tmp_path, **changes):
    settings = json.loads((folder / "adapter/adapter_config.json").read_text()) | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = (folder / "adapter/adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    return tmp_path


def test_factors_are_those_of_peft(saved, tmp_path):
    """A pattern of a short name, and rank-stabilised LoRA."""
    folder, _ = saved
    kernel = "text/encoder/blocks/attn/key/kernel"
    base = read(folder / "base").params[kernel].read()
    usual = read(folder / "base", adapter=folder / "adapter").params[kernel].read() - base
    twice = edited(folder, tmp_path, alpha_pattern={"k_proj": 6.0})
    found = read(folder / "base", adapter=twice).params[kernel].read() - base
    np.testing.assert_allclose(found, 2 * usual, rtol=1e-4, atol=1e-5)
    stable = edited(folder, tmp_path, use_rslora=True, alpha_pattern={}, lora_alpha=3)
    found = read(folder / "base", adapter=stable).params[kernel].read() - base
    np.testing.assert_allclose(found, 3**0.5 * usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "is of the type IA3, expected LORA"),
        ({"init_lora_weights": "pissa"}, "began as 'pissa', which changes the weights"),
    ],
)
def test_other_kinds_of_adapters(saved, tmp_path, changes, reason):
    folder, _ = saved
    with pytest.raises(ConversionError, match=reason):
        read(folder / "base", adapter=edited(folder, tmp_path, **changes))


@pytest.mark.slow
def test_an_adapter_of_another_model(saved, tmp_path):
    folder, _ = saved
    other = dataclasses.replace(SMALL, vision=dataclasses.replace(SMALL.vision, mlp_dim=40))
    state = trained(tmp_path / "run", model=other)
    write_base(tmp_path / "run", state, tmp_path / "base")
    with pytest.raises(ConversionError, match=r"fc1 has pairs of \(4, 24\) and \(32, 4\), of ano"):
        read(tmp_path / "base", adapter=folder / "adapter")
    shallow = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, depth=1))
    state = trained(tmp_path / "shallow", model=shallow)
    write_base(tmp_path / "shallow", state, tmp_path / "base1")
    with pytest.raises(ConversionError, match="layers.1.* is not a tensor of an adapter for this"):
        read(tmp_path / "base1", adapter=folder / "adapter")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="no adapter: adapter_config.json is miss"):
        read(folder / "base", adapter=tmp_path / "empty")


def test_training_starts_from_an_adapter(saved):
    folder, _ = saved
    config = read(folder / "run").config
    start = Pretrained(source=str(folder / "base"), adapter=str(folder / "adapter"))
    made = run(stage(start=start), model=config)
    state = initialize_stage(Sevens(made.resolved[0]), made, make_mesh(1, jax.devices()[:1]), "x")
    expected = read(folder / "base", adapter=folder / "adapter").params
    for path, x in numbers(state.params).items():
        np.testing.assert_array_equal(x, expected[path].read(), err_msg=path)
