"""Keys, sizes, deadlines, clients that leave, a full server, and its health."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
from serve.running import SMALL, base64_of, encoded, running, serving

from siglip2_jax.serve.app import create_app
from siglip2_jax.serve.settings import Settings

pytestmark = pytest.mark.serve

URL = "/v1/embeddings"


@contextmanager
def held(model, **changes):
    """A server whose device waits until `go` is set; gives client, service and `go`."""
    app = create_app(model, Settings(**SMALL | {"budgets": (16,), "batch_sizes": (1,)} | changes))
    service, go = app.state.service, threading.Event()
    go.set()
    run = service.engine._call

    def wait(program, batch):
        go.wait(30)
        return run(program, batch)

    service.engine._call = wait
    with running(app) as client:
        try:
            yield client, service, go
        finally:
            go.set()


def value(client, name: str) -> float:
    lines = client.get("/metrics").text.split("\n")
    return sum(float(x.split(" ")[-1]) for x in lines if x.startswith(name))


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_keys(model):
    with serving(model, api_keys=("first key", "second"), budgets=(16,)) as client:
        for header in (None, "Bearer", "Bearer wrong", "Basic second", "Bearer  second", "second"):
            headers = {} if header is None else {"Authorization": header}
            answer = client.post(URL, json={"input": "x"}, headers=headers)
            right = header == "Bearer  second"
            assert answer.status_code == (200 if right else 401)
            if not right:
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for key in ("first key", "second"):
            ai = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0)
            assert len(ai.embeddings.create(model="tiny", input="x").data) == 1
        ai = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="third", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            ai.models.list()
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
        assert [x["scheme"] for x in schemes.values()] == ["bearer"]


def test_sizes(model):
    with serving(model, max_request_bytes=10_000, max_image_bytes=2000, budgets=(16,)) as client:
        for length in (10_001, 1_000_000):
            answer = client.post(URL, content=b"x" * length)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"

        def pieces():
            for _ in range(20):
                yield b"x" * 1000

        assert client.post(URL, content=pieces()).status_code == 413  # with no length beforehand
        image = encoded(40, 40)
        assert 2000 < len(image) < 7000
        answer = client.post(URL, json={"input": {"image": base64_of(image)}})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "image_too_large"
        assert client.post(URL, json={"input": "x"}).status_code == 200


def test_requests_together_have_a_limit(model):
    with held(model, max_held_bytes=10_000) as (client, _, go), ThreadPoolExecutor() as pool:
        go.clear()
        body = {"input": ["x" * 4000, "y"]}
        first = pool.submit(client.post, URL, json=body)
        second = pool.submit(client.post, URL, json=body)
        until(lambda: value(client, "siglip2_queue_items") == 4)
        third = client.post(URL, json=body)
        assert third.status_code == 429 and third.headers["Retry-After"]
        go.set()
        assert [x.result().status_code for x in (first, second)] == [200, 200]
        assert client.post(URL, json=body).status_code == 200


def test_a_full_queue(model):
    with held(model, queue=4, max_items=2) as (client, _, go), ThreadPoolExecutor() as pool:
        go.clear()
        waiting = [pool.submit(client.post, URL, json={"input": [f"{i}", "x"]}) for i in range(2)]
        until(lambda: value(client, "siglip2_queue_items") == 4)
        answer = client.post(URL, json={"input": "one more"})
        assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert value(client, 'siglip2_refused_total{reason="queue"}') == 1
        ai = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError):
            ai.embeddings.create(model="tiny", input="one more")
        go.set()
        assert [x.result().status_code for x in waiting] == [200, 200]
        assert value(client, "siglip2_queue_items") == 0


def test_a_missed_deadline(model):
    with held(model, deadline=1.0) as (client, service, go):
        go.clear()
        start = time.monotonic()
        answer = client.post(URL, json={"input": "x"})
        assert 0.9 < time.monotonic() - start < 5
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert service.batcher.waiting == 0
        go.set()
        assert client.post(URL, json={"input": "x"}).status_code == 200
        assert value(client, "siglip2_late_total") == 1


def test_a_client_that_leaves_takes_its_items_with_it(model):
    with held(model) as (client, service, go):
        go.clear()
        with ThreadPoolExecutor() as pool:
            stays = pool.submit(client.post, URL, json={"input": "stays"})
            until(lambda: service.batcher.waiting == 1)
            with pytest.raises(httpx.ReadTimeout):
                client.post(URL, json={"input": ["a", "b", "c"]}, timeout=0.5)
            until(lambda: service.batcher.waiting == 1)
            assert value(client, "siglip2_left_total") == 1
            go.set()
            assert stays.result().status_code == 200
        assert value(client, 'siglip2_items_total{program="text"}') == 1


def test_slow_and_silent_clients(model, monkeypatch):
    monkeypatch.setattr("siglip2_jax.serve.run.HEAD_SECONDS", 0.5)
    monkeypatch.setattr("siglip2_jax.serve.gate._DISCARD_SECONDS", 0.2)
    with serving(model, deadline=1.0, budgets=(16,)) as client:
        place = client.base_url.host, client.base_url.port
        for start in (b"", b"POST /v1/emb"):
            with socket.create_connection(place, 10) as slow:
                slow.sendall(start)
                assert slow.recv(100) == b""  # closed
        with socket.create_connection(place, 10) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        assert client.post(URL, json={"input": "x"}).status_code == 200


def test_answers_are_sent_at_once(client):
    """Without TCP_NODELAY each of them takes 40 ms."""

    def seconds():
        start = time.perf_counter()
        client.get("/health")
        return time.perf_counter() - start

    assert sorted(seconds() for _ in range(21))[10] < 0.03


def test_health_of_a_stuck_and_of_a_lost_device(model, caplog):
    with held(model, stuck_seconds=0.3, deadline=1.0) as (client, service, go):
        assert client.get("/health").json() == {"status": "ok"}
        go.clear()
        assert client.post(URL, json={"input": "x"}).status_code == 504
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert answer.status_code == 503 and answer.json() == {"status": "stuck"}
        assert value(client, "siglip2_healthy") == 0
        go.set()
        until(lambda: client.get("/health").status_code == 200)

        works, calls = service.engine._call, []

        def fails_once(program, batch):
            calls.append(program)
            if len(calls) == 1:
                raise RuntimeError("secret place")
            return works(program, batch)

        service.engine._call = fails_once
        answer = client.post(URL, json={"input": "another"})
        assert answer.status_code == 500 and "secret" not in answer.text
        assert client.get("/health").status_code == 200  # only that batch failed
        assert client.post(URL, json={"input": "another"}).status_code == 200

        def lost(program, batch):
            raise RuntimeError("the chip is gone")

        service.engine._call = lost
        answer = client.post(URL, json={"input": "third"})
        assert answer.status_code == 503 and "chip" not in answer.text
        assert client.get("/ready").json() == {"status": "lost"}
        assert "the chip is gone" in caplog.text


def test_a_repeated_text_comes_from_the_cache(model):
    with serving(model, budgets=(16,), text_cache=2) as client:
        rows = model.embed_texts(["a", "b", "c"])
        for texts, hits in ((["a", "b", "a"], 0), (["b", "a"], 2), (["c"], 2), (["a", "b"], 3)):
            data = client.post(URL, json={"input": texts}).json()["data"]
            expected = [rows["abc".index(x)] for x in texts]
            np.testing.assert_allclose([x["embedding"] for x in data], expected, atol=1e-6)
            assert value(client, "siglip2_cached_texts_total") == hits
        assert value(client, "siglip2_items_total") == 4


def test_not_ready_before_all_programs_are_compiled(model):
    app = create_app(model, Settings(**SMALL | {"budgets": (16,)}))
    service, go = app.state.service, threading.Event()
    warm_up = service.engine.warm_up
    service.engine.warm_up = lambda: go.wait(60) and warm_up()
    with running(app, warm=False) as client:
        assert client.get("/health").status_code == 200
        answer = client.get("/ready")
        assert answer.status_code == 503 and answer.json() == {"status": "warming up"}
        answer = client.post(URL, json={"input": "x"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_ready"
        assert answer.headers["Retry-After"]
        go.set()
        until(lambda: client.get("/ready").status_code == 200, 60)
        assert client.post(URL, json={"input": "x"}).status_code == 200
