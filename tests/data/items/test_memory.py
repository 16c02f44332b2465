"""Memory of reading items stays as it is from the first few batches on."""

import os
from pathlib import Path

import pytest
from data.samples import picture

from siglip2_jax.data.image_files import ImageFiles
from siglip2_jax.data.items.item import Shard
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.strings import Strings

NUMBER = 2_000


def resident() -> int:
    """Bytes of this process alone."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_memory_does_not_grow(tmp_path):
    """Patches of all the images that are read would be 100 MB."""
    paths = [str(tmp_path / f"{i}.jpg") for i in range(20)]
    for i, path in enumerate(paths):
        Path(path).write_bytes(picture(i)[: 200 if i == 7 else None])
    shard = Shard("a", ImageFiles(Strings.join(paths * (NUMBER // 20))))
    sizes, bad = [], 0
    options = {"max_num_patches": 256, "batch_size": 20}
    with ItemReader([shard], ImagePreprocessor(4, None), **options) as reader:
        for batch in reader:
            sizes.append(resident())
            bad += sum(item.error is not None for item in batch.items)
    assert len(sizes) == NUMBER // 20 and bad == NUMBER // 20
    assert max(sizes[len(sizes) // 4 :]) - sizes[len(sizes) // 4] < 10 * 2**20
