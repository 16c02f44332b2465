"""Kept results: found while nothing has changed that they depend on, and never when it has."""

import dataclasses
import json
import os
from copy import copy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sentencepiece import sentencepiece_model_pb2 as proto

from siglip2_jax.benchmarks import suite as suites
from siglip2_jax.benchmarks.store import Store
from siglip2_jax.benchmarks.suite import Entry, Suite, evaluate
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.catalogue import all_tasks
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.labels import ClassFolders
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.inference import embedder as embedders
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.testing import TINY, random_params, tiny_embedder

NAMES = "red box", "green tree", "blue sky", "old dog", "my cat", "tall house", "road", "sea"


def make(setting: Setting, border: int = 0) -> ZeroShot:
    return ZeroShot(
        source=ClassFolders(str(setting.root / "images")),
        label="label",
        classes=tuple(json.loads((setting.root / "names.json").read_text())),
        cache=setting.cache,
        border=border,
        max_num_patches=setting.budget,
    )


TASK = Task(
    name="mine",
    kind="zeroshot_classification",
    folder="mine",
    required_files=("images", "names.json"),
    setup_hint="make it",
    make=make,
    metric="top1",
)


@pytest.fixture
def data(tmp_path):
    """Noise in folders of eight classes, lying on its side by an EXIF tag."""
    rng, root = np.random.default_rng(0), tmp_path / "data" / "mine"
    for i in range(40):
        path = root / "images" / f"{i % 8}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = rng.integers(0, 256, (12, 20, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
    (root / "names.json").write_text(json.dumps(NAMES))
    return tmp_path / "data"


def other_words() -> Tokenizer:
    """The tokenizer with other ids for the same pieces."""
    model = proto.ModelProto.FromString(TOKENIZER.read_bytes())
    letters = [(piece.piece, piece.score) for piece in model.pieces[-40:]]
    for piece, (text, score) in zip(model.pieces[-40:], letters[::-1], strict=True):
        piece.piece, piece.score = text, score
    return Tokenizer(model.SerializeToString())


@pytest.fixture(scope="module")
def model() -> Embedder:
    return tiny_embedder()


def differs(model: Embedder, **changes) -> Embedder:
    """The model with other attributes: its own, or those of its preprocessing."""
    other = copy(model)
    for name, value in changes.items():
        if hasattr(other, name):
            setattr(other, name, value)
        else:
            other.preprocess = dataclasses.replace(other.preprocess, **{name: value})
    return other


def measure(model: Embedder, data, out=None, task: Task = TASK) -> dict[str, float]:
    (result,) = evaluate(model, Suite((Entry(task, (9,)),)), data, out, pretrained="x")
    return result.metrics


def reverse_names(data) -> None:
    """Reverses the names in place: the file is as long and, by its time, as old as before."""
    path = data / "mine" / "names.json"
    time = path.stat().st_mtime_ns
    path.write_text(json.dumps(NAMES[::-1]))
    os.utime(path, ns=(time, time))


@pytest.mark.slow
def test_old_numbers_are_not_taken_for_new(model, data, tmp_path, monkeypatch):
    """With results, and with class embeddings only; the true numbers are those without `out`."""
    out, others = tmp_path / "out", {"tokenizer": other_words(), "exif": False}
    changed = {name: differs(model, **{name: value}) for name, value in others.items()}
    first = measure(model, data)
    true = {name: measure(other, data) for name, other in changed.items()}
    assert first not in true.values()
    for _ in range(2):
        assert measure(model, data, out) == first
        assert {name: measure(other, data, out) for name, other in changed.items()} == true
        for path in (out / "results").iterdir():
            path.unlink()
    reverse_names(data)
    assert measure(model, data, out) == measure(model, data) != first

    # Results within the data, another spelling of its path, and files that nobody reads.
    out = data / "mine" / "results"
    kept = measure(model, data, out)
    monkeypatch.setattr(suites, "_measure", None)
    monkeypatch.chdir(data)
    for path in ".ipynb_checkpoints/names.json", ".DS_Store":
        (data / "mine" / path).parent.mkdir(exist_ok=True)
        (data / "mine" / path).touch()
    os.utime(data / "mine" / "names.json")
    assert measure(model, Path(), "mine/results") == kept


def key(model: Embedder, data, task: Task = TASK) -> str:
    root = data / "mine"
    evaluator = task.make(Setting(root=root, budget=9))
    return Store(data.parent / "out").key(model, task, root, evaluator, {})


def nudged(index: int) -> dict:
    """Parameters of which one number differs by as little as can be."""
    leaves, tree = jax.tree.flatten(random_params(TINY))
    array = leaves[index].copy()
    flat = array.reshape(-1)
    flat[len(flat) // 3] = np.nextafter(flat[len(flat) // 3], np.float32(9))
    return jax.tree.unflatten(tree, [*leaves[:index], array, *leaves[index + 1 :]])


def replace_image(data) -> None:
    path = data / "mine" / "images" / "3" / "3.png"
    time = path.stat().st_mtime_ns
    Image.new("RGB", (9, 9)).save(path)
    os.utime(path, ns=(time, time))


CHANGES = {
    "one weight": lambda data, patch: {"params": nudged(5)},
    "tokenizer": lambda data, patch: {"tokenizer": other_words()},
    "text norm": lambda data, patch: {"text_norm": "none"},
    "upright": lambda data, patch: {"exif": False},
    "limit": lambda data, patch: {"max_pixels": 1000},
    "mode": lambda data, patch: {"mode": "hf"},
    "filter": lambda data, patch: {"resample": "bicubic"},
    "package": lambda data, patch: patch.setattr(embedders, "__version__", "9.9.9"),
    "names": lambda data, patch: reverse_names(data),
    "image": lambda data, patch: replace_image(data),
    "more data": lambda data, patch: (data / "mine/images/1/x.png").touch(),
    "less data": lambda data, patch: (data / "mine/images/3/3.png").unlink(),
    "evaluator": lambda data, patch: {
        "task": dataclasses.replace(TASK, make=lambda setting: make(setting, border=1))
    },
    "task": lambda data, patch: {"task": dataclasses.replace(TASK, name="other")},
    "dtype": lambda data, patch: {"dtype": "bfloat16"},
    "weights": lambda data, patch: {"weights": "int8"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_counts(model, data, monkeypatch, change):
    first = key(model, data)
    assert key(model, data) == first
    changes = CHANGES[change](data, monkeypatch) or {}
    task = changes.pop("task", TASK)
    assert key(differs(model, **changes), data, task) != first


def test_imagenet_does_not_read_its_training_images():
    reads = {name: task.reads for name, task in all_tasks().items() if task.folder == "imagenet"}
    evaluated = {name for name, patterns in reads.items() if "val" in patterns}
    assert {"imagenet", "imagenet_real", "babel_imagenet_de"} <= evaluated
    assert reads.keys() - evaluated == {"imagenet_10shot", "imagenet_linear"}
