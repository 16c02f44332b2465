"""The tables of SigLIP 2 (arXiv 2502.14786): 1, 2, 7, and the token budgets of figure 3.

    siglip2 eval siglip2_b16_naflex.npz --tokenizer tokenizer.model \
      --suite configs/evals/paper.py --data /data --out results

A data set that is not under `--data` gives a row that says how to get it. Models of fixed
resolution are measured once.
"""

from siglip2_jax.benchmarks.suite import Entry, Suite

BUDGETS = (64, 144, 256, 576, 676, 784, 900, 1024)
CURVES = (
    "imagenet",
    "imagenet_v2",
    "imagenet_real",
    "objectnet",
    "coco",
    "textcaps",
    "hiertext",
    "scicap",
    "screen2words",
)
ONCE = (
    "flickr30k",
    "xm3600",
    "imagenet_10shot",
    "pascal",
    "ade20k",
    "nyu_depth",
    "nyu_normals",
    "navi_depth",
    "navi_normals",
    "sugarcrepe",
)


def suite() -> Suite:
    """What table 7 has at every budget, and the rest at 256."""
    return Suite((*(Entry(task, BUDGETS) for task in CURVES), *map(Entry, ONCE)))
