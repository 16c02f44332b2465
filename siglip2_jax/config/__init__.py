"""Configuration of a training run: dataclasses, files that hold them, and changes to them."""

from siglip2_jax.config.adapters import Adapters
from siglip2_jax.config.curation import Curation
from siglip2_jax.config.files import Origin, find_origin, load_config
from siglip2_jax.config.optim import Group, Optim, Schedule
from siglip2_jax.config.override import override
from siglip2_jax.config.record import to_json
from siglip2_jax.config.run import Checkpoints, Logging, Profile, TrainConfig
from siglip2_jax.config.stage import Data, ResolvedStage, Stage
from siglip2_jax.config.start import Continue, Pretrained, Scratch

__all__ = [
    "Adapters",
    "Checkpoints",
    "Continue",
    "Curation",
    "Data",
    "Group",
    "Logging",
    "Optim",
    "Origin",
    "Pretrained",
    "Profile",
    "ResolvedStage",
    "Schedule",
    "Scratch",
    "Stage",
    "TrainConfig",
    "find_origin",
    "load_config",
    "override",
    "to_json",
]
