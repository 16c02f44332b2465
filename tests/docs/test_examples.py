"""Code of the docs: every Python block of a page runs, in order, in one namespace."""

import re
from pathlib import Path

import jax
import pytest
from inference.captioners import writes_caption
from PIL import Image

import siglip2_jax
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.siglip2 import init_params
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def run_blocks(path: Path) -> dict[str, object]:
    text = path.read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", ["use_the_parts", "extend"])
def test_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "docs" / f"{page}.md")


@pytest.fixture
def demo_run(tmp_path, monkeypatch):
    """An untrained model where `siglip2 demo --workdir demo_run` leaves a trained one."""
    config = tiny_config()
    preprocess = ImagePreprocessor(patch_size=config.vision.patch_size, image_size=None)
    params = init_params(config, jax.random.key(0))
    monkeypatch.chdir(tmp_path)
    Embedder(config, params, preprocess, Tokenizer.load(TOKENIZER)).save("demo_run", "orbax")


def test_readme(demo_run, capsys):
    names = run_blocks(ROOT / "README.md")
    assert names["images"].shape == names["texts"].shape == (3, 128)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_evaluation(demo_run, capsys):
    run_blocks(ROOT / "docs" / "evaluation.md")
    assert "text_to_image@1" in capsys.readouterr().out


def test_captions(tmp_path, monkeypatch):
    """With a decoder that always writes the same caption."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (400, 440), "red").save("photo.jpg")
    monkeypatch.setattr(siglip2_jax, "load_captioner", lambda path: writes_caption())
    run_blocks(ROOT / "docs" / "recipe.md")
