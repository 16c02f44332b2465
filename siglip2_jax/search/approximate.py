"""Approximate index: LanceDB's IVF_PQ, always refined, and measured against exact search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt64

from siglip2_jax.search.column import Column
from siglip2_jax.search.exact import scan

LEAST_RECALL = 0.95
K = 10
SAMPLE = 200
REFINE = 10
"""Candidates per result that are compared by their own vectors, which the index has coarsely."""

_SHARE = 0.05  # of the partitions that a query visits
_LEAST_ROWS = 1000  # an index of fewer has nothing to learn from


def build(table: Any, width: int) -> None:
    """Builds the index, in place of an earlier one.

    Args:
      table: LanceDB's.
      width: E, the size of an embedding.

    Raises:
      ValueError: there are too few rows.
    """
    from lancedb.index import IvfPq

    rows = table.count_rows()
    if rows < _LEAST_ROWS:
        raise ValueError(
            f"an approximate index needs at least {_LEAST_ROWS} images, and there are {rows}; "
            "search exactly, which is quick"
        )
    parts = next(x for x in (8, 6, 4, 3, 2, 1) if width % x == 0)
    config = IvfPq(
        distance_type="dot",
        num_partitions=_partitions(rows),
        num_sub_vectors=width // parts,
    )
    table.create_index("embedding", config=config, replace=True)


def find_approximately(
    table: Any, query: Float32[np.ndarray, " E"], k: int, where: str | None = None
) -> UInt64[np.ndarray, " m"]:
    """The table's own numbers of rows that are probably the nearest to a query.

    Args:
      table: LanceDB's, with the index.
      query: of the embedding space.
      k: how many.
      where: a condition in SQL, which holds for all of them.
    """
    partitions = _partitions(table.count_rows())
    search = (
        table.search(query, vector_column_name="embedding")
        .distance_type("dot")
        .nprobes(max(20, round(_SHARE * partitions)))
        .refine_factor(REFINE)
        .limit(k)
    )
    if where is not None:
        search = search.where(where, prefilter=True)
    result = search.select(["_distance"]).with_row_id(True).to_arrow()
    return result["_rowid"].to_numpy().astype(np.uint64)


def measure_recall(table: Any, column: Column, *, sample: int = SAMPLE, seed: int = 0) -> float:
    """Recall at 10 of the index: the share of the exact search's results that it gives.

    Args:
      table: LanceDB's, with the index.
      column: embeddings of its rows.
      sample: how many rows are queries, evenly drawn.
      seed: of the draw.
    """
    embeddings, rows = column
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(len(rows), min(sample, len(rows)), replace=False))
    queries = embeddings[places].astype(np.float32)
    hits = total = 0
    for query, match in zip(queries, scan(embeddings, queries, k=K), strict=True):
        exact = rows[match.rows]
        hits += np.isin(find_approximately(table, query, K), exact).sum()
        total += len(exact)
    return float(hits / total)


def _partitions(rows: int) -> int:
    return max(1, round(math.sqrt(rows)))
