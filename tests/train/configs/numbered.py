"""`small.py` at one length on tars, in block order; metrics tell which examples a step has."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import small

from siglip2_jax.config import Data, TrainConfig
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.tars import Tars
from siglip2_jax.objectives.base import Objective


class Numbered:
    """Adds the number of the example to the batch."""

    def __call__(self, example, rng):
        example["fields"]["id"] = np.float32(example.get("id", 0))
        return example


@dataclasses.dataclass(frozen=True)
class Ids(Objective):
    """Reports the numbers of a batch's examples, each under its row; no loss."""

    weight: float = 1.0

    def loss(self, head, view):
        ids = view.batch.fields["id"]
        return jnp.float32(0), {f"{row:02}": ids[row] for row in range(len(ids))}


def config() -> TrainConfig:
    """Batches of 32 from eight lanes; the pattern of the tars is to be set."""
    run = small.config()
    (stage,) = run.stages
    data = Data(
        source=Tars("nowhere"),
        transforms=(Numbered(),),
        workers=2,
        shuffle=BlockShuffle(lanes=8, window=4),
    )
    stage = dataclasses.replace(
        stage,
        data=data,
        batch_size=32,
        lengths=Lengths(budgets=(16,)),
        objectives={**stage.objectives, "ids": Ids()},
    )
    return dataclasses.replace(run, stages=(stage,))
