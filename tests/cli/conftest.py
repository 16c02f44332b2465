"""A tiny model on disk, a few photos, and a way to call the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.cli import main
from siglip2_jax.testing import TINY, tiny_embedder


class Result(NamedTuple):
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def siglip2(capsys) -> Callable[..., Result]:
    """Runs a command in this process."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A model with its tokenizer, in the layout that loads fastest."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_embedder().save(path, "hf")
    return path


@pytest.fixture(scope="session")
def bare_npz(model_dir) -> Path:
    """The same parameters as one file: no tokenizer beside them."""
    path = model_dir.parent / "bare" / "tiny.npz"
    tiny_embedder(tokenizer=False).save(path, "npz")
    return path


@pytest.fixture(scope="session")
def few_words(model_dir) -> Path:
    """A model whose token table has 100 rows, fewer than the tokenizer has ids."""
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=100))
    path = model_dir.parent / "few_words" / "few_words.npz"
    tiny_embedder(config, tokenizer=False).save(path, "npz")
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """A directory of eight photos of several formats and shapes, one of them in a directory."""
    rng = np.random.default_rng(0)
    names = "a.png b.jpg c.JPG d.webp e.bmp f.tif g.gif deeper/h.png".split()
    directory = tmp_path / "photos"
    for i, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5 + 7 * i, 60 - 7 * i, 3), np.uint8)).save(path)
    (directory / "notes.txt").write_text("not a photo")
    return directory


@pytest.fixture
def odd_names(tmp_path) -> Path:
    """`caltech101_20` of two photos, one damaged, whose names are no UTF-8."""
    images = tmp_path / "data" / "caltech101_20" / "images"
    images.mkdir(parents=True)
    names = [os.fsdecode(name) for name in (b"caf\xe9.png", b"\xff.png")]
    try:
        Image.new("RGB", (8, 8), "red").save(images / names[0])
        (images / names[1]).write_bytes(b"no photo")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    rows = [{"file": name, "split": "val", "name": f"cl{i}ss"} for i, name in enumerate(names)]
    (images.parent / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"
