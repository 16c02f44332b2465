"""Exact search beside LanceDB's own and faiss's flat index, on made-up embeddings in clusters.

All three get the same float16 vectors (faiss holds them in float32) and the same queries, on all
cores. Times are medians of single queries, and of one call with many; the memory is the largest of
a process that does nothing else. Needs the dependency group `search`.

    python scripts/bench_search.py [--rows 100000 1000000] [--json figures.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, CENTRES, SPREAD = 768, 2000, 0.6
K, QUERIES, TOGETHER = 10, 15, 16
SETTINGS = {"weights": "none", "width": WIDTH, "patches": 0, "loaded_from": None, "made_by": ""}
WAYS = "exact", "approximate", "lancedb", "faiss"


def clustered(count: int, seed: int) -> np.ndarray:
    """Rows of unit length around centres, drawn in pieces."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, WIDTH), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    rows = np.empty((count, WIDTH), np.float16)
    for start in range(0, count, 10_000):
        part = rows[start : start + 10_000]
        noise = rng.standard_normal(part.shape, np.float32) * np.float32(SPREAD / WIDTH**0.5)
        some = centres[rng.integers(0, CENTRES, len(part))] + noise
        part[:] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return rows


def write_database(path: Path, rows: np.ndarray, approximate: bool) -> dict[str, float]:
    """Makes a database of the rows; gives the seconds that takes."""
    import pyarrow as pa

    from siglip2_jax.search.place import Place
    from siglip2_jax.search.rows import columns, complete
    from siglip2_jax.search.writer import writing

    start = time.perf_counter()
    with writing(Place(path), SETTINGS) as writer:
        for first in range(0, len(rows), 10_000):
            part = rows[first : first + 10_000]
            names = [f"{i:08}" for i in range(first, first + len(part))]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), WIDTH)
            table = pa.table({"id": names, "content": names, "embedding": vectors})
            writer.add(complete(table, columns(WIDTH, {})))
        writer.commit()
        filled = time.perf_counter()
        writer.finish()
        finished = time.perf_counter()
        if approximate:
            writer.finish(index=True)
    end = time.perf_counter()
    return {"fill": filled - start, "column": finished - filled, "index": end - finished}


def open_way(way: str, path: Path) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], list]]:
    """A function that searches for queries, and one that gives the ids that it has found."""
    if way in ("exact", "approximate"):
        from siglip2_jax.search import Index

        index = Index.open(path)
        len(index)
        return (
            lambda queries: index.nearest(queries, k=K, approximate=way == "approximate"),
            lambda hits: [[int(hit.id) for hit in some] for some in hits],
        )
    if way == "lancedb":
        import lancedb

        table: Any = lancedb.connect(path).open_table("items")

        def search(queries: np.ndarray) -> list[list[dict[str, Any]]]:
            return [
                table.search(query, vector_column_name="embedding")
                .distance_type("dot")
                .bypass_vector_index()
                .select(["id", "_distance"])
                .limit(K)
                .to_list()
                for query in queries
            ]

        return search, lambda found: [[int(row["id"]) for row in rows] for rows in found]
    import faiss

    flat = faiss.IndexFlatIP(WIDTH)
    for start in range(0, len(rows := np.load(path.with_suffix(".npy"), mmap_mode="r")), 10_000):
        flat.add(rows[start : start + 10_000].astype(np.float32))
    return lambda queries: flat.search(queries, K)[1], lambda found: found.tolist()


def measure(way: str, path: Path, connection: Any) -> None:
    """Figures of one way, in a process of its own."""
    queries = clustered(QUERIES + 2 * TOGETHER, seed=2).astype(np.float32)
    start = time.perf_counter()
    search, ids = open_way(way, path)
    loaded = time.perf_counter()
    found = ids(search(queries[:1]))
    first = time.perf_counter()
    single = []
    for query in queries[:QUERIES]:
        before = time.perf_counter()
        search(query[None])
        single.append(time.perf_counter() - before)
    together = []
    for part in queries[QUERIES:].reshape(2, TOGETHER, WIDTH):
        before = time.perf_counter()
        found += ids(search(part))
        together.append((time.perf_counter() - before) / TOGETHER)
    connection.send(
        {
            "load_s": round(loaded - start, 2),
            "first_query_ms": round(1e3 * (first - loaded), 1),
            "query_p50_ms": round(1e3 * statistics.median(single), 1),
            "query_min_ms": round(1e3 * min(single), 1),
            f"each_of_{TOGETHER}_ms": round(1e3 * min(together), 1),
            "memory_gib": round(most_memory(), 2),
            "ids": found,
        }
    )


def most_memory() -> float:
    """The largest memory of this process so far, in GiB, mapped files included."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def run(way: str, path: Path) -> dict[str, Any]:
    """Figures of one way."""
    context = multiprocessing.get_context("spawn")
    ours, other = context.Pipe()
    process = context.Process(target=measure, args=(way, path, other))
    process.start()
    figures = None
    while figures is None and (process.is_alive() or ours.poll()):
        if ours.poll(1):
            figures = ours.recv()
    process.join()
    if figures is None:
        raise SystemExit(f"{way} ended with {process.exitcode}")
    return figures


def compare(rows: int, directory: Path, approximate: bool) -> dict[str, Any]:
    """Figures of all ways, and the share of the exact results that each gives."""
    path = directory / f"{rows}.db"
    vectors = clustered(rows, seed=1)
    np.save(path.with_suffix(".npy"), vectors)
    made = write_database(path, vectors, approximate)
    del vectors
    ways = {way: run(way, path) for way in WAYS if approximate or way != "approximate"}
    exact = ways["exact"]["ids"]
    for figures in ways.values():
        pairs = zip(figures.pop("ids"), exact, strict=True)
        same = [len(set(some) & set(all_)) / len(all_) for some, all_ in pairs]
        figures["recall_at_10"] = round(statistics.mean(same), 4)
    return {"made_s": {name: round(x, 1) for name, x in made.items()}, **ways}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--no-approximate", action="store_true", help="leave that index out")
    parser.add_argument("--directory", type=Path, help="where the data go (default: temporary)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    figures = {}
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            figures[rows] = compare(rows, Path(directory), not args.no_approximate)
        ways = {way: x for way, x in figures[rows].items() if way in WAYS}
        names = list(ways["exact"])
        print(f"\n{rows} rows of {WIDTH}; made in {figures[rows]['made_s']}\n")
        print("| | " + " | ".join(x.replace("_", " ") for x in names) + " |")
        print("|---|" + "---|" * len(names))
        for way, x in ways.items():
            print(f"| {way} | " + " | ".join(str(x[name]) for name in names) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
