"""Groups of near-duplicates: those of all pairs at once, whatever the blocks."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from siglip2_jax.search.duplicates import find_groups


def column(seed=0, count=150):
    """Rows around 20 centres, near enough that cosines lie on both sides of the thresholds."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, 16))
    rows = centres[rng.integers(0, 20, count)] + rng.uniform(0, 1, (count, 1)) * (
        rng.standard_normal((count, 16))
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def expected(rows, threshold):
    """Groups by SciPy's clustering with single linkage."""
    rows = rows.astype(np.float64)
    distances = 1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    labels = fcluster(linkage(distances, "single"), 1 - threshold, "distance")
    groups = [np.flatnonzero(labels == x).tolist() for x in np.unique(labels)]
    return sorted((x for x in groups if len(x) > 1), key=lambda x: (-len(x), x[0]))


@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 37, 2048])
def test_groups_are_those_of_single_linkage(threshold, block):
    rows = column()
    groups = expected(rows, threshold)
    assert [x.tolist() for x in find_groups(rows, threshold, block=block)] == groups
    if threshold < 0.95:
        assert len(groups) > 3 and len(groups[0]) > 2


def test_a_pair_at_the_very_threshold_counts():
    rows = column(1, 40)
    products = (rows[:, None].astype(np.float64) * rows).sum(-1)
    first, second = np.triu_indices(40, 1)
    at = np.sort(products[first, second])[-3]  # of the third nearest pair
    pairs = {tuple(x.tolist()) for x in find_groups(rows, at)}
    fewer = {tuple(x.tolist()) for x in find_groups(rows, np.nextafter(at, 2))}
    assert pairs != fewer


def test_equal_rows_are_one_group():
    rows = np.tile(column(2, 1), (500, 1))
    (group,) = find_groups(rows, 0.999, block=64)
    assert group.tolist() == list(range(500))
    assert find_groups(rows[:0], 0.9) == [] and find_groups(rows[:1], 0.9) == []


def test_progress_is_told():
    told = []
    find_groups(
        column(), 0.9, block=50, update=lambda done, total, note="": told.append((done, total))
    )
    assert told == [(i, 6) for i in range(1, 7)]
