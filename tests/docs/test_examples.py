"""Code of the docs: every Python block of a page runs, in order, in one namespace."""

import re
from pathlib import Path

import jax
import pytest

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


def test_readme(tmp_path, monkeypatch, capsys):
    """On an untrained model in place of the demo's."""
    config = tiny_config()
    preprocess = ImagePreprocessor(patch_size=config.vision.patch_size, image_size=None)
    params = init_params(config, jax.random.key(0))
    monkeypatch.chdir(tmp_path)
    Embedder(config, params, preprocess, Tokenizer.load(TOKENIZER)).save("demo_run", "orbax")
    names = run_blocks(ROOT / "README.md")
    assert names["images"].shape == names["texts"].shape == (3, 128)
    assert len(capsys.readouterr().out.splitlines()) == 3
