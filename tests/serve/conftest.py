"""One server for all tests that change nothing of it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "httpx", "openai")

# All modules import them; without the extra `serve` and its clients there is nothing to collect.
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def model():
    from siglip2_jax.testing import tiny_embedder

    return tiny_embedder()


@pytest.fixture(scope="session")
def client(model):
    """Client of a server with two budgets and a set of labels."""
    from serve.running import serving

    from siglip2_jax.serve.settings import LabelSet

    labels = {"animals": LabelSet(("dog", "cat", "bird"), ("a {}", "the {}"))}
    with serving(model, labels=labels, max_items=64, decode_workers=2) as client:
        yield client
