"""`siglip2 eval` on several processes: each embeds its share, and all find what one finds."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from inference.captioners import looks, save_heads
from PIL import Image
from train.processes import COMMAND, free_port, started

from siglip2_jax.testing import tiny_embedder

COUNT = 41  # no multiple of anything


def write_images(folder: Path) -> None:
    """Photos with captions, two of them no photos."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for i in range(COUNT):
        path = folder / "images" / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (8 + i % 5, 12, 3), np.uint8)).save(path)
        rows.append(json.dumps({"file": path.name, "captions": [f"photo {i}", f"number {i}"]}))
    for i in (7, 30):
        (folder / "images" / f"{i}.png").write_bytes(b"no photo")
    (folder / "captions.jsonl").write_text("\n".join(rows))


def measured(data: Path, model: Path, tasks: str, processes: int, devices: int) -> list[dict]:
    """The results of `siglip2 eval`, run by some processes with some devices each."""
    file, port = data / f"{processes}.json", free_port()
    command = ["-c", COMMAND, "eval", str(model), "--task", tasks]
    command += ["--data", str(data), "--batch-size", "2", "--json", str(file)]
    command += ["--budgets", "9", "--out", str(data / f"out{processes}")]
    hosts = [[]]
    if processes > 1:
        found = ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
        hosts = [[*found, "--process-id", str(i)] for i in range(processes)]
    with started(data, [command + host for host in hosts], devices) as run:
        ends = run.wait()
    assert [end.code for end in ends] == [0] * processes, [end.text for end in ends]
    return [row["siglip2_jax"] for row in json.loads(file.read_text())]


def assert_equal(alone: dict, shared: dict) -> None:
    """Numbers, and what is said about the photos."""
    assert shared["metrics"] == alone["metrics"]
    assert shared["images"] == alone["images"] == COUNT
    assert sorted(shared["failed"]) == sorted(alone["failed"]) and len(alone["failed"]) == 2


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """Numbers to the last digit, and the names of the photos that did not decode."""
    model = tmp_path / "model"
    tiny_embedder().save(model, "hf")
    write_images(tmp_path / "flickr8k_1k")
    (alone,), (shared,) = (measured(tmp_path, model, "flickr8k", *n) for n in ((1, 4), (2, 2)))
    assert_equal(alone, shared)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    """Captions that depend on the photo and are expected of it, and answers that are no boxes."""
    save_heads(tmp_path / "model", {"caption": looks().params}, {"caption": looks().params})
    write_images(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    for row in rows:
        with suppress(UserWarning):  # one of the two that are no photos
            image = tmp_path / "images" / row["file"]
            row["captions"] += looks().caption(image, max_num_patches=9)
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        json.dumps({"file": f"{i // 2}.png", "expression": f"number {i}", "box": [0, 0, 1, 1]})
        for i in range(2 * COUNT)
    ]
    (tmp_path / "expressions.jsonl").write_text("\n".join(rows))
    tasks = "write_captions,expressions"
    one, two = (measured(tmp_path, tmp_path / "model", tasks, n, 1) for n in (1, 2))
    for alone, shared in zip(one, two, strict=True):
        assert_equal(alone, shared)
    assert one[0]["metrics"]["empty"] == 2 and one[0]["metrics"]["cider_d"] > 1
    assert one[1]["metrics"]["unreadable"] == 4
