"""`light.py` on a source and with a transform of its own, whose classes data workers import."""

import dataclasses

import light
from PIL import ImageOps

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE

FOLDER = Folder(str(HERE), captions="examples.jsonl", images="photos")


class Examples:
    """The shipped photos from the last to the first."""

    def __init__(self):
        self.rows = FOLDER.open()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[len(self) - 1 - index]


@dataclasses.dataclass(frozen=True)
class Backwards:
    """Source of `Examples`."""

    def open(self):
        return Examples()


@dataclasses.dataclass(frozen=True)
class Invert:
    """Turns some images into negatives."""

    probability: float = 0.5

    def __call__(self, example, rng):
        if rng.random() >= self.probability:
            return example
        return example | {"image": ImageOps.invert(example["image"])}


def config() -> TrainConfig:
    """The stage of `light.py` with the other data."""
    run = light.config()
    (stage,) = run.stages
    data = dataclasses.replace(stage.data, source=Backwards(), transforms=(Invert(),))
    return dataclasses.replace(run, stages=(dataclasses.replace(stage, data=data),))
