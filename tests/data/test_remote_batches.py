"""Batches from a store: the same as from a disk, whatever the store does meanwhile."""

import random

import numpy as np
import pytest
from data.samples import Stamp, example, preparation

from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Memory
from siglip2_jax.data.stores import client
from siglip2_jax.data.stores.client import Counts
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools import pack as pack_module

STEPS, BATCH = 24, 16


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A local pack of tars in blocks of eight."""
    monkeypatch.setattr(pack_module, "BLOCK_SIZE", 8)
    source = Memory(tuple(example(i) for i in range(200)))
    pack_module.pack(source, tmp_path / "packed", kind="tar", shard_size=60)
    return tmp_path / "packed"


def pipeline(pattern, patience=60.0, **options):
    shuffle = BlockShuffle(lanes=8, window=4)
    prepare = preparation(Stamp())
    return Pipeline(Tars(str(pattern)), prepare, 7, shuffle=shuffle, patience=patience, **options)


def read(pattern, **options):
    steps = pipeline(pattern, **options).batches(StepSchedule(((9, BATCH),), STEPS))
    return list(steps)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_same_as_from_a_disk_with_faults(cloud, packed, workers):
    for path in packed.rglob("*.*"):
        if path.is_file():
            cloud.put(f"packed/{path.relative_to(packed)}", path.read_bytes())
    faults = random.Random(3)
    cloud.fault = lambda: faults.choice([*[None] * 8, "503", "429", "reset", "cut"])
    stored = read(f"{cloud.scheme}://bucket/packed", workers=workers)
    client.take()  # of opening
    expected = read(packed)
    for batch, its_twin in zip(stored, expected, strict=True):
        assert (batch.bad, batch.position) == (0, its_twin.position)
        for name, array in its_twin.batch.fields.items():
            np.testing.assert_array_equal(batch.batch.fields[name], array)
        np.testing.assert_array_equal(batch.batch.image.pixels, its_twin.batch.image.pixels)
    made = sum((batch.requests for batch in stored), Counts())
    assert made.requests > made.retries > 0 and made.bytes > 200 * 500
    assert sum((batch.requests for batch in expected), Counts()) == Counts()


def test_a_store_that_is_gone_ends_the_batches_with_its_name(cloud, packed):
    """Steps before it are given; `patience` is that of the pipeline."""
    for path in packed.rglob("*.*"):
        if path.is_file():
            cloud.put(f"packed/{path.relative_to(packed)}", path.read_bytes())
    reading = pipeline(f"{cloud.scheme}://bucket/packed", prefetch=1, patience=0.5)
    steps = reading.batches(StepSchedule(((9, BATCH),), 1000))
    assert next(steps).step == 0
    cloud.shut()
    with pytest.raises(SourceError, match=rf"^{cloud.scheme}://bucket/packed/examples.* in \d+ s"):
        list(steps)
