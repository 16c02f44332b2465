"""Sources read by weights: counts, order, files that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from data.block_source import Blocks

from siglip2_jax.data.example import ExampleError
from siglip2_jax.data.sources import Blocked, Memory, Mixture
from siglip2_jax.data.weighted import Weighted, draw

EXAMPLES = tuple({"image": b"", "captions": ("a",), "name": str(i)} for i in range(5))
SOURCE = Memory(EXAMPLES)


def weighted(tmp_path, weights, **fields) -> Weighted:
    path = tmp_path / "weights.npy"
    np.save(path, np.asarray(weights))
    return Weighted(SOURCE, str(path), **fields)


def names(source: Weighted) -> list[str]:
    examples = source.open()
    return [examples[i]["name"] for i in range(len(examples))]


def test_whole_numbers(tmp_path):
    assert names(weighted(tmp_path, [1, 0, 2, 1, 0])) == ["0", "2", "2", "3"]
    assert names(weighted(tmp_path, np.ones(5))) == list("01234")
    assert Mixture(((weighted(tmp_path, np.ones(5)), 0.3), (SOURCE, 0.7)))


def test_shares_hold_over_rounds(tmp_path):
    weights = np.array([0.5, 0.1, 0.9, 0.0, 1.5])
    found = names(weighted(tmp_path, weights, rounds=4000))
    counts = np.array([found.count(str(i)) for i in range(5)]) / 4000
    # The mean of 4000 draws with a deviation of at most a half: 5 of its standard errors.
    np.testing.assert_allclose(counts, weights, atol=5 * 0.5 / 4000**0.5)
    assert counts[3] == 0


def test_blocks_stay_blocks(tmp_path):
    """Each reads the blocks that its examples are in, once."""
    log = tmp_path / "log"
    source = Blocks(40, 4, bad=(9,), log=str(log))
    weights = tmp_path / "weights.npy"
    np.save(weights, np.tile([1.0, 0.0, 2.0, 0.0, 1.0], 8))
    chosen = Weighted(source, str(weights)).open()
    assert isinstance(chosen, Blocked) and (chosen.block_size, chosen.remote) == (4, True)
    assert len(chosen) == 32
    for block in range(8):
        items = chosen.read_block(block)
        assert [items[i]["id"] for i in range(4) if block != 1 or i != 3] == [
            chosen[4 * block + i]["id"] for i in range(4) if block != 1 or i != 3
        ]
    with pytest.raises(ExampleError, match="no 9: it is broken"):
        chosen.read_block(1)[3]
    first = [line.split()[0] for line in log.read_text().splitlines()[:4]]
    assert first == ["0", "1", "1", "2"]  # examples 0 2 2 4, then 5 7 7 9
    plain = Weighted(SOURCE, str(tmp_path / "five.npy"))
    np.save(plain.weights, np.ones(5))
    assert not isinstance(plain.open(), Blocked)


def test_rounds_and_seeds_differ(tmp_path):
    fields = {"weights": np.full(5, 0.5), "rounds": 8}
    found = names(weighted(tmp_path, **fields))
    assert found == names(weighted(tmp_path, **fields))
    assert found != names(weighted(tmp_path, **fields, seed=1))
    assert set(found) == set("01234")


def test_floor_or_ceil():
    """Counts are rounded, cumulative ones too: no stretch of the data set is far off its share."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        for _ in range(50):
            weights = rng.uniform(0, 4, size) * rng.integers(0, 2, size)
            chosen = draw(weights, rng.random())
            assert np.array_equal(chosen, np.sort(chosen))
            counts = np.bincount(chosen, minlength=size)
            assert (abs(counts - weights) < 1 + 1e-9).all()
            assert (abs(np.cumsum(counts) - np.cumsum(weights)) <= 1 + 1e-9).all()


class InBlocks:
    """Fifty examples in blocks of eight, of which the last is damaged; notes what is read."""

    block_size, remote = 8, True

    def __init__(self):
        self.read = []

    def open(self):
        return self

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return self.read_block(index // 8)[index % 8]

    def read_block(self, block):
        self.read.append(block)
        return Damaged(range(8 * block, min(8 * block + 8, 50)))


class Damaged(list):
    def __getitem__(self, index):
        if (number := super().__getitem__(index)) == 49:
            raise ExampleError("no 49: damaged")
        return {"image": b"", "captions": (), "name": str(number)}


def test_blocks_of_what_is_chosen(tmp_path):
    """Each block of the source is read about once for each block of chosen examples within it."""
    source, weights = InBlocks(), np.full(50, 0.5)
    weights[[3, 49]] = 3, 1
    examples = replace(weighted(tmp_path, weights), source=source).open()
    assert isinstance(examples, Blocked) and examples.block_size == 8 and examples.remote
    blocks = [examples.read_block(b) for b in range(-(-len(examples) // 8))]
    assert source.read == sorted(source.read) and len(source.read) <= 7 + len(blocks)
    items = []
    for block in blocks:
        for i in range(len(block)):
            try:
                items.append(int(block[i]["name"]))
            except ExampleError as error:
                assert str(error) == "no 49: damaged"
                items.append(49)
    (offset,) = np.random.default_rng(0).random(1)
    assert items == draw(weights, offset).tolist() and items[-1] == 49


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1.0, 1.0], "holds 2 weights for 5 examples; write one for each"),
        (np.zeros(5), "leaves no example to read; its sum is 0.0"),
        ([1, 1, 1, 1, -1], "holds weights below 0"),
        ([1, 1, 1, 1, np.nan], "holds weights below 0, or that are no numbers"),
        (np.ones((5, 1)), r"holds float64\[5, 1\]; expected a list of numbers"),
        (["a"] * 5, "expected a list of numbers"),
    ],
)
def test_bad_weights(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted(tmp_path, weights).open()


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .*expected a .npy file"):
        Weighted(SOURCE, str(tmp_path / "none.npy")).open()
    (tmp_path / "text.npy").write_text("0.5\n")
    with pytest.raises(ValueError, match="cannot be read .*expected a .npy file"):
        Weighted(SOURCE, str(tmp_path / "text.npy")).open()
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        weighted(tmp_path, np.ones(5), rounds=0)
