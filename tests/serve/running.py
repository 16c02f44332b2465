"""Servers in this process, on a free port of this machine."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
from PIL import Image

from siglip2_jax.serve.app import create_app
from siglip2_jax.serve.run import Server, listen
from siglip2_jax.serve.settings import Settings
from siglip2_jax.testing import tiny_embedder

SMALL = {"model_name": "tiny", "budgets": (16, 64), "batch_sizes": (1, 4), "grace": 0.0}
"""Settings that warm up in a few seconds."""


@contextmanager
def running(app, *, warm: bool = True) -> Iterator[httpx.Client]:
    """Serves an app and gives a client of it; waits until it is ready unless `warm` is False."""
    sock = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            end = time.monotonic() + 120
            while not server.started or (warm and not app.state.service.warm):
                assert thread.is_alive() and time.monotonic() < end
                assert app.state.service.health != "failed"
                time.sleep(0.05)
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(model=None, index=None, **changes) -> Iterator[httpx.Client]:
    """Serves a tiny model with small settings but for the changes."""
    settings = Settings(**{**SMALL, **changes})
    with running(create_app(model or tiny_embedder(), settings, index)) as client:
        yield client


def encoded(height: int, width: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64_of(data)}"
