"""`/v1/rerank` and `/v1/search`."""

from __future__ import annotations

import math
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
from serve.running import base64_of, encoded, serving

from siglip2_jax.search import Hit, Index
from siglip2_jax.serve.ranking import _PLAIN

pytestmark = pytest.mark.serve

FILES = [encoded(12 + 5 * i, 40 - 5 * i, i) for i in range(5)]
IMAGES = [{"image": base64_of(x)} for x in FILES]
PLAIN = [
    "width > 20 AND (height<=30 or not(width<>3))",
    "caption LIKE '%it''s (no) function%' AND id != 'length(x) -- /* '",
    "width IN (1, 2)",
    "`width` * 1.5 + -2 BETWEEN 3 AND 4 / 5",
    "caption IS NOT NULL",
    "index = 'in' AND android = 3 AND nota.b > 2",
]
NOT_PLAIN = [
    "length(id) > 3",
    "LENGTH (id) > 3",
    "`length` (id) > 3",
    '"length"(id) > 3',
    "length/**/(id) > 3",
    "length --\n(id) > 3",
    "length\n\t(id) > 3",
    "true OR length(repeat('a', 2000000000)) > 1",
    "array_length([1, 2]) = 2",
    "width > 3; -- more",
    "id != N'a'",  # LanceDB panics
    "id != $$a$$",
    "id = 'no end",
]
TEXTS = ["a dog", "two cats", "a harbour at night", "snow"]


def rerank(client, **body):
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    return [x["index"] for x in results], [x["relevance_score"] for x in results]


def check(client, expected, **body):
    order, scores = rerank(client, **body)
    assert order == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(scores, expected[order], atol=1e-6, rtol=1e-4)
    first, best = rerank(client, **body, top_n=2)
    assert first == order[:2]
    np.testing.assert_allclose(best, scores[:2], atol=1e-6, rtol=1e-4)


def test_every_pair_of_kinds(client, model):
    images = model.embed_images(FILES, max_num_patches=64)
    texts = model.embed_texts(TEXTS)
    budget = {"max_num_patches": 64}
    probabilities = model.probabilities(images, texts)
    check(client, probabilities[:, 0], query=TEXTS[0], documents=IMAGES, **budget)
    check(client, probabilities[2], query=IMAGES[2], documents=TEXTS, **budget)
    check(client, images @ images[1], query=IMAGES[1], documents=IMAGES, **budget)
    mappings = [{"text": x} for x in TEXTS]
    check(client, texts @ texts[3], query={"text": TEXTS[3]}, documents=mappings)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "x", "documents": ["a", IMAGES[0]]}, "documents"),
        ({"query": "x", "documents": []}, "documents"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": 3, "documents": ["a"]}, "query"),
        ({"query": "x", "documents": [{"image": "AAAA"}]}, "documents[0].image"),
        ({"query": "x", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"documents": ["a"]}, "query"),
    ],
)
def test_what_cannot_be_ranked(client, body, param):
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


class BruteForce(Index):
    """A database in memory."""

    def __init__(self, rows):
        self.rows = rows
        schema = SimpleNamespace(names=["id", "embedding", "width"])
        self.database = SimpleNamespace(
            settings={"patches": 64}, table=SimpleNamespace(schema=schema)
        )

    def nearest(self, vectors, *, k=None, threshold=None, where=None, approximate=None):
        if where == "DROP":
            raise ValueError(f"/secret/place: the condition {where!r} cannot be read")
        (scores,) = (self.rows @ vectors.T).T
        order = [i for i in np.argsort(-scores, kind="stable") if where is None or i < 3]
        order = [i for i in order if threshold is None or scores[i] >= threshold][:k]
        return [
            [
                Hit(
                    f"{i}.png",
                    scores[i],
                    None,
                    {"year": 2020 + int(i), "taken": date(2020, 1, 1), "sharp": math.nan},
                    4,
                    5,
                )
                for i in order
            ]
        ]


def test_search(model):
    rows = model.embed_images(FILES, max_num_patches=64)
    with serving(model, BruteForce(rows)) as client:
        assert client.get("/v1/models").json()["data"][0]["search"] is True

        def search(**body):
            answer = client.post("/v1/search", json=body)
            assert answer.status_code == 200, answer.text
            return [(x["id"], x["score"]) for x in answer.json()["results"]]

        scores = rows @ model.embed_texts("a dog")[0]
        order = np.argsort(-scores)
        hits = search(query="a dog", k=3)
        assert [x for x, _ in hits] == [f"{i}.png" for i in order[:3]]
        np.testing.assert_allclose([x for _, x in hits], scores[order[:3]], atol=1e-6)
        fields = client.post("/v1/search", json={"query": "x"}).json()["results"][0]["fields"]
        assert fields["taken"] == "2020-01-01" and fields["sharp"] is None
        for body in ({"image": base64_of(FILES[4])}, {"query": IMAGES[4]}):
            (best, *_) = search(**body)
            assert best[0] == "4.png" and abs(best[1] - 1) < 1e-6
        assert len(search(query="a dog", where="width > 20")) == 3
        assert search(query="a dog", threshold=1.0) == []
        for body, param in (
            ({}, "query"),
            ({"query": "x", "image": "AAAA"}, "query"),
            ({"query": "x", "k": 0}, "k"),
            ({"query": "x", "where": "DROP"}, "where"),
            ({"query": "x", "where": "width > 20 OR width > 20 " * 100}, "where"),
            ({"query": "x", "threshold": "high"}, "threshold"),
        ):
            answer = client.post("/v1/search", json=body)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == param
            assert "secret" not in answer.text


@pytest.mark.parametrize("where", PLAIN)
def test_plain_conditions(where):
    assert _PLAIN.fullmatch(where)


@pytest.mark.parametrize("where", NOT_PLAIN)
def test_conditions_with_functions(where):
    assert not _PLAIN.fullmatch(where)


def test_no_search_without_a_database(client):
    assert client.post("/v1/search", json={"query": "x"}).status_code == 404
