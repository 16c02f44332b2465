"""Joint selection against the published algorithm on whole matrices; what it holds in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip2_jax.curation.selection import Embedded, joint_sample, learnability, select
from siglip2_jax.sharding import make_mesh, put_batch

MESHES = [None, (1, 1), (1, 4), (1, 8), (2, 2)]


def embedded(seed: int, n: int, width: int, t: float, b: float) -> Embedded:
    """Texts that are more or less like their images."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, width))
    text = image + rng.uniform(0.3, 3, (n, 1)) * rng.standard_normal((n, width))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return Embedded(*(np.asarray(x, np.float32) for x in (image, text, t, b)))


def models(n: int) -> tuple[Embedded, Embedded]:
    return embedded(0, n, 12, 2.0, -3.0), embedded(1, n, 20, 2.5, -6.0)


def gumbel(chunks: int, n: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).gumbel(size=(chunks, n)).astype(np.float32)


def losses(x: Embedded) -> np.ndarray:
    """Sigmoid losses of all pairs, in float64."""
    image, text, t, b = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(x))
    z = 2 * np.eye(len(image)) - 1
    return np.logaddexp(0, -z * (np.exp(t) * image @ text.T + b))


def published(learner: Embedded, teacher: Embedded, noise: np.ndarray, count: int) -> list[int]:
    """Algorithm 1 of the paper on the matrix of scores, one example drawn after the other."""
    scores = losses(learner) - losses(teacher)
    chosen: list[int] = []
    for chunk, values in enumerate(noise):
        is_chosen = np.zeros(len(scores))
        is_chosen[chosen] = 1
        logits = np.diag(scores) + is_chosen @ scores + scores @ is_chosen - 1e8 * is_chosen
        draws = count // len(noise) + (chunk < count % len(noise))
        chosen += np.argsort(-(logits + values))[:draws].tolist()
    return chosen


def on(shape: tuple[int, int] | None, function, *models: Embedded):
    """The function of models that are split over a mesh."""
    if shape is None:
        return jax.jit(function)(*jax.tree.map(jnp.asarray, models))
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        return jax.jit(function)(*(split(x, mesh) for x in models))


def split(x: Embedded, mesh) -> Embedded:
    return Embedded(*put_batch((x.image, x.text), mesh), jnp.asarray(x.t), jnp.asarray(x.b))


@pytest.mark.parametrize(
    ("count", "chunks", "shape"), [*((32, 4, shape) for shape in MESHES), (23, 5, (2, 2))], ids=str
)
def test_the_published_algorithm(count, chunks, shape):
    pair, noise = models(64), gumbel(chunks, 64)
    found = on(shape, lambda *pair: joint_sample(*pair, jnp.asarray(noise), count), *pair)
    assert found.dtype == np.int32 and found.sharding.is_fully_replicated
    np.testing.assert_array_equal(found, published(*pair, noise, count))


def test_examples_are_chosen_together():
    """Examples chosen together differ from those chosen each for itself."""
    pair, noise = models(64), gumbel(8, 64)
    alone = np.argsort(-(np.diag(losses(pair[0]) - losses(pair[1])) + noise[0]))[:32]
    assert set(published(*pair, noise, 32)) != set(alone.tolist())


def test_a_chunk_is_drawn_without_replacement():
    """One chunk is what `jax.random.choice` draws with the softmax of the scores."""
    pair, key = models(40), jax.random.key(7)
    found, _ = select(*jax.tree.map(jnp.asarray, pair), key, count=20, chunks=1)
    scores = np.diag(losses(pair[0]) - losses(pair[1]))
    shares = np.exp(scores) / np.exp(scores).sum()
    expected = jax.random.choice(key, 40, (20,), replace=False, p=jnp.asarray(shares, jnp.float32))
    assert set(found.tolist()) == set(expected.tolist())


def test_select_on_any_mesh():
    pair, key = models(64), jax.random.key(5)
    runs = [
        on(x, lambda *pair: select(*pair, key, count=24), *pair) for x in (None, (1, 8), (2, 2))
    ]
    scores = np.diag(losses(pair[0]) - losses(pair[1]))
    for indices, report in runs:
        np.testing.assert_array_equal(indices, runs[0][0])
        np.testing.assert_allclose(report["all"], scores.mean(), rtol=2e-6)
        np.testing.assert_allclose(report["chosen"], scores[indices].mean(), rtol=2e-6)
    assert report["chosen"] > report["all"]


def test_scores_are_the_pairs():
    pair = models(16)
    found = on((1, 4), learnability, *pair)
    expected = np.diag(losses(pair[0]) - losses(pair[1]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_no_gradient():
    def score(image):
        learner, teacher = jax.tree.map(jnp.asarray, models(16))
        learner = Embedded(image, learner.text, learner.t, learner.b)
        return select(learner, teacher, jax.random.key(0), count=4, chunks=2)[1]["chosen"]

    assert not np.any(jax.grad(score)(jnp.asarray(models(16)[0].image)))


def test_models_that_are_not_a_number_still_give_different_examples():
    learner, teacher = models(16)
    learner.image[3] = np.nan
    pair = jax.tree.map(jnp.asarray, (learner, teacher))
    found, _ = select(*pair, jax.random.key(0), count=12, chunks=3)
    assert len(set(found.tolist())) == 12


@pytest.mark.parametrize("count, chunks", [(17, 4), (3, 4), (8, 0)])
def test_impossible_counts(count, chunks):
    pair = jax.tree.map(jnp.asarray, models(16))
    with pytest.raises(ValueError, match="1 <= chunks <= count <= examples"):
        joint_sample(*pair, jnp.zeros((chunks, 16)), count)


def temporary_bytes(devices: int, n: int, count: int) -> int:
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        pair = [split(x, mesh) for x in models(n)]
        program = jax.jit(lambda *pair: select(*pair, jax.random.key(0), count=count))
        return program.lower(*pair).compile().memory_analysis().temp_size_in_bytes


def test_memory():
    """Far less than the scores of all pairs, and shared by the devices."""
    n = 4096
    one, eight = (temporary_bytes(devices, n, n // 2) for devices in (1, 8))
    assert one < n * n * 4 / 4, one
    assert eight < one / 4, (one, eight)
