"""`light.py` on tars, in blocks."""

import dataclasses
import os
from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.tars import Tars


def config() -> TrainConfig:
    """The same stage on what STORED_DATA names."""
    run = load_config(Path(__file__).with_name("light.py"))
    (stage,) = run.stages
    source, shuffle = Tars(os.environ["STORED_DATA"]), BlockShuffle(lanes=8, window=4)
    data = dataclasses.replace(stage.data, source=source, shuffle=shuffle)
    return dataclasses.replace(run, stages=(dataclasses.replace(stage, data=data),))
