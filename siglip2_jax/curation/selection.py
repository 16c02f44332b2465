"""Selection of the examples of a super-batch to learn from, jointly by learnability.

JEST (arXiv 2406.17711, algorithm 1) with the scores of ACID (arXiv 2411.18674), which is how
SigLIP 2 trained its small models (arXiv 2502.14786, section 2.5). An example is worth learning if
the learner still finds it hard and the teacher easy, and it is judged together with those already
chosen. The published code starts from matrices of all pairs. Here they never exist: a chunk of k
chosen examples adds k columns and k rows, whose sums are all that later chunks need.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from siglip2_jax.sharding import AXES, BATCH, has_mesh, replicate
from siglip2_jax.types import ArrayLike, pytree_dataclass

REFERENCE = "reference"
"""Key of `batch.fields` under which the teacher's `Embedded` of the selected examples is."""


@pytree_dataclass
class Embedded:
    """Embeddings of n examples by one model, with its temperature and bias.

    Attributes:
      image: unit-length image embeddings, split over the mesh as `BATCH`.
      text: unit-length text embeddings in the same order, split likewise.
      t: log temperature of its sigmoid loss.
      b: bias of its sigmoid loss.
    """

    image: Float[ArrayLike, "n E"]
    text: Float[ArrayLike, "n E"]
    t: Float[ArrayLike, ""]
    b: Float[ArrayLike, ""]


def select(
    learner: Embedded, teacher: Embedded, key: Key[Array, ""], *, count: int, chunks: int = 16
) -> tuple[Int[Array, " count"], dict[str, Array]]:
    """Chooses examples that are learnable together; nothing is differentiated.

    Args:
      learner: what the model in training makes of the super-batch.
      teacher: what the frozen reference makes of it; its embeddings may have another width.
      key: randomness of this step, the same on every device.
      count: how many to choose.
      chunks: in how many rounds. Each is drawn given all before it; where `chunks` does not divide
        `count`, the first rounds draw one more.

    Returns:
      Indices into the super-batch, all different, the same on every device and on any mesh; and
      the mean learnability of the "chosen" and of "all" examples.

    Raises:
      ValueError: not 1 <= chunks <= count <= n.
    """
    learner, teacher = jax.lax.stop_gradient((learner, teacher))
    noise = jax.random.gumbel(key, (chunks, learner.image.shape[0]))
    indices = joint_sample(learner, teacher, noise, count)
    scores = replicate(learnability(learner, teacher))
    return indices, {"chosen": scores[indices].mean(), "all": scores.mean()}


def joint_sample(
    learner: Embedded, teacher: Embedded, noise: Float[Array, "chunks n"], count: int
) -> Int[Array, " count"]:
    """Chooses examples in chunks, each given those before, with the given noise.

    The k largest of logits plus Gumbel noise are a draw of k examples without replacement, each
    with probability proportional to exp(logit) among those left (arXiv 1903.06059, section 2.3;
    `jax.random.choice` does the same). So the sum of the exponentials is never needed.

    Args:
      learner: as in `select`.
      teacher: as in `select`.
      noise: standard Gumbel noise, one row for each chunk; whole on every device.
      count: how many to choose.

    Returns:
      Indices in the order of choice.

    Raises:
      ValueError: not 1 <= chunks <= count <= n.
    """
    chunks, n = noise.shape
    if not 1 <= chunks <= count <= n:
        raise ValueError(
            f"cannot choose {count} of {n} examples in {chunks} chunks; expected "
            "1 <= chunks <= count <= examples"
        )

    def draw(k: int, carry: tuple[Array, Array], noise: Array) -> tuple[tuple[Array, Array], Array]:
        logits, free = carry
        _, new = jax.lax.top_k(jnp.where(free, logits + noise, -jnp.inf), k)
        logits += replicate(_losses_beside(learner, new) - _losses_beside(teacher, new))
        return (logits, free.at[new].set(False)), new

    k, longer = divmod(count, chunks)
    carry = replicate(learnability(learner, teacher)), jnp.ones(n, bool)
    carry, first = jax.lax.scan(partial(draw, k + 1), carry, noise[:longer])
    _, rest = jax.lax.scan(partial(draw, k), carry, noise[longer:])
    return jnp.concatenate([first.ravel(), rest.ravel()])


def learnability(learner: Embedded, teacher: Embedded) -> Float[Array, " n"]:
    """The learner's loss on each pair minus the teacher's: `S_ii`, split over the mesh as `BATCH`.

    Args:
      learner: as in `select`.
      teacher: as in `select`.
    """
    return _own_loss(learner) - _own_loss(teacher)


def _own_loss(x: Embedded) -> Float[Array, " n"]:
    """Sigmoid loss of every image with its own text."""
    return -jax.nn.log_sigmoid(jnp.exp(x.t) * jnp.sum(x.image * x.text, axis=-1) + x.b)


def _losses_beside(x: Embedded, new: Int[Array, " k"]) -> Float[Array, " n"]:
    """Sigmoid losses of every example's image and text with the texts and images of `new`, summed.

    Pairs of an example with itself count as if they were none, unlike in the published code; only
    examples already chosen have them, which are not drawn again.
    """
    images, texts = jnp.asarray(x.image), jnp.asarray(x.text)
    image, text = fetch(images, new), fetch(texts, new)

    def losses(rows: Float[Array, "n E"], columns: Float[Array, "k E"]) -> Float[Array, " n"]:
        # TPUs multiply float32 in bfloat16 unless told otherwise.
        logits = jnp.exp(x.t) * jnp.matmul(rows, columns.T, precision="highest") + x.b
        return -jax.nn.log_sigmoid(-logits).sum(axis=1)

    return losses(images, text) + losses(texts, image)


def fetch(rows: Float[Array, "n E"], index: Int[Array, " k"]) -> Float[Array, "k E"]:
    """A few rows of an array split as `BATCH`, on every device; only they travel.

    Args:
      rows: the array.
      index: which rows, the same on every device.
    """
    if not has_mesh():
        return rows[index]
    specs = (BATCH, PartitionSpec())
    return jax.shard_map(_fetch_local, in_specs=specs, out_specs=PartitionSpec())(rows, index)


def _fetch_local(rows: Float[Array, "m E"], index: Int[Array, " k"]) -> Float[Array, "k E"]:
    count = rows.shape[0]
    index -= count * jax.lax.axis_index(AXES)
    is_local: Bool[Array, " k"] = (index >= 0) & (index < count)
    local = rows.at[jnp.where(is_local, index, count)].get(mode="fill", fill_value=0)
    return jax.lax.psum(local, AXES)  # one device has the row, all others have zeros
