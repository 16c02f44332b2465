"""transformers opens what we write, and we read what it writes."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.checkpoints import read, write
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.preprocess.tokenizer import Tokenizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_transformers_opens_our_export(tmp_path, checkpoint):
    write(checkpoint, tmp_path / "hf", "hf")
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report.values()), report
    native = checkpoint.config.native_resolution
    assert type(model).__name__ == ("Siglip2Model" if native else "SiglipModel")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    key = checkpoint.params["vision/encoder/blocks/attn/key/kernel"].read()[1].reshape(36, 36)
    np.testing.assert_array_equal(
        state["vision_model.encoder.layers.1.self_attn.k_proj.weight"], key.T
    )
    assert model.config.text_config.pad_token_id == 0


@pytest.mark.parametrize("sharded", [False, True])
def test_what_transformers_saves_is_read(tmp_path, checkpoint, assert_equal, sharded):
    write(checkpoint, tmp_path / "ours", "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB" if sharded else "1GB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or not sharded
    found = read(tmp_path / "theirs")
    assert found.config == checkpoint.config
    assert_equal(found, checkpoint)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
def test_random_models_are_read(tmp_path, kind, dtype):
    """A model that never was ours, with a text tower narrower than the image's."""
    towers = {"intermediate_size": 48, "num_hidden_layers": 2}
    config = getattr(transformers, f"{kind}Config")(
        text_config={
            **towers,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "projection_size": 48,
            "vocab_size": 60_000,
        },
        vision_config={
            **towers,
            "hidden_size": 48,
            "num_attention_heads": 3,
            **({"image_size": 64} if kind == "Siglip" else {"num_patches": 16}),
        },
    )
    model = getattr(transformers, f"{kind}Model")(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert found.config.vision.num_heads == 3 and found.config.vision.grid == 4
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    fused = state["vision_model.head.attention.in_proj_weight"].reshape(3, 3, 16, 48)
    for part, name in enumerate(("query", "key", "value")):
        kernel = found.params[f"vision/pool/attn/{name}/kernel"].read()
        np.testing.assert_array_equal(kernel, np.moveaxis(fused[part], -1, 0))
    table = state["text_model.embeddings.token_embedding.weight"]
    np.testing.assert_array_equal(found.params["text/embed/table"].read(), table)
    write(found, tmp_path / "back", "hf")
    again = transformers.AutoModel.from_pretrained(tmp_path / "back").state_dict()
    assert again.keys() == state.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)


def test_processors_open(tmp_path, shared, checkpoint, make_checkpoint):
    tokenizer = Tokenizer.load(shared / "data" / "tokenizer" / "small_8k.model")
    text = dataclasses.replace(checkpoint.config.text, vocab_size=tokenizer.vocab_size)
    # Siglip2Processor itself says 16, whatever its image processor's file says.
    vision = dataclasses.replace(checkpoint.config.vision, patch_size=16)
    if not checkpoint.config.native_resolution:
        vision = dataclasses.replace(vision, image_size=88)
    model = make_checkpoint(ModelConfig(vision=vision, text=text))
    write(model, tmp_path / "hf", "hf", tokenizer=tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    name = "Siglip2" if model.config.native_resolution else "Siglip"
    assert type(processor).__name__ == f"{name}Processor"
    inputs = processor(
        text=["a photo of a cow"],
        images=[Image.new("RGB", (50, 30))],
        padding="max_length",
        return_tensors="pt",
    )
    np.testing.assert_array_equal(inputs["input_ids"], tokenizer(["a photo of a cow"]).ids)
    outputs = transformers.AutoModel.from_pretrained(tmp_path / "hf")(**inputs)
    assert outputs.logits_per_image.shape == (1, 1)
