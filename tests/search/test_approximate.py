"""Partitions of an approximate search, and the recall that is measured when they are made."""

import numpy as np
import pytest
from search.samples import clustered

from siglip2_jax.search.approximate import LARGEST_SHARE, LEAST_RECALL, Partitions, build
from siglip2_jax.search.exact import scan

COLUMN = clustered(4000, 32).astype(np.float16)
TEXTS = clustered(50, 32, seed=7)  # around other centres


@pytest.fixture(scope="module")
def partitions():
    return build(COLUMN, 3)


def test_recall_is_what_it_is_said_to_be(partitions):
    """On other queries of the same kind."""
    queries = COLUMN[1::37].astype(np.float32)
    exact = scan(COLUMN, queries, k=10)
    found = partitions.scan(COLUMN, queries, k=10)
    shares = [np.isin(a.rows, b.rows).mean() for a, b in zip(exact, found, strict=True)]
    assert partitions.recall >= LEAST_RECALL
    assert np.mean(shares) == pytest.approx(partitions.recall, abs=0.03)
    for a, b in zip(exact, found, strict=True):
        scores = dict(zip(a.rows.tolist(), a.scores.tolist(), strict=True))
        assert all(scores.get(row, score) == score for row, score in zip(*b, strict=True))


def test_rows_of_a_partition_are_nearest_to_its_centre(partitions):
    centres = partitions.centres
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    scores = COLUMN.astype(np.float64) @ centres.T
    for i in range(len(centres)):
        rows = partitions.order[partitions.starts[i] : partitions.starts[i + 1]]
        assert (np.diff(rows) > 0).all()
        np.testing.assert_allclose(scores[rows, i], scores[rows].max(axis=1), atol=1e-6)
    assert partitions.starts[-1] == 4000 and sorted(partitions.order) == list(range(4000))


def test_words_are_measured_too(partitions):
    """Queries that lie apart need more partitions, and lower the recall that is stated."""
    other = build(COLUMN, 3, TEXTS)
    assert other.probes > partitions.probes
    most = round(LARGEST_SHARE * len(other.centres))
    assert other.probes == most or other.recall >= (1 + LEAST_RECALL) / 2
    exact = scan(COLUMN, TEXTS, k=10)
    found = other.scan(COLUMN, TEXTS, k=10)
    shares = [np.isin(a.rows, b.rows).mean() for a, b in zip(exact, found, strict=True)]
    assert other.recall == pytest.approx(np.mean(shares), abs=1e-9)


def test_only_some_rows_are_looked_at(partitions):
    rows = np.arange(0, 4000, 2)
    (found,) = partitions.scan(COLUMN, COLUMN[:1].astype(np.float32), k=5, rows=rows)
    assert len(found.rows) == 5 and (found.rows % 2 == 0).all() and found.rows[0] == 0


def test_a_file_gives_the_same(partitions):
    again = Partitions.decode(partitions.encode())
    for name, value in vars(partitions).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert type(getattr(again, name)) is type(value)


def test_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 1000 images, and there are 999"):
        build(COLUMN[:999], 1)
