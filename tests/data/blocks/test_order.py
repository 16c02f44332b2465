"""The order of blocks against plain lists and counts, and the mixture of lanes against grain's."""

from dataclasses import replace

import grain
import numpy as np
import pytest

from siglip2_jax.data.blocks.order import BlockOrder, Draws, permuted
from siglip2_jax.data.blocks.shuffle import BlockShuffle

ORDERS = [
    BlockOrder(120, 8, 4, 3, 1),
    BlockOrder(67, 4, 4, 3, 2),  # three examples after the last whole block
    BlockOrder(67, 4, 4, 10**6, 3),  # a window is never more than an epoch
    BlockOrder(37, 8, 4, 3, 4),  # one block of each lane
    BlockOrder(70, 64, 4, 4, 5),  # less than a block for each lane
    BlockOrder(70, 12, 8, 4, 5),
    BlockOrder(50, 1, 4, 6, 6),  # not read in blocks
    BlockOrder(5, 8, 4, 3, 7),
    BlockOrder(3, 8, 4, 3, 8),  # fewer examples than lanes
]


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 100, 1025])
def test_permutations(count):
    orders = [[permuted(i, count, 1, seed) for i in range(count)] for seed in range(4)]
    for order in orders:
        assert sorted(order) == list(range(count))
    assert len({tuple(order) for order in orders}) == 4 or count < 4
    assert permuted(0, 10**10, 5) < 10**10


def test_permutations_look_random():
    """Images of an index and of neighbours are uniform: chi-squared against its spread."""
    bins, draws = 16, 1600
    spots = [permuted(3, 1000, 9, seed) * bins // 1000 for seed in range(draws)]
    gaps = [
        (permuted(4, 1024, 9, seed) - permuted(3, 1024, 9, seed)) % 1024 * bins // 1024
        for seed in range(draws)
    ]
    for sample in (spots, gaps):
        counts = np.bincount(sample, minlength=bins)
        chi = np.sum((counts - draws / bins) ** 2) / (draws / bins)
        assert chi < bins - 1 + 5 * np.sqrt(2 * (bins - 1))


def lanes(order: BlockOrder, keys: int) -> np.ndarray:
    """The first examples of every lane."""
    return np.array(
        [[order.example(lane, key) for key in range(keys)] for lane in range(order.lanes)]
    )


def blocks(order: BlockOrder, count: int) -> np.ndarray:
    """The first blocks that are dealt, each with its examples; windows of one do not mix them."""
    order = replace(order, window=1)
    turns = -(-count // order.lanes)
    dealt = lanes(order, turns * order.size).reshape(order.lanes, turns, order.size)
    return dealt.swapaxes(0, 1).reshape(-1, order.size)[:count]


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_has_every_example_once_but_a_changing_rest(order):
    count = order.num_examples // order.size
    epochs = blocks(order, 4 * count).reshape(4, -1)
    rest = order.num_examples % order.size
    assert rest < order.size or order.num_examples < order.size
    everything = set(range(order.num_examples))
    left_out = []
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == order.num_examples - rest
        left_out.append(frozenset(everything - set(epoch)))
    assert {len(rest) for rest in left_out} == {rest}
    assert len({tuple(epoch) for epoch in epochs}) == 4 or order.num_examples < 6
    if rest:
        assert len(set(left_out)) > 1
        # Those after the last whole block come in most epochs.
        assert sum(order.num_examples - 1 in epoch for epoch in epochs) >= 2


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_are_aligned_and_cut_only_for_lack_of_data(order):
    assert order.block_size % order.size == 0
    assert order.num_examples // order.size >= order.lanes or order.size == 1
    if order.num_examples >= order.block_size * order.lanes:
        assert order.size == order.block_size
    whole = order.num_examples // order.size
    strange = 0
    for block in blocks(order, 2 * whole):
        numbers = {int(example) // order.size for example in block}
        strange += numbers - {whole} != {min(numbers)}
        if whole not in numbers:
            assert len(numbers) == 1
    assert strange == 0


@pytest.mark.parametrize("order", ORDERS)
def test_windows_permute_a_few_blocks_of_a_lane(order):
    keys = 2 * order.width * order.size
    plain, mixed = lanes(replace(order, window=1), keys), lanes(order, keys)
    moved = 0
    ends = set()
    for lane in range(order.lanes):
        start = 0
        while start < keys:
            window = order.window_of(lane, start)
            assert window.start == start and len(window) % order.size == 0
            assert 1 <= len(window) // order.size <= order.width <= order.window
            assert start == 0 or len(window) == order.width * order.size
            assert order.window_of(lane, window[-1]) == window
            if window.stop <= keys:
                its = slice(window.start, window.stop)
                assert sorted(mixed[lane, its]) == sorted(plain[lane, its])
                moved += np.sum(mixed[lane, its] != plain[lane, its])
            if start == 0:
                ends.add(window.stop)
            start = window.stop
    assert moved > 0 or order.width == 1
    assert len(ends) > 1 or order.width == 1  # lanes do not change windows all at once
    assert order.width <= max(1, order.num_examples // order.size // order.lanes)


@pytest.mark.parametrize("order", ORDERS)
def test_needs_are_the_blocks_of_what_is_left_of_a_window(order):
    tail = (order.num_examples - 1) // order.block_size
    for lane in range(0, order.lanes, 3):
        for key in range(0, 2 * order.width * order.size, 9):
            left = range(key, order.window_of(lane, key).stop)
            numbers = [order.example(lane, key) // order.block_size for key in left]
            first = {block: left[numbers.index(block)] for block in set(numbers)}
            needs = order.needs(lane, key)
            assert set(first) <= set(needs) <= set(first) | {tail}
            assert all(needs[block] == first[block] for block in set(first) - {tail})


def test_lanes_are_dealt_different_blocks_far_beyond_32_bits():
    order = BlockOrder(4 * 10**10 + 77, 64, 1024, 32, 3)
    turns = 10**6
    numbers = [
        order.example(lane, turns * 64 * n) for lane in range(0, 1024, 64) for n in range(10)
    ]
    assert len({number // 64 for number in numbers}) == len(numbers)
    assert max(numbers) > 2**32 and min(numbers) >= 0
    assert max(numbers) < order.num_examples
    assert abs(np.mean(numbers) / order.num_examples - 0.5) < 5 * np.sqrt(1 / 12 / len(numbers))


def grain_mix(parts: list, weights: list[float]) -> grain.MapDataset:
    return grain.MapDataset.mix(parts, weights=weights)


def marked(number: int) -> grain.MapDataset:
    return grain.MapDataset.range(10**6).map(lambda key: (number, key))


@pytest.mark.parametrize("weights", [[0.7, 0.21, 0.09], [1.0, 1.0], [5.0]])
def test_a_lane_mixes_as_grain_does_from_some_point_on(weights):
    expected = grain_mix([marked(i) for i in range(len(weights))], weights)
    pattern = [expected[key][0] for key in range(2000)]
    for lane in range(3):
        draws = Draws.weighted(tuple(range(len(weights))), weights, 3, 5)
        sources = [draws.locate(lane, key)[0] for key in range(300)]
        assert any(pattern[start : start + 300] == sources for start in range(1700))


def test_parts_are_drawn_in_order_and_all_of_them():
    inner = Draws.weighted((1, 2, 3), [0.5, 0.2, 1.3], 4, 5)
    draws = Draws.weighted((0, inner, 4), [0.7, 0.21, 0.09], 4, 6)
    for lane in range(4):
        located = [draws.locate(lane, key) for key in range(1000)]
        counts = np.bincount([source for source, _ in located], minlength=5)
        for source, count in enumerate(counts):
            assert [key for its, key in located if its == source] == list(range(count))
        assert draws.counts(lane, 1000) == counts.tolist()
        shares = [0.7, 0.21 / 4, 0.21 / 10, 0.21 * 0.65, 0.09]
        np.testing.assert_allclose(counts, np.multiply(shares, 1000), atol=3)


@pytest.mark.parametrize("lanes", [4, 16, 100])
@pytest.mark.parametrize("weights", [[1.0, 3.0], [0.7, 0.21, 0.09], [1.0, 3.03, 0.2, 0.01]])
def test_shares_hold_among_the_lanes_at_any_time(lanes, weights):
    draws = Draws.weighted(tuple(range(len(weights))), weights, lanes, 9)
    for key in (0, 1, 5, 77, 12_345):
        sources = [draws.locate(lane, key)[0] for lane in range(lanes)]
        shares = lanes * np.array(weights) / sum(weights)
        assert (abs(np.bincount(sources, minlength=len(weights)) - shares) < 2).all()


def test_the_order_does_not_change_with_a_release():
    order, draws = BlockOrder(1003, 8, 4, 3, 2), Draws.weighted((0, 1), [1.0, 3.0], 4, 5)
    numbers = [order.example(key % 4, 7 * key) for key in range(12)]
    assert numbers == [482, 294, 85, 173, 53, 612, 655, 706, 868, 896, 259, 940]
    located = [draws.locate(lane, key) for lane in range(4) for key in (0, 9)]
    assert located == [(1, 0), (1, 7), (1, 0), (0, 2), (1, 0), (1, 7), (0, 0), (1, 6)]


@pytest.mark.parametrize(
    ("options", "batch_sizes", "lanes_and_window"),
    [
        ({}, (32_768,), (4096, 16)),
        ({}, (4096,), (2048, 4)),
        ({}, (8, 4), (4, 4)),
        ({}, (24_576, 12_288), (4096, 12)),
        ({}, (6,), (2, 6)),
        ({}, (15,), (1, 30)),
        ({"lanes": 256}, (32_768, 16_384), (256, 256)),
        ({"lanes": 8}, (8,), (8, 4)),
        ({"lanes": 256, "window": 3}, (96, 48), (16, 3)),
    ],
)
def test_settings(options, batch_sizes, lanes_and_window):
    assert BlockShuffle(**options).resolve(batch_sizes) == lanes_and_window


@pytest.mark.parametrize(
    ("shuffle", "least", "most"),
    [(BlockShuffle(), 0.95, 1.2), (BlockShuffle(lanes=16, window=4), 1.9, 2.8)],
)
def test_batches_mix_sorted_data(shuffle, least, most):
    """Pairs of one of 100 classes, against the full shuffle's, with many blocks and with few.

    With few, a pair of one lane (15 of 255 are) is of one block with a chance of 1 / 4.
    """
    lanes, window = shuffle.resolve((256,))
    order = BlockOrder(64_000, 64, lanes, window, 3)
    each, pairs = 256 // lanes, []
    for step in range(0, 250, 10):
        keys = range(step * each, (step + 1) * each)
        numbers = [order.example(lane, key) for lane in range(lanes) for key in keys]
        counts = np.bincount(np.array(numbers) // 640)
        pairs.append(np.sum(counts * (counts - 1)) / 2)
    full = 256 * 255 / 2 * 639 / 63_999
    assert least < np.mean(pairs) / full < most


def test_mistakes_are_told():
    for name in ("lanes", "window"):
        with pytest.raises(ValueError, match=f"BlockShuffle.{name} must be at least 1, got 0"):
            BlockShuffle(**{name: 0})
