"""`light.py` on data that is lost once the file named by GONE is there."""

import dataclasses
import os
from pathlib import Path

import light

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE


class Examples:
    """The shipped photos."""

    def __init__(self):
        self.rows = Folder(str(HERE), captions="examples.jsonl", images="photos").open()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if Path(os.environ["GONE"]).exists():
            raise SourceError("gs://bucket/a.tar cannot be read: the store does not answer")
        return self.rows[index]


@dataclasses.dataclass(frozen=True)
class Lossy:
    """Source of `Examples`."""

    def open(self):
        return Examples()


def config() -> TrainConfig:
    """The stage of `light.py` with the other data, saved at its end alone."""
    run = light.config()
    (stage,) = run.stages
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, source=Lossy()))
    checkpoints = dataclasses.replace(run.checkpoints, every=10**6)
    return dataclasses.replace(run, stages=(stage,), checkpoints=checkpoints)
