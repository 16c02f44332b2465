"""transformers/torch with random weights, live: the same numbers, in both directions."""

import dataclasses
import types

import numpy as np
import pytest
from models.builders import patches

from siglip2_jax import Embedder, load
from siglip2_jax.models.config import ModelConfig, two_towers
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.testing import random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # of other packages, on import and construction
]
transformers.logging.set_verbosity_error()

GRIDS = [(16, 16), (4, 64), (64, 4), (1, 64), (7, 36), (23, 34), (128, 2)]
BUDGET = 23 * 34


def cut(config: ModelConfig, depth: int) -> ModelConfig:
    """The same proportions with fewer layers and a small vocabulary."""
    return ModelConfig(
        vision=dataclasses.replace(config.vision, depth=depth),
        text=dataclasses.replace(config.text, depth=depth, vocab_size=500),
    )


def native(size: str, depth: int) -> ModelConfig:
    return cut(two_towers(size, patch_size=16, image_size=None), depth)


def fixed(size: str, depth: int, patch_size: int, image_size: int) -> ModelConfig:
    return cut(two_towers(size, patch_size=patch_size, image_size=image_size), depth)


CASES = {
    "B/16 native": native("B", 3),
    "So400m/16 native": native("So400m", 2),
    "g-opt/16 native": native("g-opt", 1),
    "B/16 256": fixed("B", 3, 16, 256),
    "So400m/14 384": fixed("So400m", 1, 14, 384),
    "g-opt/16 256": fixed("g-opt", 1, 16, 256),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """Our model, and the one transformers opens from our export."""
    config = CASES[request.param]
    preprocess = ImagePreprocessor(config.vision.patch_size, config.vision.image_size)
    ours = Embedder(config, random_params(config, seed=3), preprocess)
    path = tmp_path_factory.mktemp("export") / "hf"
    ours.save(path, "hf")
    theirs, report = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert theirs.config.model_type == ("siglip2" if config.native_resolution else "siglip")
    return ours, theirs.eval(), path


def images_of(ours, grids):
    vision = ours.config.vision
    if ours.config.native_resolution:
        return patches(grids, BUDGET, vision.patch_size, seed=5)
    return patches([(vision.grid, vision.grid)] * 2, vision.num_patches, vision.patch_size, seed=5)


def torch_inputs(ours, image):
    vision = ours.config.vision
    if ours.config.native_resolution:
        grid = image.yx.max(axis=1) + 1
        return {
            "pixel_values": torch.tensor(image.pixels),
            "pixel_attention_mask": torch.tensor(image.valid.astype(np.int32)),
            "spatial_shapes": torch.tensor(grid),
        }
    n, p = vision.grid, vision.patch_size
    photo = image.pixels.reshape(-1, n, n, p, p, 3).transpose(0, 5, 1, 3, 2, 4)
    photo = photo.reshape(-1, 3, n * p, n * p)
    rest = vision.image_size - n * p  # pixels that fill no patch
    photo = np.pad(photo, [(0, 0), (0, 0), (0, rest), (0, rest)], constant_values=0.5)
    return {"pixel_values": torch.tensor(photo)}


def test_every_output_agrees(pair):
    ours, theirs, _ = pair
    image = images_of(ours, GRIDS)
    ids = np.random.default_rng(0).integers(0, 500, (3, 64), np.int32)
    features, text = ours.image_features(image), ours.embed_tokens(ids)
    with torch.inference_mode():
        out = theirs(**torch_inputs(ours, image), input_ids=torch.tensor(ids.astype(np.int64)))
    close = {"atol": 2e-5, "rtol": 0}
    np.testing.assert_allclose(features.image, out.image_embeds.numpy(), **close)
    np.testing.assert_allclose(text, out.text_embeds.numpy(), **close)
    tokens = out.vision_model_output.last_hidden_state.numpy()
    np.testing.assert_allclose(features.tokens[image.valid], tokens[image.valid], **close)
    pooled = out.vision_model_output.pooler_output.numpy()
    np.testing.assert_allclose(features.pooled, pooled, **close)
    logits = ours.logits(features.image, text)
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), **close)


def test_hidden_states_agree(pair):
    ours, theirs, _ = pair
    image, depth = images_of(ours, GRIDS), ours.config.vision.depth
    inputs = torch_inputs(ours, image)
    with torch.inference_mode():
        out = theirs.vision_model(**inputs, output_hidden_states=True)
    layers = (*range(depth + 1), *range(-depth - 1, 0))
    images = ours.tokens_for_vlm(image, layers, merge=1)
    for row, x in enumerate(images):
        expected = [out.hidden_states[layer][row][image.valid[row]].numpy() for layer in layers]
        np.testing.assert_allclose(x.tokens, expected, atol=2e-5, rtol=0)


def test_neighbours_are_merged_as_lfm2_vl_and_qwen_vl_do():
    from transformers.models.lfm2_vl.modeling_lfm2_vl import Lfm2VlMultiModalProjector

    from siglip2_jax.inference.vlm_tokens import States, split_images

    rows, columns, width = 6, 4, 5
    tokens = np.random.default_rng(0).standard_normal((rows * columns, width), np.float32)
    states = States(tokens[None, None], np.ones((1, 24), bool), np.array([[rows, columns]]))
    (image,) = split_images(states, 2)
    maps = torch.tensor(tokens).reshape(1, rows, columns, width)
    projector = types.SimpleNamespace(factor=2)
    expected = Lfm2VlMultiModalProjector.pixel_unshuffle(projector, maps)
    np.testing.assert_array_equal(image.tokens[0], expected.reshape(6, -1).numpy())
    # Qwen3-VL's patches arrive in blocks, and its merger joins each four.
    blocks = maps.reshape(3, 2, 2, 2, width).transpose(1, 2).reshape(24, width)
    np.testing.assert_array_equal(image.tokens[0], blocks.reshape(6, -1).numpy())


def test_what_transformers_saves_loads_the_same(pair, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config == ours.config
    image = images_of(ours, GRIDS[:2])
    ids = np.arange(64, dtype=np.int32)[None]
    np.testing.assert_array_equal(again.embed_images(image), ours.embed_images(image))
    np.testing.assert_array_equal(again.embed_tokens(ids), ours.embed_tokens(ids))


def test_position_resize_equals_torch_antialiased_bilinear():
    from flax import nnx

    from siglip2_jax.models.posemb import PositionTable

    table = PositionTable(16, 32, rngs=nnx.Rngs(0))
    source = torch.tensor(np.asarray(table.table[...])).permute(2, 0, 1)[None]
    import jax

    for grid in [*GRIDS, (128, 8)]:
        image = patches([grid], grid[0] * grid[1])
        resized = torch.nn.functional.interpolate(
            source, size=grid, mode="bilinear", align_corners=False, antialias=True
        )
        expected = resized[0].permute(1, 2, 0).reshape(-1, 32).numpy()
        found = jax.jit(table.__call__)(image.yx, image.valid)[0]
        np.testing.assert_allclose(found, expected, atol=2e-6)
