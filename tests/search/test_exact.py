"""Exact search: the rows, scores and order of a search in float64, whatever the chunks."""

import math
from unittest import mock

import numpy as np
import pytest

from siglip2_jax.search import exact
from siglip2_jax.search.exact import rounding_error, scan


def unit(rng, count, width):
    rows = rng.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute(column, query, k=None):
    """Rows and scores by sums that are rounded once, in plain Python."""
    rows = [[float(x) * float(y) for x, y in zip(row, query, strict=True)] for row in column]
    scores = [math.fsum(products) for products in rows]
    order = sorted((-score, i) for i, score in enumerate(scores))[:k]
    return [i for _, i in order], [-score for score, _ in order]


@pytest.fixture
def column():
    """300 clustered rows of 64, in which rows 7, 100 and 250 are equal."""
    rng = np.random.default_rng(0)
    rows = unit(rng, 6, 64)[rng.integers(0, 6, 300)] + 0.2 * unit(rng, 300, 64)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    rows[[100, 250]] = rows[7]
    return rows


@pytest.mark.parametrize("piece", [1, 64 * 7, 1 << 18])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_brute_force(column, piece, threads):
    queries = np.concatenate([unit(np.random.default_rng(1), 2, 64), column[7:8].astype("f4")])
    expected = [brute(column, query) for query in queries]
    with mock.patch.multiple(exact, _PIECE=piece, _CHUNK=2):
        for k in (1, 2, 10, 300, 1000, None):
            found = scan(column, queries, k=k, threads=threads)
            for (rows, scores), match in zip(expected, found, strict=True):
                assert match.rows.tolist() == rows[:k]
                np.testing.assert_allclose(match.scores, scores[:k], rtol=0, atol=1e-14)
        found = scan(column, queries, k=3)[-1]
        assert found.rows.tolist() == [7, 100, 250] and len(set(found.scores)) == 1
        for (rows, scores), match in zip(
            expected, scan(column, queries, threshold=0.1), strict=True
        ):
            assert match.rows.tolist() == rows[: sum(x >= 0.1 for x in scores)]


def test_thresholds_are_compared_in_float64(column):
    """A row is found at its very score; a bit above, it is not."""
    query = unit(np.random.default_rng(2), 1, 64)
    score = scan(column, query, k=5)[0].scores[4]
    assert len(scan(column, query, threshold=score)[0].rows) == 5
    assert len(scan(column, query, threshold=np.nextafter(score, 2))[0].rows) == 4
    assert len(scan(column, query, k=2, threshold=score)[0].rows) == 2


def test_near_ties_are_told_apart():
    """Scores that float32 cannot tell apart are in the order of float64."""
    rng = np.random.default_rng(3)
    query = unit(rng, 1, 512)
    base = query[0].astype(np.float16)
    column = np.tile(base, (200, 1))
    small = np.flatnonzero(np.abs(base) < 2e-3)
    for i, row in enumerate(column):
        place = small[i % len(small)]
        row[place] = np.nextafter(row[place], np.float16(rng.choice([-1, 1])))
    (found,) = scan(column, query, k=20)
    assert found.rows.tolist() == brute(column, query[0], 20)[0]
    assert len(set(np.float32(found.scores))) < len(set(found.scores))


def test_every_float16_is_widened_exactly():
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].reshape(1, -1)
    wide = exact._widen(values, np.empty(values.shape, np.int32))
    np.testing.assert_array_equal(wide.astype(np.float64) * 2.0**112, values.astype(np.float64))


def test_only_some_rows_are_looked_at(column):
    queries = unit(np.random.default_rng(4), 3, 64)
    rows = np.array([3, 7, 100, 101, 299])
    for query, found in zip(queries, scan(column, queries, k=4, rows=rows), strict=True):
        order, scores = brute(column[rows], query, 4)
        assert found.rows.tolist() == rows[order].tolist()
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-14)
    (found, *_) = scan(column, queries, k=4, rows=rows[:0])
    assert len(found.rows) == len(found.scores) == 0
    assert len(scan(column[:0], queries, k=4)[0].rows) == 0


def test_the_error_of_float32_products_stays_below_its_bound():
    """With all products of one sign, in the order of addition that loses most."""
    for width in (24, 768, 1152):
        x = np.full(width, width**-0.5).astype(np.float16)
        q = (np.random.default_rng(width).random(width) + 0.5).astype(np.float32)
        q /= np.linalg.norm(q)
        total = np.float32(0)
        for product in x.astype(np.float32) * q:
            total += product
        error = abs(float(total) - math.fsum(x.astype(float) * q.astype(float)))
        assert 0 < error < rounding_error(width) < 1.1e-4


def test_memory_does_not_grow_with_the_rows_that_are_near():
    """All rows are equal: what is kept of a chunk is what ties with the best."""
    column = np.zeros((50_000, 8), np.float16)
    column[:, 0] = np.linspace(0, 1, 50_000)
    best = exact._Best(10, -np.inf, 1e-4)
    scores = column[:, 0].astype(np.float32)
    most = 0
    for start in range(0, 50_000, 500):
        best.add(scores[start : start + 500], start)
        most = max(most, best._count)
    assert most < 1200 and best.places()[-1] == 49_999
