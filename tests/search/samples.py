"""Databases of random embeddings and of small images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.item import Columns, Item
from siglip2_jax.inference.shards import Options
from siglip2_jax.search.database import settings_of
from siglip2_jax.search.indexing import Summary, index_images
from siglip2_jax.search.place import Place
from siglip2_jax.search.rows import rows_of
from siglip2_jax.search.writer import Writer, writing
from siglip2_jax.testing import tiny_embedder

SETTINGS = {"weights": "w", "width": 16, "patches": 16, "loaded_from": None, "made_by": "a test"}


def clustered(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Rows of unit length around 50 centres."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((50, width))[rng.integers(0, 50, count)]
    rows = rows + 0.5 * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def items_of(names: list[str], **fields: list) -> list[Item]:
    """Items whose content is made of their names."""
    return [
        Item(
            name,
            hashlib.blake2b(name.encode(), digest_size=16).hexdigest(),
            10 + i,
            20,
            f"caption of {name}",
            {key: values[i] for key, values in fields.items()},
        )
        for i, name in enumerate(names)
    ]


def add_random(writer: Writer, names: list[str], rows: np.ndarray) -> None:
    """Adds rows with some embeddings."""
    writer.add(rows_of(items_of(names), rows, {}))


def make_random(uri: str | Path, count: int, width: int = 16, *, index: bool = False) -> np.ndarray:
    """Writes a database of random rows, whose ids count backwards; gives their embeddings."""
    rows = clustered(count, width)
    with writing(Place(uri), SETTINGS | {"width": width}) as writer:
        add_random(writer, [f"{count - i:07}" for i in range(count)], rows)
        writer.finish(index)
    return rows


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Small images of noise, of several shapes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for path in paths:
        shape = (*rng.integers(8, 40, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return paths


MODEL = tiny_embedder()


def index_folder(
    uri: str | Path, *specs: str | Path, columns: Columns | None = None, prune: bool = False
) -> Summary:
    """Updates a database from images, with a tiny model."""
    columns = columns or Columns()
    options = Options(max_num_patches=16, batch_size=4, workers=0, columns=columns)
    settings = settings_of(MODEL, 16, False, {"source": "nowhere"})
    with writing(Place(uri), settings) as writer:
        shards = find_items([str(spec) for spec in specs], columns)
        summary = index_images(writer, MODEL, shards, options, prune=prune)
        writer.finish()
    return summary
