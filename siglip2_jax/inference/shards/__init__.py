"""Embeddings of any number of images, as Parquet files: one a shard, made by any processes."""

from siglip2_jax.inference.shards.manifest import Options
from siglip2_jax.inference.shards.merge import Merged, merge
from siglip2_jax.inference.shards.read import Block, EmbeddingShards, read_shards
from siglip2_jax.inference.shards.run import ShardRun, Summary, embed_shards

__all__ = [
    "Block",
    "EmbeddingShards",
    "Merged",
    "Options",
    "ShardRun",
    "Summary",
    "embed_shards",
    "merge",
    "read_shards",
]
