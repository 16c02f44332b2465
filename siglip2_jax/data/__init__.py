"""Sources of images and texts, and the transforms that prepare them."""

from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.collate import collate
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.prepare import Prepare, Transform, Views
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Examples, Folder, Memory, Mixture, Source
from siglip2_jax.data.table import Table
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tfds import Tfds
from siglip2_jax.data.views import SelfSupervisedViews

__all__ = [
    "BlockShuffle",
    "DecoderTargets",
    "Examples",
    "Folder",
    "HorizontalFlip",
    "Lengths",
    "Memory",
    "Mixture",
    "Parquet",
    "Prepare",
    "RandomResizedCrop",
    "Records",
    "SelfSupervisedViews",
    "Shrink",
    "Source",
    "Table",
    "Tars",
    "Tfds",
    "Transform",
    "Views",
    "collate",
]
