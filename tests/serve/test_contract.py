"""What the server's OpenAPI promises, tried on a running server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from siglip2_jax.testing import tiny_embedder

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
served = pytest.importorskip("served")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Served]:
    folder = tmp_path_factory.mktemp("server")
    tiny_embedder().save(folder / "tiny")
    with served.Served(folder / "tiny", folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def schema_of_server(server: served.Served):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


SCHEMA = schemathesis.pytest.from_fixture("schema_of_server")
PROMISES = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_answers_are_as_promised(case):
    case.call_and_validate(checks=PROMISES)
