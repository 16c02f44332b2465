"""Agreement with the official implementation, on real images, from its own checkpoints."""

import numpy as np

import siglip2_jax
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.types import Patches


def stored_patches(expected, prefix):
    """Patches as the official preprocessing made them, from their 8-bit copy; pads are zero."""
    pixels = expected[f"{prefix}/patches_u8"] / np.float32(127.5) - 1
    yx = np.zeros((*pixels.shape[:2], 2), np.int32)
    valid = np.zeros(pixels.shape[:2], bool)
    for i, (rows, columns) in enumerate(expected[f"{prefix}/grid_hw"]):
        yx[i, : rows * columns] = np.indices((rows, columns)).reshape(2, -1).T
        valid[i, : rows * columns] = True
    return Patches(np.where(valid[..., None], pixels, 0).astype(np.float32), yx, valid)


def test_native_resolution(oracle):
    model, expected = siglip2_jax.load(oracle.checkpoint("naflex")), oracle.expected("naflex")
    images = oracle.images("naflex")
    assert model.config.native_resolution
    text = model.embed_tokens(expected["text_tokens"])
    budgets = sorted({int(k.split("/")[0][6:]) for k in expected if k.startswith("naflex")})
    assert len(budgets) >= 3
    for budget in budgets:
        of = {k: expected[f"naflex{budget}/{k}"] for k in ("image_embedding", "pooled", "logits")}
        from_patches = model.embed_images(stored_patches(expected, f"naflex{budget}"))
        np.testing.assert_allclose(
            from_patches, expected[f"naflex{budget}/image_embedding_from_u8"], atol=2e-6
        )
        features = model.image_features(images, max_num_patches=budget)
        np.testing.assert_allclose(features.image, of["image_embedding"], atol=2e-6)
        np.testing.assert_allclose(features.pooled, of["pooled"], atol=2e-5)
        np.testing.assert_array_equal(features.grid, expected[f"naflex{budget}/grid_hw"])
        np.testing.assert_allclose(
            features.tokens[0][features.valid[0]],
            expected[f"naflex{budget}/patch_tokens_first"],
            atol=2e-5,
        )
        np.testing.assert_allclose(text, expected[f"naflex{budget}/text_embedding"], atol=2e-6)
        np.testing.assert_allclose(model.logits(features.image, text), of["logits"], atol=5e-5)


def test_fixed_resolution(oracle):
    model, expected = siglip2_jax.load(oracle.checkpoint("fixed")), oracle.expected("fixed")
    assert not model.config.native_resolution
    features = model.image_features(oracle.images("fixed"))
    np.testing.assert_allclose(features.image, expected["image_embedding"], atol=2e-6)
    np.testing.assert_allclose(features.tokens, expected["patch_tokens"], atol=2e-5)
    exact = model.embed_images(list(expected["pixels_u8"]))
    np.testing.assert_allclose(exact, expected["image_embedding"], atol=2e-6)
    text = model.embed_tokens(expected["text_tokens"])
    np.testing.assert_allclose(text, expected["text_embedding"], atol=2e-6)


def test_images_and_texts_to_logits(golden):
    """With the demo's tokenizer in the place of Gemma's."""
    model = siglip2_jax.load(golden.checkpoint("fixed"), tokenizer=TOKENIZER)
    images, expected = golden.images("fixed"), golden.expected("fixed")
    texts = model.embed_texts(golden.config("texts")["texts"])
    np.testing.assert_allclose(texts, expected["text_embedding"], atol=2e-6)
    pooled = model.embed_images(images, normalize=False)
    np.testing.assert_allclose(pooled, expected["pooled"], atol=2e-5)
    logits = model.logits(model.embed_images(images), texts)
    np.testing.assert_allclose(logits, expected["logits"], atol=5e-5)
