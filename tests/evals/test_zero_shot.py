"""Zero-shot accuracy, against a loop over given embeddings."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.data.sources import Memory
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.class_embeddings import ClassCache
from siglip2_jax.evals.classes import Classes, read_babel
from siglip2_jax.evals.labels import ClassFolders, ReaL
from siglip2_jax.evals.prompts import CLIP_PAPER
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.testing import StandInEmbedder, random_params

CLASSES = ("ant", "bee", "car side", "dolphin")


def labelled(labels):
    return Memory(
        tuple(
            {"image": bytes([i]), "captions": (), "name": f"no {i}", "name_of_class": label}
            for i, label in enumerate(labels)
        )
    )


def unit(rng, count):
    rows = rng.standard_normal((count, 5))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("templates", [("a photo of a {}",), ("a {}", "the {}", "{}?")])
def test_accuracy_is_that_of_a_loop(templates):
    rng = np.random.default_rng(0)
    labels = [CLASSES[i] for i in rng.integers(0, 4, 60)]
    images = {bytes([i]): row for i, row in enumerate(unit(rng, 60))}
    prompts = [t.replace("{}", name) for name in CLASSES for t in templates]
    texts = dict(zip(prompts, unit(rng, len(prompts)), strict=True))
    model = StandInEmbedder(images, texts)
    evaluator = ZeroShot(
        source=labelled(labels), label="name_of_class", templates=templates, max_num_patches=49
    )
    found = evaluator(model)
    right = 0
    for i, label in enumerate(labels):
        score = {}
        for name in CLASSES:
            mean = sum(texts[t.replace("{}", name)] for t in templates)
            score[name] = float(images[bytes([i])] @ mean / np.linalg.norm(mean))
        right += max(score, key=score.get) == label
    assert found["top1"] == pytest.approx(right / 60) and model.budgets == [49]
    assert found["top5"] == 1 and set(found) == {"top1", "top5", "mean_per_class"}


def test_classes_without_an_image_count_too():
    rows = np.eye(3)
    texts = {f"a photo of a {name}": row for name, row in zip(CLASSES[:3], rows, strict=True)}
    images = {bytes([0]): np.array([0.6, 0.0, 0.8]), bytes([1]): rows[1]}
    source, label = labelled(CLASSES[:2]), "name_of_class"
    assert ZeroShot(source=source, label=label)(StandInEmbedder(images, texts))["top1"] == 1
    evaluator = ZeroShot(source=source, label=label, classes=CLASSES[:3])
    assert evaluator(StandInEmbedder(images, texts)) == {
        "top1": 0.5,
        "top5": 1,
        "mean_per_class": 0.5,
    }


def test_ties_and_unreadable_images_are_wrong():
    texts = {f"a photo of a {name}": np.array([1.0, 0.0]) for name in CLASSES[:2]}
    images = {bytes([0]): np.array([1.0, 0.0]), bytes([1]): np.full(2, np.nan)}
    evaluator = ZeroShot(source=labelled(CLASSES[:2]), label="name_of_class")
    assert evaluator(StandInEmbedder(images, texts)) == {
        "top1": 0,
        "top5": 0.5,
        "mean_per_class": 0,
    }
    evaluator = dataclasses.replace(evaluator, ties="first")
    assert evaluator(StandInEmbedder(images, texts)) == {
        "top1": 0.5,
        "top5": 0.5,
        "mean_per_class": 0.5,
    }


def test_a_caption_can_be_the_label():
    rows = np.eye(2)
    texts = {f"a photo of a {name}": row for name, row in zip(CLASSES[:2], rows, strict=True)}
    images = {bytes([i]): rows[i] for i in range(2)}
    chosen = [{"image": bytes([i]), "captions": (CLASSES[i % 2],), "name": "-"} for i in (0, 1, 0)]
    assert ZeroShot(source=Memory(tuple(chosen)))(StandInEmbedder(images, texts))["top1"] == 1
    chosen[2]["captions"] = ("bee",)
    assert ZeroShot(source=Memory(tuple(chosen)))(StandInEmbedder(images, texts))[
        "top1"
    ] == pytest.approx(2 / 3)
    chosen[1]["captions"] = ("ant", "bee")
    with pytest.raises(ValueError, match=r"has \('ant', 'bee'\) as its captions; expected one"):
        ZeroShot(source=Memory(tuple(chosen)))(StandInEmbedder(images, texts))


def test_labels_must_be_there_and_known():
    model = StandInEmbedder({bytes([i]): np.ones(2) for i in range(4)}, {})
    with pytest.raises(ValueError, match="no 0 has None as its class; expected one text"):
        ZeroShot(source=labelled(CLASSES), label="class")(model)
    with pytest.raises(ValueError, match="the label 'bee' is not one of the 1 classes"):
        ZeroShot(source=labelled(CLASSES[:2]), label="name_of_class", classes=("ant",))(model)
    with pytest.raises(ValueError, match="ZeroShot.label is 'name', a reserved name"):
        ZeroShot(source=labelled(CLASSES), label="name")


def numbered(*labels, names=None):
    """One-byte images with labels as numbers or lists of them."""
    return Memory(
        tuple(
            {
                "image": bytes([i]),
                "captions": (),
                "name": names[i] if names else f"no {i}",
                "label": label,
            }
            for i, label in enumerate(labels)
        )
    )


def axes(names, template="a photo of a {}"):
    """Each class on its own axis."""
    return {template.replace("{}", name): row for name, row in zip(names, np.eye(4), strict=True)}


def looking_at(*axis):
    return {bytes([i]): np.eye(4)[j] for i, j in enumerate(axis)}


def test_numbers_and_lists_of_them():
    model = StandInEmbedder(looking_at(0, 1, 1, 3), axes(CLASSES))
    source = numbered(0, np.int64(1), [2, 1], np.zeros(0, np.int64))
    shown = []
    found = ZeroShot(source=source, label="label", classes=CLASSES)(
        model, lambda done, total, note="": shown.append((done, total))
    )
    assert found == {"top1": 1, "top5": 1}  # several labels: no class of its own
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_reassessed_labels(tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[3], [], [0, 2]]))
    names = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (3, 2, 1)]
    source = ReaL(numbered(0, 0, 0, names=names), str(tmp_path / "real.json"))
    model = StandInEmbedder(looking_at(2, 0, 1), axes(CLASSES))
    found = ZeroShot(source=source, label="real", classes=CLASSES)(model)
    assert found == {"top1": 0.5, "top5": 1}


def test_classes_of_a_language(tmp_path):
    """Images of classes that have no name in it are not looked at."""
    path = tmp_path / "babel.json"
    path.write_text(json.dumps({"DE": [[1, 3], ["Biene", "Delfin"]]}))
    texts = {f"Ein {name}": row for name, row in zip(("Biene", "Delfin"), np.eye(4), strict=False)}
    images = {bytes([1]): np.eye(4)[0], bytes([3]): np.eye(4)[0]}
    evaluator = ZeroShot(
        source=numbered(0, 1, 2, 3),
        label="label",
        classes=read_babel(path, "DE"),
        templates=("Ein {}",),
    )
    assert evaluator(StandInEmbedder(images, texts))["top1"] == 0.5


def test_canonical_prompts_and_first_of_equal_names():
    names = ("Sun-glasses, shades", "bee", "sun_glasses", "car")
    prompts = {template.replace("{}", "x") for template in CLIP_PAPER}
    assert len(prompts) == 81

    class Bare(StandInEmbedder):
        def embed_texts(self, texts, **_):
            seen.update(texts)
            rows = {"sunglasses": 0, "bee": 1, "sun glasses": 0, "car": 3}
            return np.stack([np.eye(4)[next(i for k, i in rows.items() if k in x)] for x in texts])

    seen: set[str] = set()
    source = numbered(0, 1, 2, 3)
    evaluator = ZeroShot(
        source=source, label="label", classes=names, templates=CLIP_PAPER, canonical=True
    )
    assert evaluator(Bare(looking_at(0, 1, 0, 3), {}))["top1"] == 0.5
    assert len(seen) == 4 * 81 and all(x == x.lower() and "." not in x for x in seen)
    first = dataclasses.replace(evaluator, ties="first")
    assert first(Bare(looking_at(0, 1, 0, 3), {}))["top1"] == 0.75


def test_folders_with_a_border(tmp_path):
    """Images are embedded without their border; a broken file counts as wrong."""
    seen = []

    class Sizes(StandInEmbedder):
        def embed_images(self, images, **_):
            rows = []
            for image in images:
                seen.append(getattr(image.image, "size", image.image))
                broken = isinstance(image.image, bytes)
                rows.append(np.full(4, np.nan) if broken else np.eye(4)[0])
            return np.array(rows, np.float32)

    for folder in ("ant", "bee", "wasp"):
        (tmp_path / folder).mkdir()
    data = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(data, "PNG")
    (tmp_path / "ant" / "a.png").write_bytes(data.getvalue())
    (tmp_path / "bee" / "b.png").write_bytes(b"broken")
    (tmp_path / "wasp" / "c.png").write_bytes(b"not of the classes")
    classes = Classes(("ant", "bee"), ("ant", "bee"))
    source = ClassFolders(str(tmp_path))
    evaluator = ZeroShot(source=source, label="folder", classes=classes, border=2)
    texts = {f"a photo of a {name}": np.eye(4)[i] for i, name in enumerate(("ant", "bee"))}
    assert evaluator(Sizes({}, texts))["top1"] == 0.5
    assert seen == [(16, 6), b"broken"]


def test_cached_classes_are_not_embedded_again(tmp_path):
    model = StandInEmbedder(looking_at(0, 1), axes(CLASSES))
    model.text_norm, model.dtype = "reference", "float32"
    evaluator = ZeroShot(
        source=numbered(0, 1),
        label="label",
        classes=CLASSES,
        cache=ClassCache(str(tmp_path), "m"),
    )
    assert evaluator(model)["top1"] == 1
    model.text_rows = {}
    assert evaluator(model)["top1"] == 1


def test_what_cannot_be_measured():
    class Empty(StandInEmbedder):
        def embed_images(self, images, **_):
            return np.array([self._images[x] for x in images], np.float32).reshape(-1, 4)

    source = numbered(0, 1)
    with pytest.raises(ValueError, match="none of the 2 examples has a label that means one"):
        ZeroShot(source=source, label="label", classes=Classes(("a",), ("x",)))(Empty({}, {}))
    with pytest.raises(ValueError, match="the label of no 0 is a number; give classes"):
        ZeroShot(source=source, label="label")(Empty({}, {}))
    with pytest.raises(ValueError, match="'zero_shot': the label 1 is not one of the 1 classes"):
        ZeroShot(source=source, label="label", classes=("a",))(StandInEmbedder(looking_at(0), {}))
    for wrong, message in (
        ({"border": -1}, "ZeroShot.border is -1 pixels"),
        ({"templates": ("a photo",)}, "has 0 places for the class name"),
        ({"classes": ()}, "0 class names"),
        ({"classes": ("a", "!"), "canonical": True}, "the class name '!' has nothing but"),
    ):
        with pytest.raises(ValueError, match=message):
            ZeroShot(source=source, **wrong)
    evaluator = ZeroShot(source=source)
    object.__setattr__(evaluator, "ties", "last")  # the suite's type checks would refuse it first
    with pytest.raises(ValueError, match="ZeroShot.ties is 'last'; expected 'wrong' or 'first'"):
        evaluator.__post_init__()


def test_a_real_model_sees_a_stream(tmp_path):
    """Folders, an unreadable file and the real embedder, against its own whole batches."""
    rng = np.random.default_rng(0)
    photos, own = [], []
    for i, name in enumerate(("Great_White Shark", "bee (insect)", "car")):
        (tmp_path / name).mkdir()
        for j in range(4):
            path = tmp_path / name / f"{j}.png"
            Image.fromarray(rng.integers(0, 256, (9 + j, 7 + i, 3), np.uint8)).save(path)
            photos, own = [*photos, path], [*own, i]
    (tmp_path / "car" / "4.png").write_bytes(b"broken")
    parts = ImagePreprocessor(patch_size=4, image_size=None), Tokenizer.load(TOKENIZER)
    tower = {"depth": 1, "mlp_dim": 32, "num_heads": 2, "width": 24}
    config = ModelConfig(
        vision=VisionConfig(**tower, patch_size=4, grid=4, image_size=None),
        text=TextConfig(**tower, vocab_size=1024, embed_dim=24),
    )
    model = Embedder(config, random_params(config), *parts)
    evaluator = ZeroShot(
        source=ClassFolders(str(tmp_path), count=3),
        label="folder",
        templates=("A photo of a {}.", "{}"),
        canonical=True,
        max_num_patches=9,
    )
    with pytest.warns(UserWarning, match="its embedding is NaN"):
        found = evaluator(model)
    names = ["great white shark", "bee insect", "car"]
    texts = [model.embed_texts([f"a photo of a {name}", name]).mean(axis=0) for name in names]
    texts = [row / np.linalg.norm(row) for row in texts]
    best = (model.embed_images(photos, max_num_patches=9) @ np.stack(texts).T).argmax(axis=1)
    hits = best == own
    assert found["top1"] == pytest.approx(hits.sum() / 13)
    recalls = [hits[:4].mean(), hits[4:8].mean(), hits[8:].sum() / 5]
    assert found["mean_per_class"] == pytest.approx(np.mean(recalls))
