"""One server for all tests that change nothing of it."""

from __future__ import annotations

import pytest

for package in ("fastapi", "uvicorn", "httpx", "openai"):
    pytest.importorskip(package)

from serve.running import serving  # noqa: E402

from siglip2_jax.serve.settings import LabelSet  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402


@pytest.fixture(scope="session")
def model():
    return tiny_embedder()


@pytest.fixture(scope="session")
def client(model):
    """Client of a server with two budgets and a set of labels."""
    labels = {"animals": LabelSet(("dog", "cat", "bird"), ("a {}", "the {}"))}
    with serving(model, labels=labels, max_items=64, decode_workers=2) as client:
        yield client
