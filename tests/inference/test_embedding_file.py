"""The embedding file: whatever interrupts the generation, the same file comes out."""

import json
import random

import numpy as np
import pytest

from siglip2_jax.inference.embedding_file import EmbeddingWriter, read_embeddings
from siglip2_jax.preprocess.decode import ImageError

ITEMS = [f"photo {i}" for i in range(23)] + ["caf\udce9.jpg"]  # a name that is not UTF-8
BROKEN = {0, 7, 8, 9, 23}  # 7 to 9 are a whole part
SETTINGS = {"kind": "images", "dtype": "float32"}


def row(i: int) -> np.ndarray | ImageError:
    if i in BROKEN:
        return ImageError(f"{i} is broken")
    return np.full(5, i, np.float32)


def writer(path, items=ITEMS, settings=SETTINGS, **options) -> EmbeddingWriter:
    return EmbeddingWriter(path, items, settings, 5, items_per_part=3, **options)


def write(path, stop_at: int | None = None, **options) -> dict | None:
    """Adds rows until the end, or until it is interrupted before item `stop_at`."""
    with writer(path, **options) as file:
        for i in range(file.done, len(ITEMS)):
            if i == stop_at:
                raise KeyboardInterrupt
            file.add(row(i))
        return file.finish()


def contents(path) -> dict:
    with np.load(path) as file:
        return {name: file[name].tolist() for name in file}


@pytest.mark.parametrize("seed", range(5))
def test_interruptions_change_nothing(tmp_path, seed):
    write(tmp_path / "expected.npz")
    for stop in sorted(random.Random(seed).choices(range(len(ITEMS)), k=4)):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out.npz", stop)
        assert not (tmp_path / "out.npz").exists()
        with writer(tmp_path / "out.npz") as file:
            assert file.done == stop  # what was added was kept, to the last row
    summary = write(tmp_path / "out.npz")
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


def test_a_lost_process_costs_a_part_at_most(tmp_path):
    """Without even a chance to save: only complete parts count."""
    lost = writer(tmp_path / "out.npz")
    for i in range(11):
        lost.add(row(i))
    assert writer(tmp_path / "out.npz").done == 9


def test_finished_files_are_recognised(tmp_path):
    first = write(tmp_path / "out.npz")
    with writer(tmp_path / "out.npz") as file:
        assert file.complete and file.done == len(ITEMS)
        assert file.finish() == first
    with pytest.raises(ValueError, match="dtype 'float32' \\(now 'bfloat16'\\).*--overwrite"):
        writer(tmp_path / "out.npz", settings=SETTINGS | {"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="items_hash"):  # as many, in another order
        writer(tmp_path / "out.npz", items=ITEMS[::-1])
    with writer(tmp_path / "out.npz", overwrite=True) as file:
        assert not file.complete and file.done == 0


def test_nothing_good_is_an_empty_file(tmp_path):
    with writer(tmp_path / "out.npz", items=ITEMS[:2]) as file:
        file.add(ImageError("a"))
        file.add(ImageError("b"))
        assert file.finish()["embedded"] == 0
    assert contents(tmp_path / "out.npz")["embeddings"] == []


def test_a_failure_before_the_first_row_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "out.npz"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
