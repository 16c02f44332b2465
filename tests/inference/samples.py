"""Images of noise, and a count of what is compiled."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from PIL import Image


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng((height, width))
    # A colour of its own for every image, or averages would make them all alike.
    return (rng.integers(0, 128, (height, width, 3)) + rng.integers(0, 128, 3)).astype(np.uint8)


def png(pixels: np.ndarray, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **options)
    return data.getvalue()


@contextmanager
def counted_compilations() -> Iterator[Counter]:
    """Counts the programs that XLA compiles, whoever queries for them."""
    count = Counter()

    def listen(event: str, *_, **__) -> None:
        count.update([event] if event == "/jax/core/compile/backend_compile_duration" else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
