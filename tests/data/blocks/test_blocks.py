"""Training in blocks: the same batches whatever the hosts, each block read once, little held."""

import gc
import multiprocessing
import os
import pickle
import signal
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from data.block_source import Block, Blocks
from data.samples import Stamp, preparation
from data.test_pipeline import assert_same, joined

from siglip2_jax.data.blocks.layout import layout
from siglip2_jax.data.blocks.order import BlockOrder
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.blocks.streams import BlockStream
from siglip2_jax.data.blocks.windows import Readers, Windows
from siglip2_jax.data.chunks import Chunks
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.lengths import Lengths, StepSchedule
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Blocked, Memory, Mixture

LENGTHS = Lengths((4, 6), batch_scale=((6, 0.5),))
READING = LENGTHS.reading(4, 8, 32)
SHUFFLE = BlockShuffle(lanes=16, window=2)


def make(source=None, shuffle=SHUFFLE, **options) -> Pipeline:
    """A pipeline of 300 examples in blocks of 4."""
    source = source or Blocks(300, 4)
    return Pipeline(source, preparation(Stamp()), seed=9, shuffle=shuffle, **options)


def read(pipeline: Pipeline, reading=READING) -> list:
    with closing(pipeline.batches(reading)) as batches:
        return list(batches)


def ids(batches: list) -> np.ndarray:
    return np.concatenate([loaded.batch.fields["id"] for loaded in batches])


def test_rows_belong_to_lanes():
    order = BlockOrder(300, 4, 16, 2, 9)
    for loaded, (_, _, size, position) in zip(read(make()), READING, strict=True):
        each = size // 16
        expected = [order.example(row // each, position // 16 + row % each) for row in range(size)]
        assert loaded.batch.fields["id"].tolist() == expected
        assert loaded.position == position + size


@pytest.mark.parametrize("hosts", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_same_global_batches_on_any_number_of_hosts(hosts):
    source = Blocks(301, 4, bad=(3, 77, 120, 121, 122, 123, 299))
    common = {"max_bad_share": 1.0}
    whole = read(make(source, **common))
    options = {**common, "process_count": hosts, "chunk": 3, "threads": 3, "prefetch": 1}
    parts = [read(make(source, process_index=h, **options)) for h in range(hosts)]
    assert_same(joined(parts), whole)
    assert sum(b.bad for b in whole) == sum(b.bad for part in parts for b in part) > 0


def data_workers() -> list:
    """Workers of this process; it may also have the decoders of a server, of other tests."""
    return [x for x in multiprocessing.active_children() if x.name == "siglip2_jax data"]


@pytest.mark.slow
def test_worker_processes_give_the_same_and_share_no_block(tmp_path):
    source = Blocks(640, 4)
    expected = read(make(source))
    log = tmp_path / "log"
    logged = replace(source, log=str(log))
    batches = read(make(logged, workers=2, threads=2, chunk=3, cache=str(tmp_path / "cache")))
    assert_same(batches, expected)
    assert not data_workers()
    reads = [line.split() for line in log.read_text().splitlines()]
    assert len({process for _, process in reads}) == 2
    assert max(Counter(block for block, _ in reads).values()) == 1
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_a_worker_that_is_killed_begins_anew_where_it_was():
    source = Blocks(640, 4)
    expected = read(make(source))
    with closing(make(source, workers=2, threads=2, prefetch=1).batches(READING)) as batches:
        loaded = [next(batches)]
        os.kill(data_workers()[0].pid, signal.SIGKILL)
        loaded += batches
    assert_same(loaded, expected)
    assert sum(batch.restarts for batch in loaded) == 1


@pytest.mark.parametrize("count", [100, 11])
def test_little_data_is_dealt_in_parts_of_blocks(tmp_path, count):
    """Blocks that several lanes need parts of are read once by a process while they are needed."""
    log = tmp_path / "log"
    source = Blocks(count, 32, log=str(log))
    reading = StepSchedule(((4, 32),), 6)
    whole = read(make(source), reading)
    reads = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert len(reads) == -(-count // 32) and max(reads.values()) <= 2
    seen = Counter(ids(whole).tolist())
    assert len(seen) == count and max(seen.values()) - min(seen.values()) <= 3
    parts = [read(make(source, process_index=h, process_count=4), reading) for h in range(4)]
    assert_same(joined(parts), whole)


@pytest.mark.slow
def test_resuming_in_the_middle_of_a_window():
    whole = read(make())
    for stop in (1, 4, 7):
        reading = LENGTHS.reading(4, 8, 32, step=stop, position=whole[stop - 1].position)
        assert_same(read(make(chunk=5), reading), whole[stop:])


@pytest.mark.parametrize("hosts", [1, 4])
@pytest.mark.slow
def test_each_block_is_read_once_by_one_host(tmp_path, hosts):
    """Within an epoch: 24 blocks of each lane, of which 12 are used."""
    log = tmp_path / "log"
    source = Blocks(16 * 24 * 4, 4, log=str(log))
    reading = StepSchedule(((4, 32),), 16 * 12 * 4 // 32)
    used = set()
    for h in range(hosts):
        used |= set(ids(read(make(source, process_index=h, process_count=hosts), reading)) // 4)
    reads = Counter(map(int, (line.split()[0] for line in log.read_text().splitlines())))
    assert max(reads.values()) == 1
    assert used <= set(reads)
    assert len(reads) <= 16 * (12 + 2 * 2)


@pytest.mark.slow
def test_little_is_held_and_nothing_is_left():
    gc.collect()
    before = Block.alive
    reading = StepSchedule(((4, 32),), 40)
    most = 0
    with closing(make(Blocks(16_000, 16), threads=1, prefetch=1).batches(reading)) as batches:
        for _ in batches:
            most = max(most, Block.alive - before)
    # Two windows of two blocks in sixteen lanes, and what threads have at hand.
    assert 16 * 2 < most <= 16 * 2 * 2 + 4
    gc.collect()
    assert Block.alive == before


def test_blocks_are_there_before_they_are_needed():
    """After the first step no example waits for a block that was not asked for before."""
    pieces = layout(StepSchedule(((4, 64),), 100), 0, 1, 64, lanes=16)
    stream = BlockStream(Blocks(4000, 8), [Blocks(4000, 8)], 3, pieces, 4)
    seen = Counter()
    for i in range(100):
        with stream.using(i, 0):
            (windows,) = stream._state().windows
            order = windows._order
            if i > 0:
                for lane in range(16):
                    for key in pieces.keys(i):
                        assert order.example(lane, key) // 8 in windows.held
            seen["held"] = max(seen["held"], len(windows.held))
            for index in pieces.indices(i, 0):
                stream[index]
    assert seen["held"] <= 16 * 4 * 2
    stream.close()


def test_requests_are_spread_over_a_window():
    """Blocks of the next window are asked for one by one, all at a quarter of this one."""
    source, readers = Blocks(4000, 8), Readers(1)
    windows = Windows(source, BlockOrder(4000, 8, 1, 16, 3), 1.0, readers, None, 1.0)
    held = []
    for key in range(2 * 128 + 1):
        windows.advance(0, key, 1)
        held.append(len(windows.held))
    assert held[0] == 16 and held[48] == 24 and held[95] == held[127] == 32
    assert held[129] == 17 and held[176] == 24  # those of the first window are gone
    assert all(0 <= after - before <= 1 for before, after in pairwise(held[:128]))
    readers.close()


@pytest.mark.slow
def test_mixtures_of_blocks_and_single_examples():
    def part(start: int, count: int) -> Memory:
        example = Blocks(1)[0]
        return Memory(tuple({**example, "id": start + i} for i in range(count)))

    inner = Mixture(((part(10_000, 60), 1.0), (part(20_000, 500), 1.0)))
    source = Mixture(((Blocks(400, 4), 0.5), (inner, 0.5)))
    reading = StepSchedule(((4, 64),), 12)
    batches = read(make(source), reading)
    for loaded in batches:
        shares = np.bincount(loaded.batch.fields["id"] // 10_000, minlength=3)
        assert shares[0] == 32 and 8 <= shares[1] <= 24
    numbers = ids(batches)
    blocked, few = numbers[numbers < 10_000], numbers[numbers // 10_000 == 1]
    # Little less than an epoch of one, and some of the other.
    assert len(blocked) == 384 and max(Counter(blocked).values()) <= 2
    assert set(Counter(few).values()) <= {2, 3, 4} and len(set(few)) == 60
    parts = [read(make(source, process_index=h, process_count=4), reading) for h in range(4)]
    assert_same(joined(parts), batches)


def test_bad_examples_are_replaced_from_their_window():
    order = BlockOrder(300, 4, 16, 2, 9)
    bad = tuple(range(0, 300, 7))
    clean, mended = read(make()), read(make(Blocks(300, 4, bad=bad), max_bad_share=1.0))
    replaced = 0
    for before, after, (_, _, size, position) in zip(clean, mended, READING, strict=True):
        each = size // 16
        for row, (was, now) in enumerate(
            zip(before.batch.fields["id"], after.batch.fields["id"], strict=True)
        ):
            if was not in bad:
                assert was == now
                continue
            window = order.window_of(row // each, position // 16 + row % each)
            near = {order.example(row // each, key) for key in window}
            assert now in near - set(bad)
            replaced += 1
        assert all(problem.endswith("it is broken.") for problem in after.problems)
    assert replaced > 10


def test_remote_data_is_read_in_blocks_unless_told_otherwise(tmp_path):
    assert isinstance(Blocks(1), Blocked)
    for source, shuffle, blocks in [
        (Blocks(100), True, True),
        (Mixture(((Memory((Blocks(1)[0],)), 1.0), (Blocks(100), 1.0))), True, True),
        (Blocks(100, remote=False), True, False),
        (Blocks(100, remote=False), BlockShuffle(), True),
        (Memory((Blocks(1)[0],)), BlockShuffle(), True),
        (Blocks(100), False, False),
    ]:
        stream, pieces = make(source, shuffle=shuffle)._planned(READING)
        assert isinstance(stream, BlockStream) == blocks == (pieces.lanes is not None)
    log = tmp_path / "log"
    make(Blocks(100, log=str(log)), shuffle=True).check(4)
    assert not log.exists()  # one example, not a window


def test_a_billion_examples_take_no_longer_than_a_thousand():
    reading = StepSchedule(((4, 32),), 1_220_704)
    pipeline = make(Blocks(10**9, 128), shuffle=True)
    chunks = Chunks(*pipeline._planned(reading), pipeline.prepare, pipeline.seed)
    assert len(pickle.dumps(chunks.layout)) < 1000
    with closing(pipeline.batches(reading)) as batches:
        numbers = next(batches).batch.fields["id"]
    assert len(set(numbers)) == 32 and numbers.max() > 10**8


def test_a_source_that_fails_is_heard():
    (gone,) = {int(ids(read(make(), StepSchedule(((4, 32),), 1)))[5]) // 4}
    stream, _ = make(Blocks(300, 4, gone=gone))._planned(READING)
    with pytest.raises(SourceError, match=f"block {gone} is gone"):
        for index in range(32):
            stream[index]
    stream.close()


def test_errors_that_pass_are_waited_for(tmp_path):
    expected = read(make(), StepSchedule(((4, 32),), 2))
    stale = Blocks(300, 4, stale=str(tmp_path / "block"))
    assert_same(read(make(stale), StepSchedule(((4, 32),), 2)), expected)
    gone = Blocks(300, 4, stale=str(tmp_path / "absent" / "block"))
    with pytest.raises(SourceError, match="absent.* cannot be read .*No such file"):
        read(make(gone), StepSchedule(((4, 32),), 2))


def test_mistakes_are_told_at_once():
    with pytest.raises(ValueError, match="the 16 lanes .* cannot be divided among 3 hosts"):
        make(process_count=3).batches(StepSchedule(((4, 48),), 1))
    with pytest.raises(ValueError, match="stands at example 8, which 16 lanes .* do not divide"):
        make().batches(StepSchedule(((4, 32),), 2, position=8))


@pytest.mark.parametrize("lanes", [None, 8, 16])
@pytest.mark.parametrize("workers", [0, 1, 3, 4, 40])
@pytest.mark.parametrize("hosts", [1, 2])
def test_pieces_are_all_rows_once(lanes, workers, hosts):
    rows = []
    for h in range(hosts):
        pieces = layout(READING, h, hosts, 5, workers, lanes)
        assert 1 <= pieces.workers <= max(1, workers) and pieces.parts % pieces.workers == 0
        belong = {}
        for i, (_, _, size, _) in enumerate(READING):
            parts = [pieces.rows(i, part) for part in range(pieces.parts)]
            assert [row for part in parts for row in part] == list(range(size // hosts))
            assert all(len(part) for part in parts)
            if i == 0:
                rows += [index for part in range(pieces.parts) for index in pieces.indices(0, part)]
            if lanes:
                for part in range(pieces.parts):
                    its = {index % lanes for index in pieces.indices(i, part)}
                    assert its == set(pieces.lanes_of(part))
                    worker = part % pieces.workers
                    assert all(belong.setdefault(lane, worker) == worker for lane in its)
    assert sorted(rows) == list(range(READING[0][3], READING[0][3] + READING[0][2]))


def test_tree_is_numpy():
    """Arrays of a batch do not refer to what windows hold."""
    (loaded, *_) = read(make(), StepSchedule(((4, 32),), 1))
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(loaded.batch))
