"""Approximate search: exact scores, of the rows in the partitions that are nearest to a query.

Partitions are those of k-means. Their number that a query visits is the smallest at which recall,
measured against exact search on a sample, is high enough; there is no index without its recall.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64

from siglip2_jax.search.exact import Matches, scan

LEAST_RECALL = 0.95
K = 10
SAMPLE = 200
LARGEST_SHARE = (
    0.25  # of the partitions: a query that visits more is hardly quicker than an exact one
)

_LEAST_ROWS = 1000  # fewer have nothing to gain
_ROWS_OF_TRAINING = 64  # for each partition
_ITERATIONS = 8
_PIECE = 1 << 14  # rows that are compared with all centres at once


@dataclass(frozen=True)
class Partitions:
    """Rows of a column by partition.

    Attributes:
      centres: mean of each partition, of unit length.
      order: places in the column, those of a partition together and ascending.
      starts: where each partition begins in `order`, and its end.
      probes: partitions that a query visits.
      recall: share of the 10 nearest rows that it finds then, of words or of images, whichever is
        less.
      version: of the table that the column is of.
    """

    centres: Float32[np.ndarray, "p E"]
    order: Int32[np.ndarray, " n"]
    starts: Int64[np.ndarray, " p+1"]
    probes: int = 0
    recall: float = 0.0
    version: int = 0

    def candidates(self, query: Float32[np.ndarray, " E"]) -> Int64[np.ndarray, " m"]:
        """Places of the rows in the partitions that a query visits, ascending."""
        near = np.argsort(-(self.centres @ query), kind="stable")[: self.probes]
        parts = [self.order[self.starts[i] : self.starts[i + 1]] for i in near]
        return np.sort(np.concatenate(parts)).astype(np.int64)

    def scan(
        self,
        column: Float16[np.ndarray, "n E"],
        queries: Float32[np.ndarray, "q E"],
        *,
        k: int | None = None,
        threshold: float | None = None,
        rows: Int64[np.ndarray, " r"] | None = None,
    ) -> list[Matches]:
        """Searches as `exact.scan`, in the partitions that each query visits."""
        results = []
        for query in queries:
            some = self.candidates(query)
            if rows is not None:
                some = np.intersect1d(some, rows, assume_unique=True)
            results += scan(column, query[None], k=k, threshold=threshold, rows=some)
        return results

    def measure(
        self, queries: Float32[np.ndarray, "q E"], exact: Sequence[Int64[np.ndarray, " k"]]
    ) -> float:
        """The share of the rows of an exact search that are in the partitions."""
        pairs = zip(queries, exact, strict=True)
        found = [np.isin(rows, self.candidates(query)) for query, rows in pairs]
        return float(np.concatenate(found).mean())

    def encode(self) -> bytes:
        """The content of a file."""
        stream = io.BytesIO()
        np.savez(stream, **vars(self))
        return stream.getvalue()

    @classmethod
    def decode(cls, content: bytes) -> Partitions:
        """Reads what `encode` has written."""
        with np.load(io.BytesIO(content)) as file:
            numbers = int(file["probes"]), float(file["recall"]), int(file["version"])
            return cls(file["centres"], file["order"], file["starts"], *numbers)


def build(
    column: Float16[np.ndarray, "n E"],
    version: int,
    texts: Float32[np.ndarray, "t E"] | None = None,
    *,
    seed: int = 0,
) -> Partitions:
    """Divides a column, and finds out how many partitions a query must visit.

    Embeddings of texts lie apart from those of images, and are harder to find images for.

    Args:
      column: rows of unit length.
      version: of the table that it is of.
      texts: queries that recall is measured on, beside a sample of the rows; None is none.
      seed: of the samples of training and of queries.

    Returns:
      Partitions with the measured recall, which is below `LEAST_RECALL` where too many would have
      to be visited.

    Raises:
      ValueError: there are too few rows.
    """
    if len(column) < _LEAST_ROWS:
        raise ValueError(
            f"an approximate index needs at least {_LEAST_ROWS} images, and there are "
            f"{len(column)}; exact search is quick"
        )
    rng = np.random.default_rng(seed)
    centres = _train(column, round(math.sqrt(len(column))), rng)
    labels = np.concatenate([near for _, near in _nearest(column, centres)])
    order = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.searchsorted(labels[order], np.arange(len(centres) + 1)).astype(np.int64)
    places = np.sort(rng.choice(len(column), SAMPLE, replace=False))
    kinds = [column[places].astype(np.float32)] + ([] if texts is None else [texts])
    exact = [[match.rows for match in scan(column, queries, k=K)] for queries in kinds]
    probes, most = 1, max(1, round(LARGEST_SHARE * len(centres)))
    while True:
        partitions = Partitions(centres, order, starts, probes, version=version)
        recall = min(map(partitions.measure, kinds, exact))
        if recall >= (1 + LEAST_RECALL) / 2 or probes >= most:
            return dataclasses.replace(partitions, recall=recall)
        probes = min(2 * probes, most)


def _train(
    column: Float16[np.ndarray, "n E"], count: int, rng: np.random.Generator
) -> Float32[np.ndarray, "p E"]:
    """Centres of k-means on a sample, by cosines; one that is nearest to nothing stays."""
    size = min(len(column), count * _ROWS_OF_TRAINING)
    sample = column[np.sort(rng.choice(len(column), size, replace=False))]
    centres = sample[rng.choice(size, count, replace=False)].astype(np.float32)
    for _ in range(_ITERATIONS):
        sums = np.zeros_like(centres)
        for rows, near in _nearest(sample, centres):
            np.add.at(sums, near, rows)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres)
    return centres


def _nearest(
    column: Float16[np.ndarray, "n E"], centres: Float32[np.ndarray, "p E"]
) -> Iterator[tuple[Float32[np.ndarray, "c E"], Int64[np.ndarray, " c"]]]:
    """Rows in pieces, with the number of the nearest centre of each."""
    for start in range(0, len(column), _PIECE):
        rows = column[start : start + _PIECE].astype(np.float32)
        yield rows, (rows @ centres.T).argmax(axis=1)
