"""The embedding file: whatever interrupts the generation, the same file comes out."""

import json
import random
import tracemalloc

import numpy as np
import pytest

from siglip2_jax.inference.embedding_file import read_embeddings, write_embeddings
from siglip2_jax.preprocess.decode import ImageError

ITEMS = [f"photo {i}" for i in range(23)] + ["caf\udce9.jpg"]  # a name that is not UTF-8
BROKEN = {0, 7, 8, 9, 23}  # 7 to 9 are a whole part
SETTINGS = {"kind": "images", "dtype": "float32"}


def row(i: int) -> np.ndarray | ImageError:
    if i in BROKEN:
        return ImageError(f"{i} is broken")
    return np.full(5, i, np.float32)


def write(path, stop_at: int | None = None, starts=None, items=ITEMS, **options) -> dict:
    """Embeds until the end, or until it is interrupted before item `stop_at`."""

    def embed(left):
        start = len(items) - len(left)
        assert list(left) == items[start:]
        if starts is not None:
            starts.append(start)
        for i in range(start, len(items)):
            if i == stop_at:
                raise KeyboardInterrupt
            yield row(i)

    options = {"settings": SETTINGS, "items_per_part": 3} | options
    return write_embeddings(path, items, width=5, embed=embed, **options)


def contents(path) -> dict:
    with np.load(path) as file:
        return {name: file[name].tolist() for name in file}


@pytest.mark.parametrize("seed", range(5))
def test_interruptions_change_nothing(tmp_path, seed):
    write(tmp_path / "expected.npz")
    stops, starts = sorted(random.Random(seed).sample(range(1, len(ITEMS)), k=4)), []
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out.npz", stop, starts)
        assert not (tmp_path / "out.npz").exists()
    summary = write(tmp_path / "out.npz", None, starts)
    assert starts == [0, *stops]  # what was embedded was kept, to the last row
    assert contents(tmp_path / "out.npz") == contents(tmp_path / "expected.npz")
    good = [i for i in range(len(ITEMS)) if i not in BROKEN]
    stored = read_embeddings(tmp_path / "out.npz")
    assert stored.embeddings.dtype == np.float32
    np.testing.assert_array_equal(stored.embeddings, np.repeat(np.c_[good], 5, axis=1))
    assert list(stored.items) == [ITEMS[i] for i in good]
    assert stored.settings.items() > SETTINGS.items()
    assert summary["embedded"] == 19 and summary["skipped"] == 5 and summary["width"] == 5
    text = (tmp_path / "out.npz.errors.jsonl").read_text("utf-8", "surrogateescape")
    reports = [json.loads(line) for line in text.splitlines()]
    expected = [{"item": ITEMS[i], "error": f"{i} is broken"} for i in sorted(BROKEN)]
    assert reports == expected
    left = {"expected.npz", "out.npz"}
    assert {x.name for x in tmp_path.iterdir()} == left | {f"{x}.errors.jsonl" for x in left}


def test_finished_files_are_recognised(tmp_path):
    starts: list[int] = []
    first = write(tmp_path / "out.npz", None, starts)
    assert write(tmp_path / "out.npz", None, starts) == first and starts == [0]
    with pytest.raises(ValueError, match="dtype 'float32' \\(now 'bfloat16'\\).*--overwrite"):
        write(tmp_path / "out.npz", settings=SETTINGS | {"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="items_hash"):  # as many, in another order
        write(tmp_path / "out.npz", items=ITEMS[::-1])
    write(tmp_path / "out.npz", None, starts, items=ITEMS[:2], overwrite=True)
    assert starts == [0, 0] and list(read_embeddings(tmp_path / "out.npz").items) == ITEMS[1:2]


def test_nothing_good_is_an_empty_file(tmp_path):
    assert write(tmp_path / "out.npz", items=ITEMS[:1])["embedded"] == 0
    assert read_embeddings(tmp_path / "out.npz").embeddings.shape == (0, 5)


def test_a_failure_before_the_first_row_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.npz", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_long_text_costs_its_characters(tmp_path):
    """NumPy's own arrays of texts would take 16 GB here."""
    items = ["x" * 200_000] + [f"text {i}" for i in range(20_000)]
    rows = np.arange(len(items), dtype=np.float32)[:, None]
    tracemalloc.start()
    try:
        write_embeddings(tmp_path / "out.npz", items, {}, 1, lambda left: rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    assert (tmp_path / "out.npz").stat().st_size < 1e6
    stored = read_embeddings(tmp_path / "out.npz")
    assert list(stored.items) == items
    np.testing.assert_array_equal(stored.embeddings, rows)
