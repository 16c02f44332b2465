"""Groups of near-duplicates: every pair is compared, in blocks, and never all at once in memory."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float16, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from siglip2_jax.progress import Update
from siglip2_jax.search.exact import LONGEST, rounding_error

BLOCK = 2048


def find_groups(
    column: Float16[np.ndarray, "n E"],
    threshold: float,
    *,
    update: Update | None = None,
    block: int = BLOCK,
) -> list[Int64[np.ndarray, " m"]]:
    """Groups rows whose cosines reach a threshold.

    Rows are in one group if a chain of pairs that reach it leads from one to the other.

    Args:
      column: rows of unit length, which may be memory-mapped.
      threshold: the lowest cosine of a pair of duplicates, compared in float64.
      update: told how many blocks are done.
      block: rows of a block; two blocks and their scores are in memory.

    Returns:
      Groups of at least two rows, each ascending: the largest first, then by their first rows.
    """
    groups, starts = _Forest(len(column)), range(0, len(column), block)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for top in starts:
        for left in range(top, len(column), block):
            groups.join(*_pairs(column, top, left, block, threshold))
            done += 1
            if update:
                update(done, total)
    return groups.list()


def _pairs(
    column: np.ndarray, top: int, left: int, block: int, threshold: float
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Pairs of a row of one block with a row of another, at or below it, that reach a threshold."""
    rows = column[top : top + block].astype(np.float32)
    others = rows if top == left else column[left : left + block].astype(np.float32)
    scores = rows @ others.T
    slack = LONGEST * rounding_error(column.shape[1])
    first, second = np.nonzero(scores >= threshold - slack)
    if top == left:
        above = first < second
        first, second = first[above], second[above]
    unsure = np.flatnonzero(scores[first, second] < threshold + slack)
    reached = np.ones(len(first), bool)
    for part in np.array_split(unsure, -(-len(unsure) // block) or 1):
        exact = rows[first[part]].astype(np.float64) * others[second[part]]
        reached[part] = exact.sum(axis=1) >= threshold
    return first[reached] + top, second[reached] + left


class _Forest:
    """Disjoint groups of rows, each known by its first row."""

    def __init__(self, size: int):
        self._parent = np.arange(size)

    def join(self, first: Int64[np.ndarray, " p"], second: Int64[np.ndarray, " p"]) -> None:
        """Joins the groups of each pair."""
        first, second = self._roots(first), self._roots(second)
        apart = first != second
        if not apart.any():
            return
        nodes, places = np.unique(np.stack([first[apart], second[apart]]), return_inverse=True)
        a, b = places.reshape(2, -1)
        edges = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(nodes), len(nodes)))
        count, part = connected_components(edges, directed=False)
        smallest = np.full(count, len(self._parent))
        np.minimum.at(smallest, part, nodes)
        self._parent[nodes] = smallest[part]

    def _roots(self, rows: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        roots = rows
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        self._parent[rows] = roots
        return roots

    def list(self) -> list[Int64[np.ndarray, " m"]]:
        """All groups of at least two."""
        roots = self._roots(np.arange(len(self._parent)))
        rows = np.flatnonzero(np.bincount(roots, minlength=1)[roots] > 1)
        order = rows[np.argsort(roots[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(roots[order])) + 1
        groups = np.split(order, edges) if len(order) else []
        return sorted(groups, key=lambda group: (-len(group), group[0]))
