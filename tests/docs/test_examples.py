"""Code of the docs: every Python block of a page runs, in order, in one namespace."""

import json
import pickle
import re
from pathlib import Path

import jax
import pytest
from inference.captioners import writes_caption
from PIL import Image

import siglip2_jax
from siglip2_jax.benchmarks.decoder.refer_files import PUBLISHED
from siglip2_jax.cli import main
from siglip2_jax.data.regions import Region, read_regions
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.siglip2 import init_params
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.recipes import refer_on_frozen

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_readme(demo_run, capsys):
    names = run_blocks(ROOT / "README.md")
    assert names["images"].shape == names["texts"].shape == (3, 128)
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.search
@pytest.mark.slow
def test_embedding(demo_run, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    (tmp_path / "photos").mkdir()
    for i, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 40 + i), color).save(tmp_path / "photos" / f"{color}.png")
    (tmp_path / "photos" / "z.png").write_bytes(b"no image")
    for command in (("demo_run", "--images", "photos"), ("--merge",)):
        assert main(["embed", *command, "--out", "embeddings"]) == 0
    names = run_blocks(ROOT / "docs" / "embedding.md")
    assert names["rows"].shape == (3, 128) and names["summary"].errors == 1
    out = capsys.readouterr().out
    assert "photos/z.png photos/z.png: not an image" in out and "(3, 128) photos/blue.png" in out


@pytest.mark.slow
def test_vlm(demo_run):
    Image.new("RGB", (400, 300), "red").save("photo.jpg")
    names = run_blocks(ROOT / "docs" / "vlm.md")
    assert names["image"].tokens.shape == (3, 14 * 18 // 4, 4 * 128)


@pytest.mark.slow
def test_evaluation(demo_run, capsys):
    run_blocks(ROOT / "docs" / "evaluation.md")
    assert "text_to_image@1" in capsys.readouterr().out


@pytest.mark.slow
def test_captions(tmp_path, monkeypatch):
    """With a decoder that always writes the same caption."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (400, 440), "red").save("photo.jpg")
    monkeypatch.setattr(siglip2_jax, "load_captioner", lambda path: writes_caption())
    names = run_blocks(ROOT / "docs" / "recipe.md")
    # Image 1 is for training in all sets, image 2 is held out by one of them.
    (tmp_path / "refer" / "train2014").mkdir(parents=True)
    for folder, split_by, _ in PUBLISHED:
        path = tmp_path / "refer" / folder
        path.mkdir()
        refs = [
            {"image_id": i, "ann_id": i, "split": split, "sentences": [{"sent": f"{folder} {i}"}]}
            for i, split in ((1, "train"), (2, "train" if folder == "refcoco" else "test"))
        ]
        (path / f"refs({split_by}).p").write_bytes(pickle.dumps(refs))
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 20} for i in (1, 2)]
        boxes = [{"id": i, "bbox": [10, 5, 20, 10]} for i in (1, 2)]
        (path / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    for i in (1, 2):
        Image.new("RGB", (40, 20)).save(tmp_path / "refer" / "train2014" / f"{i}.jpg")
    names["write_rows"]("refer")
    (stage,) = refer_on_frozen.config(data="refer", tokenizer=str(TOKENIZER)).stages
    examples = stage.data.source.open()
    found = [(examples[i]["captions"], read_regions(examples[i])) for i in range(len(examples))]
    box = (0.25, 0.25, 0.75, 0.75)
    texts = [f"{folder} 1" for folder, *_ in PUBLISHED]
    assert found == [((text,), (Region(box, text),)) for text in texts]
