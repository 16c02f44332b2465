"""Multinomial logistic regression in float32 on the devices of this process.

The scores of ImageNet's 1.28 M training images with its 1,000 classes would be 5 GB, and finding a
gradient takes several arrays of that size. So examples come in parts, dealt to the devices, and the
scores of one part exist at a time; the backward pass makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32

from siglip2_jax.sharding import Device
from siglip2_jax.types import ArrayLike

MAX_ITERATIONS = 1000
MEMORY = 20
"""Steps that L-BFGS remembers."""
PROGRESS = 1e-7
"""Share of the objective by which an iteration must lower it; less is float32's rounding."""
SCORES = 2**23
"""Scores of a part on a device: 32 MB."""

_HOST_ROWS = 2**14  # whitened at a time, in float64


class Logistic(NamedTuple):
    """A linear classifier.

    Attributes:
      weights: of each input for each class.
      bias: of each class.
    """

    weights: Float32[ArrayLike, "D K"]
    bias: Float32[ArrayLike, " K"]


class Rows(NamedTuple):
    """Examples on the devices: P parts of R, of which each device holds some of every part.

    Attributes:
      x: inputs; zeros fill the last part up.
      y: classes.
      count: n, the number of examples.
      mesh: the devices.
    """

    x: Float32[Array, "P R D"]
    y: Int32[Array, "P R"]
    count: int
    mesh: Mesh

    @classmethod
    def place(
        cls,
        x: Float[np.ndarray, "n D"],
        y: Int[np.ndarray, " n"],
        num_classes: int,
        *,
        mean: Float[np.ndarray, " D"] | float = 0.0,
        std: Float[np.ndarray, " D"] | float = 1.0,
        devices: Sequence[Device] | None = None,
    ) -> Rows:
        """Puts examples on devices.

        Args:
          x: finite features.
          y: class of each row, 0 up to `num_classes - 1`.
          num_classes: K, which bounds the size of a part.
          mean: subtracted from the features.
          std: by which they are divided then.
          devices: None means all of this process.
        """
        devices = jax.local_devices() if devices is None else devices
        mesh = Mesh(np.array(devices), ("data",))
        (count, width), size = x.shape, len(devices)
        size *= max(1, min(-(-count // size), SCORES // num_classes))
        inputs = np.zeros((-(-count // size) * size, width), np.float32)
        for start in range(0, count, _HOST_ROWS):
            part = slice(start, start + _HOST_ROWS)
            inputs[:count][part] = (x[part].astype(np.float64) - mean) / std
        placed = jax.device_put(inputs.reshape(-1, size, width), _dealt(mesh))
        return cls(placed, _deal(y.astype(np.int32), placed.shape[:2], mesh), count, mesh)

    def fit(
        self,
        num_classes: int,
        l2: float,
        *,
        used: Float[np.ndarray, " n"] | None = None,
        start: Logistic | None = None,
    ) -> Logistic:
        """Minimises `mean cross-entropy + l2 / 2 * |weights|^2`; the bias has no penalty.

        scikit-learn's `LogisticRegression(C=1 / (n * l2))` has the same minimum.

        Args:
          num_classes: K.
          l2: penalty, above 0.
          used: what each example counts; None counts all alike.
          start: where to begin; None begins with zeros. The minimum does not depend on it.
        """
        used = np.ones(self.count) if used is None else used
        share = _deal((used / used.sum()).astype(np.float32), self.y.shape, self.mesh)
        if start is None:
            zeros = np.zeros((self.x.shape[2] + 1, num_classes), np.float32)
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            start = jax.device_put(Logistic(zeros[:-1], zeros[-1]), everywhere)
        with jax.set_mesh(self.mesh):  # that of a training run may be in force
            return minimise(start, self.x, self.y, share, np.float32(l2))

    def predict(self, model: Logistic) -> Int32[np.ndarray, " n"]:
        """Class with the highest score of each example."""
        with jax.set_mesh(self.mesh):
            return np.asarray(_predict(model, self.x)).reshape(-1)[: self.count]


@jax.jit
def minimise(
    start: Logistic,
    x: Float32[Array, "P R D"],
    y: Int32[Array, "P R"],
    share: Float32[Array, "P R"],
    l2: Float32[Array, ""] | np.float32,
) -> Logistic:
    """L-BFGS until an iteration makes no more progress: the whole descent is one program.

    Args:
      start: where to begin.
      x: inputs.
      y: classes.
      share: what each example counts, in sum 1.
      l2: penalty.
    """

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array], model: Logistic) -> Array:
        inputs, classes, share = part
        scores = _scores(model, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, classes)
        return total + jnp.sum(share * losses)

    def objective(model: Logistic) -> Array:
        penalty = l2 / 2 * jnp.sum(model.weights**2)
        parts = x, y, share
        return jax.lax.scan(lambda sum, part: (add(sum, part, model), None), penalty, parts)[0]

    solver = optax.lbfgs(memory_size=MEMORY)
    derive = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        model, state, _, count = carry
        value, gradient = derive(model, state=state)
        updates, state = solver.update(
            gradient, state, model, value=value, grad=gradient, value_fn=objective
        )
        progress = value - optax.tree.get(state, "value")
        return optax.apply_updates(model, updates), state, progress > PROGRESS * value, count + 1

    def goes_on(carry: tuple) -> Array:
        return carry[2] & (carry[3] < MAX_ITERATIONS)

    begin = start, solver.init(start), jnp.array(True), jnp.int32(0)
    return jax.lax.while_loop(goes_on, step, begin)[0]


@jax.jit
def _predict(model: Logistic, x: Float32[Array, "P R D"]) -> Int32[Array, "P R"]:
    return jax.lax.map(lambda part: _scores(model, part).argmax(axis=1).astype(jnp.int32), x)


def _scores(model: Logistic, x: Float32[Array, "R D"]) -> Float32[Array, "R K"]:
    """Scores in float32, which products on TPU use only at the highest precision."""
    return jnp.matmul(x, model.weights, precision=jax.lax.Precision.HIGHEST) + model.bias


def _dealt(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def _deal(values: np.ndarray, shape: tuple[int, ...], mesh: Mesh) -> Array:
    """A number of each example where its inputs are; zeros fill the last part up."""
    padded = np.zeros(shape, values.dtype)
    padded.reshape(-1)[: len(values)] = values
    return jax.device_put(padded, _dealt(mesh))
