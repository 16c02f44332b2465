"""Exact search: one matrix product over a column of float16 vectors, in chunks, on threads.

The product is made in float32. Its rounding error has a bound, and every row that could be among
the best within that bound is scored once more in float64. So the result is that of a search in
float64 throughout, ties included, whatever the chunks and the number of threads.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Float32, Float64, Int32, Int64

LONGEST = 1.01
"""The largest length of a vector in a column: unit length, rounded to float16."""

_PIECE = 1 << 18  # values that are widened at once: 1 MiB, which caches hold
_CHUNK = 16  # pieces that a thread scores before it looks for the best
_RESCORED = 4096  # rows scored again at a time
_SCALE = np.float32(2.0**112)
_SIGN_AND_VALUE = np.uint32(0x8FFFE000).view(np.int32)


class Matches(NamedTuple):
    """Rows that a query has found, best first; equal scores in the order of their rows.

    Attributes:
      rows: places in the column.
      scores: cosines in float64, of the stored float16 vectors with the float32 query.
    """

    rows: Int64[np.ndarray, " m"]
    scores: Float64[np.ndarray, " m"]


def scan(
    column: Float16[np.ndarray, "n E"],
    queries: Float32[np.ndarray, "q E"],
    *,
    k: int | None = None,
    threshold: float | None = None,
    rows: Int64[np.ndarray, " r"] | None = None,
    threads: int | None = None,
) -> list[Matches]:
    """Searches a column for the rows that are nearest to each query, in one pass for all queries.

    Args:
      column: rows of unit length, which may be memory-mapped.
      queries: of any length.
      k: how many rows a query finds at most; None is all.
      threshold: the lowest score that counts; None is none.
      rows: ascending; only these are looked at; None is all.
      threads: how many; None is one for each core.

    Returns:
      The matches of each query.
    """
    slack = rounding_error(column.shape[1]) * np.linalg.norm(queries, axis=1).astype(float)
    floor = -np.inf if threshold is None else threshold
    best = [_Best(k, floor - x, 2 * x) for x in slack]
    piece = max(1, _PIECE // column.shape[1])
    size, count = piece * _CHUNK, len(column) if rows is None else len(rows)
    scaled, local = queries * _SCALE, threading.local()

    def look(start: int) -> None:
        if not hasattr(local, "room"):
            local.room = np.empty((piece, column.shape[1]), np.int32)
            local.scores = np.empty((len(queries), size), np.float32)
        end = min(start + size, count)
        for first in range(start, end, piece):
            last = min(first + piece, end)
            some = column[first:last] if rows is None else column[rows[first:last]]
            block = _widen(some, local.room[: last - first])
            # One at a time: small enough for BLAS to leave the threads to this pool.
            for vector, line in zip(scaled, local.scores, strict=True):
                np.dot(block, vector, out=line[first - start : last - start])
        for query, line in zip(best, local.scores, strict=True):
            query.add(line[: end - start], start)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for _ in pool.map(look, range(0, count, size)):
            pass
    results = []
    for query, vector in zip(best, queries, strict=True):
        places = query.places()
        results.append(
            _rank(column, vector, places if rows is None else rows[places], k, threshold)
        )
    return results


def score(
    column: Float16[np.ndarray, "n E"],
    query: Float[np.ndarray, " E"],
    rows: Int64[np.ndarray, " m"],
) -> Float64[np.ndarray, " m"]:
    """Scores of some rows in float64; a row's score does not depend on the other rows."""
    query = query.astype(np.float64)
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _RESCORED):
        part = slice(start, start + _RESCORED)
        scores[part] = (column[rows[part]] * query).sum(axis=1)
    return scores


def rounding_error(width: int) -> float:
    """Bound on the error of a float32 product of a column's row with a query of length 1.

    Each of the products, and each addition, in any order, is off by at most 2**-24 of its value.
    """
    steps = (width + 1) * 2.0**-24
    return LONGEST * steps / (1 - steps)


def best_first(
    rows: Int64[np.ndarray, " m"], scores: Float64[np.ndarray, " m"], k: int | None = None
) -> Matches:
    """Matches in order, at most `k` of them."""
    order = np.lexsort((rows, -scores))[:k]
    return Matches(rows[order], scores[order])


def _widen(
    chunk: Float16[np.ndarray, "c E"], room: Int32[np.ndarray, "c E"]
) -> Float32[np.ndarray, "c E"]:
    """The chunk in float32, divided by `_SCALE`: exact, and seven times as fast as NumPy's cast.

    Sign, exponent and fraction are moved to their places; the exponents' biases differ by 112.
    """
    np.copyto(room, chunk.view(np.int16))
    np.left_shift(room, 13, out=room)
    np.bitwise_and(room, _SIGN_AND_VALUE, out=room)
    return room.view(np.float32)


def _rank(
    column: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int | None, threshold: float | None
) -> Matches:
    scores = score(column, query, rows)
    if threshold is not None:
        rows, scores = rows[scores >= threshold], scores[scores >= threshold]
    return best_first(rows, scores, k)


class _Best:
    """Places that may be among the best of one query, by their float32 scores.

    A row whose score is lower than the k-th by more than twice the rounding error is out.
    """

    def __init__(self, k: int | None, bar: float, slack: float):
        self._k, self._bar, self._slack = k, bar, slack
        self._places: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._count, self._lock = 0, threading.Lock()

    def add(self, scores: Float32[np.ndarray, " c"], first: int) -> None:
        """Takes the scores of consecutive places from `first`."""
        near = np.flatnonzero(scores >= self._bar)
        if not len(near):
            return
        with self._lock:
            self._places.append(near + first)
            self._scores.append(scores[near])
            self._count += len(near)
            if self._k is not None and self._count > 4 * self._k + 64:
                self._trim(self._k)

    def _trim(self, k: int) -> None:
        scores, places = np.concatenate(self._scores), np.concatenate(self._places)
        if k == 0:
            self._bar = np.inf
        elif k <= len(scores):
            self._bar = max(self._bar, float(np.partition(scores, -k)[-k]) - self._slack)
        near = scores >= self._bar
        self._scores, self._places = [scores[near]], [places[near]]
        self._count = int(near.sum())

    def places(self) -> Int64[np.ndarray, " m"]:
        """All that are left, ascending."""
        if not self._places:
            return np.zeros(0, np.int64)
        if self._k is not None:
            self._trim(self._k)
        return np.sort(np.concatenate(self._places)).astype(np.int64)
