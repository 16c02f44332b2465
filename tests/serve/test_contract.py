"""Promises of the server's OpenAPI, tried on a running server."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from siglip2_jax.testing import tiny_embedder

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
served = pytest.importorskip("served")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = pytest.mark.serve

DATABASE = find_spec("lancedb") is not None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Served]:
    folder = tmp_path_factory.mktemp("server")
    tiny_embedder().save(folder / "tiny")
    options = ("--db", str(served.make_database(folder, folder / "tiny"))) if DATABASE else ()
    with served.Served(folder / "tiny", folder / "log", options) as server:
        yield server


@pytest.fixture(scope="module")
def schema(server: served.Served):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


SEARCH = ("POST", "/v1/search")
OPERATIONS = [
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/rerank"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
PROMISES = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


def test_all_operations_are_tried(schema):
    found = [result.ok() for result in schema.get_all_operations()]
    expected = [*OPERATIONS, SEARCH] if DATABASE else OPERATIONS
    assert {(x.method.upper(), x.path) for x in found} == set(expected)


def marks(operation: tuple[str, str]) -> list[pytest.MarkDecorator]:
    if operation != SEARCH:
        return []
    return [pytest.mark.search, pytest.mark.skipif(not DATABASE, reason="needs lancedb")]


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        pytest.param(*operation, mode, marks=marks(operation))
        for operation in [*OPERATIONS, SEARCH]
        for mode in ("POSITIVE", "NEGATIVE")
        if operation[0] == "POST" or mode == "POSITIVE"  # GET takes nothing
    ],
)
def test_answers_are_as_promised(schema, method, path, mode):
    """Requests that fit the description, and requests that do not."""
    statuses = set()

    def promised(case):
        answer = case.call()
        case.validate_response(answer, checks=PROMISES)
        statuses.add(answer.status_code)

    cases = schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @hypothesis.settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def try_some(case):
        promised(case)

    try_some()
    if (method, path) == SEARCH:  # conditions of any characters, as the description has them
        promised(schema[path][method].Case(body={"query": "a boat"}, media_type="application/json"))
    if method == "GET":
        assert statuses == {200}
    elif mode == "NEGATIVE":
        assert 400 in statuses
    elif path in (
        "/v1/embeddings",
        "/v1/search",
    ):  # the others need images, which are not described byte by byte
        assert 200 in statuses
