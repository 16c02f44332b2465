"""Messages before the first step, on embeddings whose best bias is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.builders import TINY, patches

from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.sharding import make_mesh, put_batch
from siglip2_jax.train.preflight import SHIFTS, Preflight, preflight
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch

T = np.log(20.0)
LARGE, SMALL = 512, 32


def embeddings(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts that resemble their images: cosines of pairs are high, of others about 0."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, 64))
    text = image + 2 * rng.standard_normal((n, 64))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return image.astype(np.float32), text.astype(np.float32)


def losses(n: int, biases: np.ndarray) -> np.ndarray:
    """The sigmoid loss at each bias, in float64."""
    image, text = (x.astype(np.float64) for x in embeddings(n))
    labels, scaled = 2 * np.eye(n) - 1, np.exp(T) * image @ text.T
    return np.array([np.logaddexp(0, -labels * (scaled + b)).sum() / n for b in biases])


def look(image: np.ndarray, text: np.ndarray, bias: float, mesh=None, parts: int = 1) -> Preflight:
    """The pre-flight of a model that embeds like this and trains on one of `parts`."""
    n = len(image)
    data = Data(source=Folder("nowhere"))
    stage = Stage(name="a", data=data, batch_size=8, steps=1, objectives={"sigmoid": Sigmoid()})
    program = Program(TrainConfig(model=TINY, stages=(stage,), tokenizer="").resolved[0])
    images = jax.tree.map(lambda x: np.repeat(x, n, 0), patches([(1, 1)], 1))
    ids = np.zeros((n, TINY.text.length), np.int32)
    batch = Batch(images, ids, {"image": image, "text": text})
    program.batch_size = lambda read: read // parts
    program.embed = lambda params, batch: (batch.fields["image"], batch.fields["text"])
    params = {"t": jnp.float32(T), "b": jnp.float32(bias)}
    state = TrainState(params, None, None, jnp.int32(0))
    return preflight(program, state, put_batch(batch, mesh) if mesh else batch)


@pytest.mark.parametrize("devices", [1, 4])
def test_curated(devices):
    """Examples that are trained on count, not all that are read."""
    image, text = embeddings(SMALL)
    doubled = np.repeat(image, 2, 0), np.repeat(text, 2, 0)
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        found = look(*doubled, -7.3, mesh, parts=2)
    np.testing.assert_allclose(found.loss, losses(SMALL, [-7.3])[0], rtol=2e-6)
    assert found.batch_size == SMALL


@pytest.mark.parametrize("devices", [1, 4])
def test_numbers(devices):
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        found = look(*embeddings(SMALL), -7.3, mesh)
    np.testing.assert_allclose(found.loss, losses(SMALL, [-7.3])[0], rtol=2e-6)
    others = (SMALL - 1) * np.logaddexp(0, -7.3)
    np.testing.assert_allclose(found.orthogonal, np.logaddexp(0, 7.3) + others, rtol=1e-6)
    # One logit for all pairs, at its best.
    constant = np.linspace(-10, 0, 100_001)
    constant = np.logaddexp(0, -constant) + (SMALL - 1) * np.logaddexp(0, constant)
    np.testing.assert_allclose(found.uninformed, constant.min(), rtol=1e-8)
    biases = -7.3 + SHIFTS.astype(np.float64)
    assert found.best_bias == pytest.approx(biases[losses(SMALL, biases).argmin()], abs=1e-6)
    assert (found.bias, found.batch_size) == (pytest.approx(-7.3, abs=1e-6), SMALL)


@pytest.mark.slow
def test_best_bias_follows_the_batch_size():
    """By the log of the ratio of negatives to a positive, on a grid of halves."""
    unrelated = np.split(np.eye(2 * LARGE, dtype=np.float32), 2)
    large = look(*unrelated, -10.0)
    small = look(*(x[:SMALL] for x in unrelated), large.best_bias)
    assert abs(large.best_bias + np.log(LARGE - 1)) <= 0.25
    assert abs(small.best_bias + np.log(SMALL - 1)) <= 0.25
    assert small.warning(fresh=False) is not None
    assert look(*unrelated, large.best_bias).warning(fresh=False) is None


def test_a_single_pair():
    assert look(*embeddings(1), -10.0).uninformed == 0.0


FOUND = Preflight(
    loss=9.75, orthogonal=10.5, uninformed=4.46, bias=-16.5, best_bias=-12.0, batch_size=32
)


def test_explanation():
    start = "pre-flight: sigmoid loss 9.750 at step 0 with batch 32"
    assert FOUND.explain(fresh=True) == f"{start}, 10.500 expected of a fresh model"
    assert FOUND.explain(fresh=False) == f"{start}, a trained model stays below 4.460"


def test_warning():
    text = FOUND.warning(fresh=False)
    assert "b is -16.50" in text and "best at -12.0" in text
    assert "adding 4.5 to Pretrained.bias_shift" in text
    own = FOUND.warning(fresh=False, released=False)
    assert "bias_shift" not in own and own.endswith("the first steps will move it")
    assert FOUND.warning(fresh=True) is None
    near = Preflight(
        loss=1.0, orthogonal=10.5, uninformed=4.46, bias=-13.0, best_bias=-12.0, batch_size=32
    )
    assert near.warning(fresh=False) is None
