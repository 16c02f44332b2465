"""`siglip2 eval` on several processes: each embeds its share, and all find what one finds."""

import json

import numpy as np
import pytest
from models.builders import random_params
from PIL import Image
from train.processes import COMMAND, free_port, started

from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference import Embedder
from siglip2_jax.models.variants import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer

TOWER = {"depth": 1, "mlp_dim": 32, "num_heads": 2}
CONFIG = ModelConfig(
    vision=VisionConfig(**TOWER, width=24, patch_size=4, grid=4, image_size=None),
    text=TextConfig(**TOWER, width=16, vocab_size=1024, embed_dim=24),
)
COUNT = 41  # no multiple of anything


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """Numbers to the last digit, and the names of the photos that did not decode."""
    model = tmp_path / "model"
    words = Tokenizer.load(TOKENIZER)
    Embedder(CONFIG, random_params(CONFIG), ImagePreprocessor(4, None), words).save(model, "hf")
    folder, rng = tmp_path / "flickr8k_1k", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(COUNT):
        path = folder / "images" / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (8 + i % 5, 12, 3), np.uint8)).save(path)
        rows.append(json.dumps({"file": path.name, "captions": [f"photo {i}", f"number {i}"]}))
    for i in (7, 30):
        (folder / "images" / f"{i}.png").write_bytes(b"no photo")
    (folder / "captions.jsonl").write_text("\n".join(rows))

    def measured(processes: int, devices: int) -> dict:
        file, port = tmp_path / f"{processes}.json", free_port()
        command = ["-c", COMMAND, "eval", str(model), "--task", "flickr8k"]
        command += ["--data", str(tmp_path), "--batch-size", "2", "--json", str(file)]
        command += ["--budgets", "9", "--out", str(tmp_path / f"out{processes}")]
        hosts = [[]]
        if processes > 1:
            found = ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
            hosts = [[*found, "--process-id", str(i)] for i in range(processes)]
        with started(tmp_path, [command + host for host in hosts], devices) as run:
            ends = run.wait()
        assert [end.code for end in ends] == [0] * processes, [end.text for end in ends]
        (row,) = json.loads(file.read_text())
        return row["siglip2_jax"]

    alone, shared = measured(1, 4), measured(2, 2)
    assert shared["metrics"] == alone["metrics"]
    assert shared["images"] == alone["images"] == COUNT
    assert sorted(shared["failed"]) == sorted(alone["failed"]) and len(alone["failed"]) == 2
