"""The small real data sets that our own toy models are measured on.

siglip2 eval /tmp/caltech101 --suite configs/evals/small.py --data DIR --out results
"""

from siglip2_jax.benchmarks.suite import Entry, Suite


def suite() -> Suite:
    """Classification, retrieval and segmentation, at two budgets."""
    return Suite(tuple(Entry(task, (49, 100)) for task in ("caltech", "flickr8k", "camvid")))
