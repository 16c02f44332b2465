"""Embedding and packing on a Ray cluster (Ray 2.55 or later: `pip install 'ray[data]'`).

    python embed_ray.py rows   MODEL train.parquet rows/           # rows in, rows out
    python embed_ray.py shards MODEL '/data/*.tar' embeddings/ 4   # `siglip2 embed`, 4 actors
    python embed_ray.py pack   '/data/*.tar' packed/ 16            # `siglip2 data pack`, 16 shares

An actor loads the model once and has what `ACTOR` says: `{"resources": {"TPU": 4}}` is a host of
four chips, `{"num_gpus": 1}` a GPU.
"""

import sys

import jax
import ray
from ray.data import ActorPoolStrategy

from siglip2_jax import load
from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.stores.manifest_files import Shard
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.inference.shards import Options, ShardRun, merge

ACTOR = {"num_cpus": 1}


def load_on_all(model):
    """The model on all devices of an actor, each of which gets a part of every batch."""
    embedder = load(model)
    embedder.replicate_over(jax.local_devices())
    return embedder


class EmbedRows:
    """Replaces the column of images by their embeddings; NaN where an image cannot be read."""

    def __init__(self, model, column):
        self.model, self.column = load_on_all(model), column

    def __call__(self, batch):
        """Rows of a batch, as columns."""
        images = [x["bytes"] if isinstance(x, dict) else x for x in batch.pop(self.column)]
        return batch | {"embedding": self.model.embed_images(images)}


def embed_rows(model, parquet, out, column="image", actors=1):
    """Ray reads Parquet and writes it; any data set of Ray that has bytes of images will do."""
    rows = ray.data.read_parquet(parquet).map_batches(
        EmbedRows,
        fn_constructor_args=(model, column),
        batch_size=64,
        compute=ActorPoolStrategy(size=int(actors)),
        **ACTOR,
    )
    rows.write_parquet(out)


class EmbedShards:
    """Embeds shards by their numbers into files of Parquet, as `siglip2 embed --out DIR` does."""

    def __init__(self, model, shards, out):
        self.run = ShardRun(load_on_all(model), shards, out, Options(workers=0))

    def __call__(self, batch):
        """Counts of the shards whose numbers are in a batch."""
        summary = self.run.embed(map(int, batch["id"]))
        return {"images": [summary.images], "errors": [summary.errors]}


def embed_shards(model, images, out, actors=1):
    """Ray deals the shards to actors; those that are there are skipped, also by a second run."""
    shards = find_items([images])
    count = len(shards)
    numbers = ray.data.range(count, override_num_blocks=count)
    numbers.map_batches(
        EmbedShards,
        fn_constructor_args=(model, shards, out),
        compute=ActorPoolStrategy(size=int(actors)),
        **ACTOR,
    ).materialize()
    print(merge(out))


def pack_tars(tars, out, shares=1, shard_size=10_000):
    """Packs tars into ArrayRecord files, a share of the files in each task."""
    shares, shard_size = int(shares), int(shard_size)

    def pack_shares(batch):
        parts = [Shard(int(number), shares) for number in batch["id"]]
        results = [pack(Tars(tars), out, shard_size=shard_size, shard=part) for part in parts]
        return {"examples": [result.examples for result in results]}

    counts = ray.data.range(shares, override_num_blocks=shares).map_batches(pack_shares)
    print(counts.sum("examples"))


if __name__ == "__main__":
    {"rows": embed_rows, "shards": embed_shards, "pack": pack_tars}[sys.argv[1]](*sys.argv[2:])
