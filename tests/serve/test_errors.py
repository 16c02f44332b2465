"""Errors: OpenAI's shape, one sentence, the part of the request, nothing of the server."""

from __future__ import annotations

import json
import struct
import zlib

import openai
import pytest
from serve.running import base64_of, encoded

pytestmark = pytest.mark.serve


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) > 10 and "Traceback" not in answer.text
    assert "siglip2_jax" not in answer.text and "/" + "tmp" not in answer.text
    return body["error"]


def bomb(side: int) -> bytes:
    """A small PNG that says it is `side` pixels square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGE = base64_of(encoded(9, 9))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "expected `input` or `messages`"),
        ({"input": ""}, "input", "is empty"),
        ({"input": []}, "input", "is empty"),
        ({"input": None}, "input", "found none"),
        ({"input": 5}, "input", "is a number"),
        ({"input": True}, "input", "is a truth value"),
        ({"input": [1.5]}, "input[0]", "is a number"),
        ({"input": ["a", ""]}, "input[1]", "is empty"),
        ({"input": ["a", None]}, "input[1]", "is null"),
        ({"input": [[]]}, "input[0]", "no list of token ids"),
        ({"input": [["a"]]}, "input[0]", "no list of token ids"),
        ({"input": [5, "a"]}, "input[0]", "is a number"),
        ({"input": [1024]}, "input", "0 to 1023"),
        ({"input": [[1], [-1]]}, "input", "run from -1"),
        ({"input": [[10**30]]}, "input", "0 to 1023"),
        ({"input": "x" * 20_001}, "input", "the limit is 20000"),
        ({"input": "\ud800"}, "input", "surrogate"),
        ({"input": ["a"] * 65}, "input", "the limit is 64"),
        ({"input": {}}, "input", "has no image"),
        ({"input": {"image": 5}}, "input.image", "is a number"),
        ({"input": {"text": []}}, "input.text", "is a list"),
        ({"input": {"image": ""}}, "input.image", "is empty"),
        ({"input": {"image": "?"}}, "input.image", "no image"),
        ({"input": {"image": "data:image/png,abc"}}, "input.image", "not base64"),
        ({"input": {"image": "file:///etc/passwd"}}, "input.image", "fetches no links"),
        ({"input": {"image": "/etc/passwd"}}, "input.image", ""),
        ({"input": {"image": "http://127.0.0.1/x.png"}}, "input.image", "fetches no links"),
        ({"input": {"image": base64_of(b"GIF89a")}}, "input.image", "damaged or truncated"),
        ({"input": {"image": base64_of(bomb(50_000))}}, "input.image", "max_pixels"),
        ({"input": {"image": base64_of(bomb(5000))}}, "input.image", "damaged or truncated"),
        ({"input": "x", "modality": "audio"}, "modality", "'text' or 'image'"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "x", "dimensions": 25}, "dimensions", "the model has 24"),
        ({"input": "x", "dimensions": 0}, "dimensions", "greater than"),
        ({"input": "x", "max_num_patches": "64"}, "max_num_patches", "integer"),
        ({"input": "x", "max_num_patches": 65}, "max_num_patches", "offers 16, 64"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": [{}]}, "messages[0].content", "no content"),
        ({"messages": [{"content": 5}]}, "messages[0].content", "is a number"),
        ({"messages": [{"content": ["x"]}]}, "messages[0].content[0]", "no type"),
        ({"messages": [{"content": "a"}, {"content": "b"}]}, "messages", "2 parts"),
        ({"input": "x", "messages": [{"content": "a"}]}, "input", "exactly one"),
    ],
)
def test_wrong_embeddings_requests(client, body, param, words):
    answer = client.post(
        "/v1/embeddings",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param and words in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"null", b"\xff", b"[" * 50_000])
def test_no_json_object(client, body):
    headers = {"Content-Type": "application/json"}
    error_of(client.post("/v1/embeddings", content=body, headers=headers), 400)


def test_other_places(client):
    assert error_of(client.get("/v1/nothing"), 404)["message"].endswith("/v1/nothing")
    error_of(client.get("/v1/embeddings"), 405)
    error_of(client.delete("/health"), 405)


def test_another_model_as_the_client_shows_it(client):
    ai = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError) as caught:
        ai.embeddings.create(model="gpt", input="x")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="dimensions is 99"):
        ai.embeddings.create(model="tiny", input="x", dimensions=99)


def test_a_bad_image_fails_its_own_request_only(client, model):
    """They are in the queue at the same time, and would be in one batch."""
    from concurrent.futures import ThreadPoolExecutor

    bodies = [{"input": {"image": IMAGE if i % 2 else base64_of(bomb(5000))}} for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/embeddings", json=body), bodies))
    assert [x.status_code for x in answers] == [400, 200] * 6


def test_description_has_all_routes_and_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/v1/models", "/v1/classify", "/v1/rerank"} < set(paths)
    for path in ("/v1/embeddings", "/v1/classify", "/v1/rerank"):
        responses = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "413", "429", "500", "503", "504"} <= set(responses)
        assert "422" not in responses
        for code, response in responses.items():
            if code != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/Errors")
