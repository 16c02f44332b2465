"""Numbers that the papers report of the released models, table by table.

All figures are those of SigLIP 2 (arXiv 2502.14786), which measures SigLIP 1 again beside it.
A line of a table is a variant's name (at native resolution with `@` and the
token budget) and a figure for each column. Accuracies and recalls are in per cent. Table 5 names
models by size and tokens only; 256 and 729 tokens of So400m are read as So400m/14 at 224 and 384
pixels. mSigLIP, which is not among the variants, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

PAPER = "SigLIP 2, arXiv 2502.14786"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
      source: which, and of which paper.
      columns: data set and metric of each column.
      rows: the lines.
    """

    source: str
    columns: tuple[str, ...]
    rows: str

    def cells(self) -> Iterator[tuple[str, int | None, str, str, float]]:
        """Variant, token budget (None at fixed resolution), data set, metric and figure."""
        for line in self.rows.strip().split("\n"):
            words = line.split()
            *name, last = words[: -len(self.columns)]
            budget = int(last[1:]) if last.startswith("@") else None
            variant = " ".join(name if budget else (*name, last))
            for column, figure in zip(self.columns, words[-len(self.columns) :], strict=True):
                dataset, metric = column.split()
                yield variant, budget, dataset, metric, float(figure)


def _columns(metrics: str, datasets: str) -> tuple[str, ...]:
    return tuple(f"{name} {metric}" for name in datasets.split() for metric in metrics.split())


_RECALLS = "text_to_image@1 image_to_text@1"
_FOUR = _columns("top1", "imagenet imagenet_v2 imagenet_real objectnet")

TABLE_1 = Table(
    f"{PAPER}, table 1",
    (*_FOUR, "imagenet 10shot", *_columns(_RECALLS, "coco flickr30k xm3600")),
    """
B/32 256              74.0 66.9 81.4 66.1 66.6 47.2 63.7 75.5 89.3 38.3 49.0
SigLIP B/16 224       76.2 69.5 82.8 70.7 69.9 47.2 64.5 77.9 89.6 22.4 29.3
B/16 224              78.2 71.4 84.8 73.6 72.1 52.1 68.9 80.7 93.0 40.3 50.7
SigLIP B/16 256       76.7 70.1 83.1 71.3 70.3 47.4 65.1 78.3 91.1 22.5 29.9
B/16 256              79.1 72.5 85.4 74.5 73.1 53.2 69.7 81.7 94.4 40.7 51.0
SigLIP B/16 384       78.6 72.0 84.6 73.8 72.7 49.7 67.5 80.7 92.2 23.3 30.3
B/16 384              80.6 73.8 86.2 77.1 74.7 54.6 71.4 83.8 94.9 41.2 51.6
SigLIP B/16 512       79.2 72.9 84.9 74.8 73.3 50.4 67.6 81.6 92.5 23.5 30.5
B/16 512              81.2 74.5 86.7 77.8 75.2 55.2 71.2 84.5 95.5 41.4 52.0
SigLIP L/16 256       80.5 74.2 85.9 77.9 76.8 51.2 69.6 81.3 92.0 30.9 40.1
L/16 256              82.5 76.8 87.3 83.0 78.8 54.7 71.5 84.1 94.5 46.5 56.5
SigLIP L/16 384       82.1 75.9 87.1 80.9 78.7 52.8 70.5 82.6 92.9 31.4 39.7
L/16 384              83.1 77.4 87.6 84.4 79.5 55.3 71.4 85.0 95.2 47.1 56.3
L/16 512              83.5 77.8 87.7 84.6 79.6 55.2 72.1 85.3 95.8 47.4 56.7
SigLIP So400m/14 224  82.2 76.0 87.1 80.5 78.2 50.8 69.0 76.6 90.7 16.0 22.8
So400m/14 224         83.2 77.7 87.8 84.6 79.5 55.1 71.5 84.3 94.6 47.9 57.5
SigLIP So400m/14 384  83.2 77.1 87.5 82.9 79.4 52.0 70.2 80.5 93.5 17.8 26.6
So400m/14 384         84.1 78.7 88.1 86.0 80.4 55.8 71.7 85.7 94.9 48.4 57.5
So400m/16 256         83.4 77.8 87.7 84.8 79.7 55.4 71.5 84.4 94.2 48.1 57.5
So400m/16 384         84.1 78.4 88.1 85.8 80.4 56.0 71.2 85.3 95.9 48.3 57.5
So400m/16 512         84.3 79.1 88.1 86.2 80.5 56.0 71.3 85.5 95.4 48.3 57.6
g-opt/16 256          84.5 79.2 88.3 87.1 82.1 55.7 72.5 85.3 95.3 48.2 58.2
g-opt/16 384          85.0 79.8 88.5 88.0 82.5 56.1 72.8 86.0 95.4 48.6 57.9
""",
)

TABLE_2 = Table(
    f"{PAPER}, table 2",
    (
        "pascal_voc miou",
        "ade20k miou",
        *_columns("rmse", "nyuv2 navi"),
        *_columns("angular_rmse", "nyuv2 navi"),
    ),
    """
SigLIP So400m/14 224  72.0 37.6 0.576 0.083 25.9 26.0
So400m/14 224         77.1 41.8 0.493 0.067 24.9 25.4
SigLIP So400m/14 384  73.8 40.8 0.563 0.069 24.1 25.4
So400m/14 384         78.1 45.4 0.466 0.064 23.0 25.0
""",
)

TABLE_5 = Table(
    f"{PAPER}, table 5",
    _columns(
        "acc@0.5",
        "refcoco_val refcoco_testA refcoco_testB refcocoplus_val refcocoplus_testA "
        "refcocoplus_testB refcocog_val refcocog_test",
    ),
    """
SigLIP B/16 256       64.05 70.10 57.89 55.77 63.57 47.51 59.06 60.33
B/16 256              83.76 86.21 79.57 74.26 79.85 65.83 77.25 77.83
SigLIP B/16 384       67.17 72.94 60.94 59.09 67.26 50.22 61.98 62.64
B/16 384              85.18 87.92 80.53 76.08 82.17 67.10 79.08 79.60
SigLIP L/16 256       67.33 72.40 61.21 59.57 67.09 51.08 61.89 62.90
L/16 256              86.04 89.02 81.85 77.29 83.28 70.16 80.11 80.78
SigLIP L/16 384       70.76 76.32 63.79 63.38 71.48 54.65 64.73 65.74
L/16 384              87.28 90.29 82.85 79.00 85.00 70.92 81.84 82.15
SigLIP So400m/14 224  64.68 71.23 58.40 57.43 66.06 49.38 59.66 60.88
So400m/14 224         86.42 89.41 82.48 77.81 84.36 70.67 80.83 81.27
SigLIP So400m/14 384  67.66 74.12 62.36 60.74 69.73 52.12 62.61 63.24
So400m/14 384         87.88 91.13 83.59 80.06 86.30 72.66 82.68 83.63
g-opt/16 256          87.31 90.24 83.25 79.25 85.23 71.60 81.48 82.14
g-opt/16 384          88.45 91.53 84.95 80.44 87.09 73.53 83.12 84.14
""",
)

TABLE_7 = Table(
    f"{PAPER}, table 7",
    (*_FOUR, *_columns(_RECALLS, "coco textcaps hiertext scicap screen2words")),
    """
B/16 NaFlex @64         71.2 63.2 78.3 62.1 43.6 60.4 30.4 57.5  3.4  6.4  5.2  4.0  6.4 11.0
B/16 NaFlex @144        76.2 69.4 82.9 70.2 49.0 65.7 36.5 65.8  5.7 10.3 13.5 11.8 13.9 25.4
B/16 224                78.2 71.4 84.8 73.6 52.1 68.9 38.9 68.0  5.5  9.5 13.3 10.9 10.8 18.7
B/16 256                79.1 72.5 85.4 74.5 53.2 69.7 40.5 69.4  6.1  9.8 17.1 14.2 12.9 22.9
B/16 NaFlex @256        78.5 71.9 84.6 74.6 51.1 67.3 39.5 69.0  7.4 12.9 19.7 17.1 14.8 26.6
B/16 384                80.6 73.8 86.2 77.1 54.6 71.4 43.6 73.0  7.5 12.0 23.3 19.4 14.1 24.8
B/16 NaFlex @576        80.0 73.1 85.6 76.4 52.5 69.1 41.6 71.8  8.7 14.1 24.3 21.0 15.3 26.7
B/16 NaFlex @676        80.1 73.5 85.7 76.5 52.9 68.6 41.8 73.0  8.8 13.9 24.3 21.4 15.2 26.2
B/16 NaFlex @784        80.2 73.5 85.9 76.9 53.1 68.8 42.5 72.9  8.7 14.0 24.8 21.5 15.2 26.4
B/16 NaFlex @900        80.3 73.6 85.9 76.6 52.9 69.2 42.3 72.6  8.6 15.0 24.8 21.6 15.0 25.8
B/16 512                81.2 74.5 86.7 77.8 55.2 71.2 44.7 74.7  8.1 14.6 25.2 20.7 14.5 25.3
B/16 NaFlex @1024       80.4 73.5 85.9 76.6 52.9 68.9 42.5 73.2  9.1 14.4 25.1 21.5 14.9 26.4
So400m/16 NaFlex @64    78.5 71.0 84.2 73.8 49.6 67.4 37.0 65.5  5.6 10.3 11.8 10.9 12.1 21.4
So400m/16 NaFlex @144   81.8 75.2 86.7 79.8 53.4 70.4 42.8 71.0  8.0 14.6 22.2 23.1 17.1 29.0
So400m/16 256           83.4 77.8 87.7 84.8 55.4 71.5 44.8 72.9  7.9 13.9 29.7 28.8 17.4 28.7
So400m/16 NaFlex @256   83.5 77.5 87.7 83.8 55.1 71.2 44.9 73.6  9.2 15.7 29.8 29.2 17.5 29.2
So400m/16 384           84.1 78.4 88.1 85.8 56.0 71.2 47.0 74.9  9.7 16.3 34.5 32.4 17.8 28.0
So400m/16 NaFlex @576   84.1 78.6 88.0 85.7 55.9 71.4 46.5 75.1 11.3 18.4 32.9 32.0 17.7 28.8
So400m/16 NaFlex @676   84.2 78.5 88.0 85.7 55.8 71.7 46.9 74.9 11.3 18.5 33.3 32.2 17.7 29.8
So400m/16 NaFlex @784   84.3 78.6 88.0 85.9 55.9 71.3 46.7 74.9 11.5 18.5 33.0 32.3 17.6 29.5
So400m/16 NaFlex @900   84.3 78.6 88.1 85.8 55.8 71.2 46.8 75.4 11.7 18.5 32.9 32.5 17.7 29.4
So400m/16 512           84.3 79.1 88.1 86.2 56.0 71.3 47.3 76.0 10.3 18.3 35.9 33.5 17.9 28.1
So400m/16 NaFlex @1024  84.4 78.8 88.1 85.8 55.8 71.0 46.9 74.9 11.7 18.4 32.6 32.4 17.8 29.4
""",
)

TABLE_8 = Table(
    f"{PAPER}, table 8",
    (
        *_columns("10shot", "dollar_street geode_country geode_region"),
        *_columns("top1", "dollar_street gldv2 geode"),
    ),
    """
B/32 256              13.1 13.9 29.3 50.5 44.7 90.6
SigLIP B/16 224       13.8 12.7 27.3 50.1 48.5 92.4
B/16 224              16.2 20.0 34.9 53.4 50.8 92.9
SigLIP B/16 256       15.0 13.3 29.3 50.3 47.7 92.8
B/16 256              17.7 22.7 36.3 54.2 52.5 93.3
SigLIP B/16 384       16.1 16.4 31.5 51.5 51.9 93.6
B/16 384              19.8 25.6 41.4 54.8 55.2 93.9
SigLIP B/16 512       16.6 17.7 32.3 51.3 53.1 94.1
B/16 512              21.7 28.2 43.1 54.9 57.6 94.2
SigLIP L/16 256       18.8 22.1 36.2 52.1 56.7 93.6
L/16 256              26.8 34.5 44.4 55.2 64.5 94.9
SigLIP L/16 384       22.8 26.0 41.7 52.9 60.5 94.3
L/16 384              30.4 39.3 48.0 55.4 66.1 95.1
L/16 512              32.5 42.5 50.6 55.2 67.6 95.3
SigLIP So400m/14 224  26.6 31.9 45.8 55.1 74.1 94.7
So400m/14 224         31.9 38.1 49.1 55.4 65.6 94.8
SigLIP So400m/14 384  32.1 36.5 51.6 56.3 71.7 94.9
So400m/14 384         38.3 45.2 56.1 56.6 68.6 95.2
So400m/16 256         33.2 39.8 50.9 55.8 66.7 95.0
So400m/16 384         38.2 44.1 54.4 56.5 67.8 95.3
So400m/16 512         40.8 47.6 58.6 56.6 69.2 95.3
g-opt/16 256          37.6 46.6 54.0 56.9 71.2 95.4
g-opt/16 384          44.5 52.0 58.7 57.2 72.2 95.7
""",
)

TABLE_9 = Table(
    f"{PAPER}, table 9",
    ("dollar_street income_disparity", "bias representation_bias"),
    """
B/32 256              33.3 16.6
SigLIP B/16 224       31.2 36.6
B/16 224              31.0 17.2
SigLIP B/16 256       30.2 35.6
B/16 256              29.7 19.4
SigLIP B/16 384       30.9 35.8
B/16 384              30.6 18.0
SigLIP B/16 512       31.5 35.4
B/16 512              30.8 20.0
SigLIP L/16 256       32.0 35.5
L/16 256              31.1  7.3
SigLIP L/16 384       32.0 34.8
L/16 384              30.4  6.6
L/16 512              29.2  6.8
SigLIP So400m/14 224  30.5 33.3
So400m/14 224         29.7  7.4
SigLIP So400m/14 384  29.2 33.9
So400m/14 384         28.1  7.5
So400m/16 256         28.4  7.2
So400m/16 384         29.0 11.0
So400m/16 512         28.2 10.8
g-opt/16 256          28.1  7.9
g-opt/16 384          28.3  4.9
""",
)

TABLES: tuple[Table, ...] = (TABLE_1, TABLE_2, TABLE_5, TABLE_7, TABLE_8, TABLE_9)
