"""`/v1/embeddings` through the real `openai` client: every form, equal to the Python API."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from serve.running import base64_of, data_uri, encoded, serving

from siglip2_jax.testing import TINY_FIXED, tiny_embedder

pytestmark = pytest.mark.serve

TEXTS = ["a dog on a beach", "two cats", "Ünïcode 東京", "a dog on a beach"]
FILES = [encoded(20, 31), encoded(50, 8, 1, "JPEG"), encoded(1, 1, 2)]


@pytest.fixture
def ai(client):
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


def rows(answer) -> np.ndarray:
    assert [x.index for x in answer.data] == list(range(len(answer.data)))
    return np.array([x.embedding for x in answer.data])


def close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=0)


def test_a_text(ai, model):
    answer = ai.embeddings.create(model="tiny", input=TEXTS[0])
    close(rows(answer), model.embed_texts(TEXTS[:1]))
    assert answer.model == "tiny" and answer.object == "list"
    ids = model.tokenizer.encode(TEXTS[0])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(ids) + 1


def test_texts(ai, model):
    close(rows(ai.embeddings.create(model="tiny", input=TEXTS)), model.embed_texts(TEXTS))


def test_as_numbers(ai, model):
    answer = ai.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    close(rows(answer), model.embed_texts(TEXTS))


def test_base64_is_little_endian_float32(client, model):
    body = {"input": TEXTS[0], "encoding_format": "base64"}
    answer = client.post("/v1/embeddings", json=body).json()
    row = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    close(row, model.embed_texts(TEXTS[:1])[0])


def test_token_ids(ai, model):
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    close(rows(ai.embeddings.create(model="tiny", input=ids[0])), model.embed_texts(TEXTS[:1]))
    close(rows(ai.embeddings.create(model="tiny", input=ids)), model.embed_texts(TEXTS))
    padded = model.tokenizer(TEXTS).ids.tolist()
    close(rows(ai.embeddings.create(model="tiny", input=padded)), model.embed_texts(TEXTS))


def test_a_long_text_is_cut_as_the_tokenizer_cuts_it(ai, model):
    text = "a red house by the sea " * 40
    ids = model.tokenizer.encode(text)
    assert len(ids) > model.config.text.length
    answer = ai.embeddings.create(model="tiny", input=[text, "x"])
    close(rows(answer)[:1], model.embed_texts([text]))
    close(rows(ai.embeddings.create(model="tiny", input=ids)), model.embed_texts([text]))


def test_mappings_of_texts_and_images(ai, model):
    items = [
        {"text": TEXTS[0]},
        {"image": base64_of(FILES[0])},
        {"image": data_uri(FILES[1])},
        TEXTS[1],
        {"image_url": {"url": data_uri(FILES[2])}},
    ]
    actual = rows(ai.embeddings.create(model="tiny", input=items))
    close(actual[[0, 3]], model.embed_texts(TEXTS[:2]))
    close(actual[[1, 2, 4]], model.embed_images(FILES, max_num_patches=16))


def test_strings_that_are_images(ai, model):
    strings = [data_uri(FILES[0]), base64_of(FILES[1]), data_uri(FILES[2])]
    answer = ai.embeddings.create(model="tiny", input=strings, extra_body={"modality": "image"})
    close(rows(answer), model.embed_images(FILES, max_num_patches=16))
    patches = model.preprocess(FILES, 16).valid.sum()
    assert answer.usage.prompt_tokens == patches


def test_a_budget_of_the_request(ai, model):
    items = [{"image": base64_of(x)} for x in FILES]
    answer = ai.embeddings.create(model="tiny", input=items, extra_body={"max_num_patches": 64})
    close(rows(answer), model.embed_images(FILES, max_num_patches=64))
    assert np.abs(rows(answer) - model.embed_images(FILES, max_num_patches=16)).max() > 1e-3


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": data_uri(FILES[0])}}],
        [{"type": "text", "text": TEXTS[0]}],
        TEXTS[0],
    ],
)
def test_messages(ai, model, content):
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    body["encoding_format"] = "float"
    answer = ai.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body)
    image = isinstance(content, list) and content[0]["type"] == "image_url"
    expected = (
        model.embed_images(FILES[:1], max_num_patches=16) if image else model.embed_texts(TEXTS[:1])
    )
    close(rows(answer), expected)


def test_dimensions_are_cut_and_scaled_again(ai, model):
    answer = ai.embeddings.create(model="tiny", input=TEXTS, dimensions=10)
    cut = model.embed_texts(TEXTS)[:, :10].astype(np.float64)
    close(rows(answer), cut / np.linalg.norm(cut, axis=1, keepdims=True))
    close(
        rows(ai.embeddings.create(model="tiny", input=TEXTS, dimensions=24)),
        model.embed_texts(TEXTS),
    )


def test_many_items_at_once(ai, model):
    files = [encoded(8 + i, 40 - i, i) for i in range(12)]
    texts = [f"number {i}" for i in range(30)]
    items = [{"image": base64_of(x)} for x in files] + texts
    actual = rows(ai.embeddings.create(model="tiny", input=items))
    close(actual[:12], model.embed_images(files, max_num_patches=16))
    close(actual[12:], model.embed_texts(texts))


def test_models(ai):
    (info,) = ai.models.list().data
    assert info.id == "tiny"
    assert info.model_extra["max_num_patches"] == [16, 64]
    assert info.model_extra["dimensions"] == 24


def test_fixed_resolution_has_one_budget(client):
    model = tiny_embedder(TINY_FIXED)
    with serving(model) as fixed:
        (info,) = fixed.get("/v1/models").json()["data"]
        assert info["max_num_patches"] == [16]
        body = {"input": {"image": base64_of(FILES[0])}, "max_num_patches": 256}
        answer = fixed.post("/v1/embeddings", json=body).json()
        close(answer["data"][0]["embedding"], model.embed_images(FILES[0])[0])
        assert answer["usage"]["prompt_tokens"] == 16


@pytest.mark.slow
def test_all_devices_are_used(model):
    import jax

    spread = tiny_embedder()
    spread.replicate_over(jax.devices())
    with serving(spread, batch_sizes=(1, 12)) as client:
        body = {"input": [{"image": base64_of(x)} for x in FILES * 3] + TEXTS}
        actual = [x["embedding"] for x in client.post("/v1/embeddings", json=body).json()["data"]]
        close(actual[:3], model.embed_images(FILES, max_num_patches=16))
        close(actual[9:], model.embed_texts(TEXTS))


def test_without_a_tokenizer_token_ids_of_full_length_are_needed(model):
    with serving(tiny_embedder(tokenizer=False), budgets=(16,)) as client:
        ids = model.tokenizer(TEXTS).ids.tolist()
        data = client.post("/v1/embeddings", json={"input": ids}).json()["data"]
        close([x["embedding"] for x in data], model.embed_texts(TEXTS))
        for value in ("a dog", ids[0][:5]):
            answer = client.post("/v1/embeddings", json={"input": value})
            assert answer.status_code == 400 and "tokenizer" in answer.json()["error"]["message"]
