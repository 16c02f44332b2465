"""The example of a vision-language model, on images of one colour whose captions name it."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from siglip2_jax.testing import TINY, tiny_embedder

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "vlm.py"
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "white": (250, 250, 250)}
SHORT = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, length=12))


@pytest.fixture
def data(tmp_path):
    """Images of several shapes and shades, each with one caption."""
    directory, rows = tmp_path / "data", []
    (directory / "images").mkdir(parents=True)
    for i in range(30):
        name = list(COLOURS)[i % 3]
        shade = tuple(int(x * (1 - i / 60)) for x in COLOURS[name])
        Image.new("RGB", (20 + i, 30), shade).save(directory / "images" / f"{i}.png")
        split = "val" if 9 <= i < 15 else "train"
        rows.append({"file": f"{i}.png", "captions": [f"a {name} wall"], "split": split})
    (directory / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return directory


@pytest.mark.slow
def test_unseen_images_are_described(data, tmp_path, capsys):
    tiny_embedder(SHORT).save(tmp_path / "model", "hf")
    main = runpy.run_path(str(EXAMPLE))["main"]
    gain = main([str(tmp_path / "model"), str(data), "--steps", "80", "--seeds", "1"])
    out = capsys.readouterr().out
    assert gain.shape == (6,) and (gain > 0).all()
    # Each caption is written as it is with the image; without, one is written for all.
    blocks = out[out.index(str(data)) :].split(str(data))[1:]
    with_image, without = zip(*(block.split("\n  ")[1:] for block in blocks), strict=True)
    assert list(with_image) == [f"a {name} wall" for name in COLOURS]
    assert len({text.strip() for text in without}) == 1
