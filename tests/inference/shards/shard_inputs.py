"""Shards of small images in memory, one of them broken, and the rows they are to have."""

import hashlib
import io

import numpy as np
from PIL import Image

from siglip2_jax.data.items.item import Shard
from siglip2_jax.data.sources import Memory

BROKEN = 4
IMAGES = 11
OPTIONS = {"max_num_patches": 16, "batch_size": 4, "workers": 0}


def encoded(i: int) -> bytes:
    rng = np.random.default_rng(i)
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, (8 + 3 * i, 40 - 3 * i, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def example(i: int) -> dict:
    return {
        "image": b"no image at all" if i == BROKEN else encoded(i),
        "captions": (f"image {i}", "another text") if i % 2 else (),
        "name": f"example {i}",
        "label": i,
        "score": i / 4,
    }


class Source(Memory):
    """Examples in memory, told apart by their number alone: readers hold what they have opened."""

    def __hash__(self) -> int:
        return len(self.examples)


EXAMPLES = tuple(map(example, range(IMAGES)))
SOURCE = Source(EXAMPLES)


def shards(*sizes: int) -> list[Shard]:
    """Shards of so many examples, one after the other."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [
        Shard(f"{i:06d}-memory", SOURCE, first, last)
        for i, (first, last) in enumerate(zip(ends, ends[1:], strict=False))
    ]


def content(i: int) -> str:
    return hashlib.blake2b(EXAMPLES[i]["image"], digest_size=16).hexdigest()


def good() -> list[int]:
    return [i for i in range(IMAGES) if i != BROKEN]
