"""A run of a few seconds: two sequence lengths, tiny towers, the shipped photos."""

import dataclasses

import jax
import jax.numpy as jnp

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE, TOKENIZER
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.sigmoid import Sigmoid

TOWER = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}


@dataclasses.dataclass(frozen=True)
class Digest(Objective):
    """Reports a number that tells sets of examples apart, whatever their order; no loss."""

    weight: float = 1.0
    reads_pixels: bool = True

    def loss(self, head, view):
        image, text = view.batch.image, view.batch.text
        pixels = jax.lax.bitcast_convert_type(image.pixels, jnp.uint32).sum((1, 2))
        hashes = (text.astype(jnp.uint32) * 31 ** jnp.arange(text.shape[1], dtype="uint32")).sum(1)
        hashes = (hashes ^ pixels) * jnp.uint32(2654435761)
        total = (hashes ^ (hashes >> 15)).sum() % 2**20  # exact as float32
        return jnp.float32(0), {"batch": total.astype(jnp.float32)}


def config() -> TrainConfig:
    """One stage of 60 steps; every step logs, every fifth saves."""
    stage = Stage(
        name="main",
        steps=60,
        batch_size=8,
        data=Data(source=Folder(str(HERE), captions="examples.jsonl", images="photos")),
        lengths=Lengths(budgets=(16, 32), batch_scale=()),
        objectives={"sigmoid": Sigmoid(), "digest": Digest()},
        optim=Optim(peak_lr=1e-3, schedule=Schedule(warmup=5)),
    )
    return TrainConfig(
        model=ModelConfig(
            vision=VisionConfig(**TOWER, patch_size=16, grid=4, image_size=None),
            text=TextConfig(**TOWER, vocab_size=1024, embed_dim=32, length=16),
        ),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        checkpoints=Checkpoints(every=5, keep_last=3),
        logging=Logging(every=1),
    )
