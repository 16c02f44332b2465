"""Blocks on disk: the same examples, in files without a name, which go when they are not needed."""

import gc
import os

import pytest
from data.block_source import Block

from siglip2_jax.data.blocks import cache as caching
from siglip2_jax.data.blocks.cache import Cache
from siglip2_jax.data.example import ExampleError, SourceError


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_examples_come_back_as_they_were(tmp_path):
    cache = Cache(str(tmp_path / "new"))
    block = Block(range(20, 27), bad=(23,))
    kept = [cache.keep(block), cache.keep(Block(range(3), bad=()))]
    assert [len(its) for its in kept] == [7, 3]
    assert [kept[0][i] for i in range(7) if i != 3] == [block[i] for i in range(7) if i != 3]
    assert [example["id"] for example in kept[1]] == [0, 1, 2]
    with pytest.raises(ExampleError, match="no 23: it is broken") as error:
        kept[0][3]
    assert error.value.name == "no 23"
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be counted")
def test_files_are_closed_when_their_blocks_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_FILE", 1)
    gc.collect()
    before, cache = open_files(), Cache(str(tmp_path))
    kept = [cache.keep(Block(range(i, i + 3), bad=())) for i in range(5)]
    assert open_files() == before + 5
    del kept[1:3]
    assert open_files() == before + 3
    assert [block[0]["id"] for block in kept] == [0, 3, 4]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SourceError, match=f"{tmp_path}: the cache .*No space left.*free space"):
        Cache(str(tmp_path)).keep(Block(range(3), bad=()))
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="choose another directory"):
        Cache(str(tmp_path / "file")).keep(Block(range(3), bad=()))
