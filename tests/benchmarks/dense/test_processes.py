"""A dense probe on several processes: each reads its share of the photos, all find the same."""

import json

import numpy as np
import pytest
from PIL import Image
from train.processes import COMMAND, free_port, started

from siglip2_jax.testing import tiny_embedder

COUNT = 13


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    model = tmp_path / "model"
    tiny_embedder().save(model, "hf")
    folder, rng, rows = tmp_path / "camvid_60", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(COUNT):
        classes = rng.integers(0, 3, (2, 3)).repeat(4, 0).repeat(4, 1)
        Image.fromarray((np.eye(3)[classes] * 255).astype(np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(classes.astype(np.uint8)).save(folder / f"{i}.label.png")
        row = {"image": f"{i}.png", "label": f"{i}.label.png"}
        rows.append(json.dumps(row | {"split": "test" if i > 8 else "train"}))
    for i in (4, 10):
        (folder / f"{i}.png").write_bytes(b"no photo")
    (folder / "index.jsonl").write_text("\n".join(rows))
    legend = {"names": ["red", "green", "blue"], "void": 255}
    (folder / "classes.json").write_text(json.dumps(legend))

    def measured(processes: int) -> dict:
        file, port = tmp_path / f"{processes}.json", free_port()
        command = ["-c", COMMAND, "eval", str(model), "--task", "camvid", "--data", str(tmp_path)]
        command += ["--budgets", "6", "--json", str(file)]
        hosts = [[]]
        if processes > 1:
            found = ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
            hosts = [[*found, "--process-id", str(i)] for i in range(processes)]
        with started(tmp_path, [command + host for host in hosts], 1) as run:
            ends = run.wait()
        assert [end.code for end in ends] == [0] * processes, [end.text for end in ends]
        (row,) = json.loads(file.read_text())
        return row["siglip2_jax"]

    alone, shared = measured(1), measured(2)
    assert alone["metrics"]["pixel_accuracy"] < 0.75  # a photo of four is lost
    for name, value in alone["metrics"].items():
        assert shared["metrics"][name] == pytest.approx(value, abs=0.02)
    assert shared["images"] == alone["images"] == COUNT
    assert sorted(shared["failed"]) == sorted(alone["failed"]) and len(alone["failed"]) == 2
