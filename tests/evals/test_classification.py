"""Zero-shot accuracy, against a loop over given embeddings."""

import numpy as np
import pytest
from evals.stand_in import Given

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.classification import ZeroShot

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
    model = Given(images, texts)
    evaluator = ZeroShot(
        source=labelled(labels), label="name_of_class", templates=templates, max_num_patches=49
    )
    assert isinstance(evaluator, Evaluator)
    found = evaluator(model)
    right = 0
    for i, label in enumerate(labels):
        score = {}
        for name in CLASSES:
            mean = sum(texts[t.replace("{}", name)] for t in templates)
            score[name] = float(images[bytes([i])] @ mean / np.linalg.norm(mean))
        right += max(score, key=score.get) == label
    assert found == {"top1": pytest.approx(right / 60)} and model.budgets == [49]


def test_classes_without_an_image_count_too():
    rows = np.eye(3)
    texts = {f"a photo of a {name}": row for name, row in zip(CLASSES[:3], rows, strict=True)}
    images = {bytes([0]): np.array([0.6, 0.0, 0.8]), bytes([1]): rows[1]}
    source, label = labelled(CLASSES[:2]), "name_of_class"
    assert ZeroShot(source=source, label=label)(Given(images, texts)) == {"top1": 1}
    evaluator = ZeroShot(source=source, label=label, classes=CLASSES[:3])
    assert evaluator(Given(images, texts)) == {"top1": 0.5}


def test_ties_and_unreadable_images_are_wrong():
    texts = {f"a photo of a {name}": np.array([1.0, 0.0]) for name in CLASSES[:2]}
    images = {bytes([0]): np.array([1.0, 0.0]), bytes([1]): np.full(2, np.nan)}
    evaluator = ZeroShot(source=labelled(CLASSES[:2]), label="name_of_class")
    assert evaluator(Given(images, texts)) == {"top1": 0}


def test_a_caption_can_be_the_label():
    rows = np.eye(2)
    texts = {f"a photo of a {name}": row for name, row in zip(CLASSES[:2], rows, strict=True)}
    images = {bytes([i]): rows[i] for i in range(2)}
    chosen = [{"image": bytes([i]), "captions": (CLASSES[i % 2],), "name": "-"} for i in (0, 1, 0)]
    assert ZeroShot(source=Memory(tuple(chosen)))(Given(images, texts)) == {"top1": 1}
    chosen[2]["captions"] = ("bee",)
    assert ZeroShot(source=Memory(tuple(chosen)))(Given(images, texts)) == {
        "top1": pytest.approx(2 / 3)
    }
    chosen[1]["captions"] = ("ant", "bee")
    with pytest.raises(ValueError, match=r"has \('ant', 'bee'\) as its captions; expected one"):
        ZeroShot(source=Memory(tuple(chosen)))(Given(images, texts))


def test_labels_must_be_there_and_known():
    model = Given({}, {})
    with pytest.raises(ValueError, match="no 0 has None as its class; expected one text"):
        ZeroShot(source=labelled(CLASSES), label="class")(model)
    with pytest.raises(ValueError, match="the label 'bee' is none of its 1 classes"):
        ZeroShot(source=labelled(CLASSES[:2]), label="name_of_class", classes=("ant",))(model)
    with pytest.raises(ValueError, match="ZeroShot.label is 'name', which no source's field"):
        ZeroShot(source=labelled(CLASSES), label="name")
