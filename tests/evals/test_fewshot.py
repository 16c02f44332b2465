"""Few-shot regression, against least squares by another route and big_vision's choice of rows."""

import io

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.fewshot import FewShot, Ridge, fewshot_accuracy
from siglip2_jax.evals.pooled import shared_classes
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.testing import tiny_embedder


def rows(count, width=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(count) % classes)
    means = np.random.default_rng(99).standard_normal((classes, width))
    return (means[y] + rng.standard_normal((count, width)) * 3 + 5).astype(np.float32), y


def whitened(x, train):
    x, train = x.astype(np.float64), train.astype(np.float64)
    std = np.sqrt(np.mean((train - train.mean(0)) ** 2, axis=0)) + 1e-5
    return np.column_stack([(x - train.mean(0)) / std, np.full(len(x), 100.0)])


def plain_weights(x, y, classes, l2):
    """Ridge regression as ordinary least squares of a longer system."""
    inputs, targets = whitened(x, x), 2.0 * (y[:, None] == np.arange(classes)) - 1
    width = inputs.shape[1]
    longer = np.vstack([inputs, np.sqrt(l2) * np.eye(width)])
    return np.linalg.lstsq(longer, np.vstack([targets, np.zeros((width, classes))]), rcond=None)[0]


@pytest.mark.parametrize("count", [7, 12, 80])  # fewer, about as many and more rows than inputs
@pytest.mark.parametrize("l2", [2.0**-3, 1.0, 2.0**10, 2.0**20])
def test_closed_form_is_least_squares(count, l2):
    x, y = rows(count, width=11)
    expected = plain_weights(x, y, 4, l2)
    ridge = Ridge.fit(x, y, 4)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ridge.weights(l2), expected, rtol=0, atol=1e-10 * scale)
    fresh, _ = rows(9, width=11, seed=5)
    scores = ridge.scores(fresh, l2)
    np.testing.assert_allclose(scores, whitened(fresh, x) @ expected, rtol=0, atol=1e-9)


def big_vision_orders(labels, seed, num_classes):
    """The lines of `Evaluator.compute_fewshot_metrics`, on the numbers of TFDS's classes."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.where(labels == cls_i)[0]) for cls_i in range(num_classes)]


def test_accuracy_is_that_of_big_visions_loop():
    (x, y), (test_x, test_y) = rows(90), rows(50, seed=1)
    found = fewshot_accuracy(x, y, test_x, test_y, shots=5, l2=(1.0, 1024.0), seeds=(0, 7))
    assert found.shape == (2, 2)
    for i, seed in enumerate((0, 7)):
        rng = np.random.default_rng(seed)
        chosen = []
        for label in range(4):
            chosen += list(rng.permutation(np.where(y == label)[0])[:5])
        for j, l2 in enumerate((1.0, 1024.0)):
            weights = plain_weights(x[chosen], y[chosen], 4, l2)
            answers = (whitened(test_x, x[chosen]) @ weights).argmax(1)
            assert found[i, j] == np.mean(answers == test_y)
    assert 0.3 < found.mean() < 1
    again = fewshot_accuracy(x, y, test_x, test_y, shots=5, l2=(1.0, 1024.0), seeds=(0, 7))
    np.testing.assert_array_equal(found, again)


def test_unreadable_images():
    (x, y), (test_x, test_y) = rows(60), rows(40, seed=1)
    options = {"shots": 5, "seeds": (3,)}
    (before,), broken = fewshot_accuracy(x, y, test_x, test_y, **options), test_x.copy()
    broken[::2] = np.nan
    (half,) = fewshot_accuracy(x, y, broken, test_y, **options)
    (good,) = fewshot_accuracy(x, y, test_x[1::2], test_y[1::2], **options)
    assert half == good / 2 and half < before
    # In the place of a training image that cannot be read is the next of its class.
    broken = x.copy()
    orders = big_vision_orders(y, 3, 4)
    broken[orders[2][:3]] = np.nan
    chosen = np.concatenate([orders[0][:5], orders[1][:5], orders[2][3:8], orders[3][:5]])
    expected = fewshot_accuracy(x[chosen], y[chosen], test_x, test_y, shots=5, seeds=(0,))
    found = fewshot_accuracy(broken, y, test_x, test_y, **options)
    np.testing.assert_array_equal(found, expected)
    assert found[0, 0] != before


def test_what_cannot_be_measured_is_refused():
    x, y = rows(20)
    with pytest.raises(ValueError, match=r"class \d has 5 readable training examples, and 6 shots"):
        fewshot_accuracy(x, y, x, y, shots=6)
    broken = x.copy()
    broken[np.flatnonzero(y == 2)[0], 0] = np.nan
    with pytest.raises(ValueError, match="class 2 has 4 readable training examples, and 5 shots"):
        fewshot_accuracy(broken, y, x, y, shots=5)
    with pytest.raises(ValueError, match="class 9 has 0 readable"):
        fewshot_accuracy(x, y, x, np.where(y == 0, 9, y), shots=5)
    with pytest.raises(ValueError, match="got the class 0 only"):
        fewshot_accuracy(x, 0 * y, x, 0 * y, shots=5)
    with pytest.raises(ValueError, match="got no test rows"):
        fewshot_accuracy(x, y, x[:0], y[:0], shots=5)
    with pytest.raises(ValueError, match="expected numbers from 0"):
        fewshot_accuracy(x, y - 1, x, y, shots=5)
    for wrong in ({"shots": 0}, {"l2": (0.0,)}, {"l2": ()}, {"seeds": ()}):
        with pytest.raises(ValueError, match="expected at least 1 shot"):
            fewshot_accuracy(x, y, x, y, **wrong)
    # A number that no row uses is no class.
    np.testing.assert_array_equal(
        fewshot_accuracy(x, y * 2, x, y * 2, shots=5), fewshot_accuracy(x, y, x, y, shots=5)
    )


def coloured(shade, channel, height, width):
    picture = np.full((height, width, 3), 20, np.uint8)
    picture[..., channel] = shade
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def test_evaluator_reads_sources():
    model = tiny_embedder(tokenizer=False)
    examples = [
        {"image": coloured(120 + 9 * i, k, 8 + 4 * (i % 3), 12), "captions": (), "name": f"{k} {i}"}
        | {"colour": ("red", "green", "blue")[k]}
        for i in range(6)
        for k in range(3)
    ]
    train, test = Memory(tuple(examples[:12])), Memory(tuple(examples[12:]))
    options = {"label": "colour", "shots": 3, "max_num_patches": 12}
    evaluator = FewShot(train=train, test=test, **options)
    assert evaluator(model) == {"3shot": 1.0}
    swept = FewShot(train=train, test=test, l2=(1.0, 1024.0), **options)(model)
    assert swept == {"3shot_l2_1": 1.0, "3shot_l2_1024": 1.0}
    examples[12]["image"] = b"no picture"
    test = Memory(tuple(examples[12:]))
    with pytest.warns(UserWarning, match="not an image file .* its embedding is NaN"):
        found = FewShot(train=train, test=test, **options)(model)
    assert found == {"3shot": pytest.approx(5 / 6)}
    with pytest.raises(ValueError, match="0 0 has None as its color; expected a text or a whole"):
        FewShot(train=train, test=train, label="color")(model)


class Noting(Embedder):
    """Gives features by image; remembers which it was asked for."""

    def __init__(self, features):
        self.features, self.asked = features, []

    def embed_images(self, images, **_):
        names = [image.name for image in images]
        self.asked.append(names)
        return np.stack([self.features[name] for name in names])


class Labelled:
    """Opened examples of which images are read only when they are asked for."""

    def __init__(self, part, labels):
        self.part, self.labels, self.read = part, labels, []

    def open(self):
        return self

    def __len__(self):
        return len(self.labels)

    def without_image(self, index, /):
        name = f"{self.part}{index}"
        return {"image": b"", "captions": (), "name": name, "label": int(self.labels[index])}

    def __getitem__(self, index, /):
        self.read.append(index)
        return self.without_image(index) | {"image": b"bytes"}


def test_only_the_examples_of_big_vision_are_read():
    """First rows of twelve numbered classes, whose order is not that of their names."""
    (x, y), (test_x, test_y) = rows(400, classes=12, width=30), rows(60, 30, 12, seed=1)
    among, seeds, shots = 300, (0, 1, 2), 4
    chosen, accuracies = [], []
    for seed in seeds:
        orders = big_vision_orders(y[:among], seed, 12)
        picked = np.concatenate([order[:shots] for order in orders])
        weights = plain_weights(x[picked], y[picked], 12, 2.0**10)
        answers = (whitened(test_x, x[picked]) @ weights).argmax(1)
        accuracies.append(np.mean(answers == test_y))
        chosen.append(picked)
    assert len({tuple(sorted(picked)) for picked in chosen}) == 3
    features = {f"train{i}": row for i, row in enumerate(x)}
    features |= {f"test{i}": row for i, row in enumerate(test_x)}
    train, test, model = Labelled("train", y), Labelled("test", test_y), Noting(features)
    options = {"label": "label", "shots": shots, "seeds": seeds, "among": among}
    found = FewShot(train=train, test=test, **options)(model)
    assert found == {"4shot": pytest.approx(np.mean(accuracies), abs=1e-12)}
    wanted = sorted({*np.concatenate(chosen).tolist()})
    assert train.read == wanted and len(wanted) < 3 * 12 * shots
    assert model.asked == [list(features)[400:], [f"train{i}" for i in wanted]]
    # One that cannot be read is replaced by the next of its class: nothing else is read again.
    lost = chosen[0][0]
    features[f"train{lost}"] = np.full(30, np.nan, np.float32)
    again, model = Labelled("train", y), Noting(features)
    FewShot(train=again, test=test, **options)(model)
    broken = np.where(np.arange(400)[:, None] == lost, np.float32(np.nan), x)[:among]
    expected = fewshot_accuracy(broken, y[:among], test_x, test_y, shots=shots, seeds=seeds).mean()
    assert FewShot(train=again, test=test, **options)(model) == {"4shot": expected}
    extra = {y[int(name.removeprefix("train"))] for name in model.asked[2]}
    assert len(model.asked[2]) <= 3 and extra == {y[lost]}


def test_pooled_features_are_those_before_normalisation():
    model = tiny_embedder(tokenizer=False)
    images = [coloured(100 + 10 * i, i % 3, 8, 4 * (1 + i % 3)) for i in range(11)]
    found = model.embed_images(images, max_num_patches=6, batch_size=2, normalize=False)
    expected = model.image_features(images, max_num_patches=6)
    np.testing.assert_allclose(found, expected.pooled, atol=1e-5)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found / lengths, expected.image, atol=1e-5)
    assert np.abs(lengths - 1).min() > 0.1
    assert model.embed_images([], normalize=False).shape == (0, 24)


def test_classes_are_numbered_together():
    train, test = shared_classes(["b", "a", "b"], ["c", "b"])
    assert train.tolist() == [1, 0, 1] and test.tolist() == [2, 1]
    train, test = shared_classes([10, 9, 2], ["10", 100])
    assert train.tolist() == [2, 1, 0] and test.tolist() == [4, 3]
