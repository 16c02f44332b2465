"""`small.py` with an evaluator, which runs at the end of the stage."""

import dataclasses
from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE
from siglip2_jax.evals.retrieval import Retrieval


def config() -> TrainConfig:
    """The same stage, measured on the first photos."""
    run = load_config(Path(__file__).with_name("small.py"))
    (stage,) = run.stages
    photos = Folder(str(HERE), captions="examples.jsonl", images="photos")
    recall = Retrieval(source=photos, name="photos", count=12, max_num_patches=16)
    return dataclasses.replace(run, stages=(dataclasses.replace(stage, evals=(recall,)),))
