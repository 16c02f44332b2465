"""Every figure of the papers' tables, read again from the reference by a parser of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip2_jax.benchmarks.report.published import in_units, published, published_curve
from siglip2_jax.benchmarks.report.tables import TABLES
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

T2I, I2T = "text_to_image@1", "image_to_text@1"
SIZES = {"B": "B", "L": "L", "So": "So400m", "g": "g-opt", "g-opt": "g-opt", "So400m": "So400m"}
TOKENS = {
    v.config.vision.num_patches: v.name.split()[-1] for v in RELEASES if v.name[:5] == "B/16 "
}
TABLE_5 = {"B256": "B/16 256", "B576": "B/16 384", "L256": "L/16 256", "L576": "L/16 384"}
TABLE_5 |= {"So256": "So/14 224", "So729": "So/14 384", "g256": "g/16 256", "g576": "g/16 384"}

Fact = tuple[str, int | None, str, str]


def markdown(shared: Path, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its head."""
    text = (shared / "reference" / "results.md").read_text()
    lines = text.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[start + 2 : end]]


def variant(vit: str, resolution: str, model: str = "SigLIP 2") -> str | None:
    """A registry's name; None for models of others."""
    size, patch = vit.split("/")
    prefix = {"SigLIP 2": "", "SigLIP": "SigLIP "}.get(model)
    return None if prefix is None else f"{prefix}{SIZES[size]}/{patch} {resolution}"


def each(
    name: str | None, cells: list[str], columns: str, budget: int | None = None
) -> Iterator[tuple[Fact, str]]:
    """Facts of a row; columns are "dataset:metric", with "<" for a pair of recalls."""
    names: list[tuple[str, str]] = []
    for column in columns.split():
        dataset, _, metric = column.partition(":")
        names += [(dataset, metric)] if metric != "<" else [(dataset, T2I), (dataset, I2T)]
    assert len(names) == len(cells)
    for (dataset, metric), cell in zip(names, cells, strict=True):
        if name is not None and cell != "–":
            yield (name, budget, dataset, metric), cell


FOUR = "imagenet:top1 imagenet_v2:top1 imagenet_real:top1 objectnet:top1"
REFERRING = " ".join(
    f"{name}:acc@0.5"
    for name in (
        *("refcoco_val", "refcoco_testA", "refcoco_testB"),
        *("refcocoplus_val", "refcocoplus_testA", "refcocoplus_testB"),
        *("refcocog_val", "refcocog_test"),
    )
)
CULTURE = (
    "dollar_street:10shot geode_country:10shot geode_region:10shot dollar_street:top1 gldv2:top1 "
    "geode:top1"
)


def table_1(shared: Path) -> Iterator[tuple[Fact, str]]:
    for vit, side, _, model, *cells in markdown(shared, "### Table 1:"):
        columns = f"{FOUR} imagenet:10shot coco:< flickr30k:< xm3600:<"
        yield from each(variant(vit, side, model), cells, columns)


def table_2(shared: Path) -> Iterator[tuple[Fact, str]]:
    for model, vit, side, *cells in markdown(shared, "### Table 2:"):
        columns = "pascal_voc:miou ade20k:miou nyuv2:rmse navi:rmse nyuv2:angular_rmse"
        yield from each(variant(vit, side, model), cells, f"{columns} navi:angular_rmse")


def table_5(shared: Path) -> Iterator[tuple[Fact, str]]:
    for vit, tokens, model, *cells in markdown(shared, "### Table 5:"):
        if model in ("SigLIP", "SigLIP 2"):
            name = variant(*TABLE_5[vit + tokens].split(), model)
            yield from each(name, cells, REFERRING)


def table_7(shared: Path) -> Iterator[tuple[Fact, str]]:
    columns = f"{FOUR} coco:< textcaps:< hiertext:< scicap:< screen2words:<"
    for vit, tokens, model, *cells in markdown(shared, "### Table 7:"):
        if model == "NaFlex":
            yield from each(variant(vit, "NaFlex"), cells, columns, int(tokens))
        else:
            assert model == "std"
            yield from each(variant(vit, TOKENS[int(tokens)]), cells, columns)


def table_8(shared: Path) -> Iterator[tuple[Fact, str]]:
    for vit, side, model, *cells in markdown(shared, "### Table 8:"):
        if model == "SigLIP 2":
            yield from each(variant(vit, side), cells, CULTURE)
            continue
        first, second = zip(*(cell.split("/") for cell in cells), strict=True)
        yield from each(variant(vit, side, model.removesuffix(" / 2")), list(first), CULTURE)
        yield from each(variant(vit, side), list(second), CULTURE)


def table_9(shared: Path) -> Iterator[tuple[Fact, str]]:
    columns = "dollar_street:income_disparity bias:representation_bias"
    for vit, side, gap1, gap2, bias1, bias2 in markdown(shared, "### Table 9:"):
        vit = vit if "/" in vit else f"{vit}/16"
        first = None if "mSigLIP" in gap1 else variant(vit, side, "SigLIP")
        yield from each(first, [gap1, bias1], columns)
        yield from each(variant(vit, side), [gap2, bias2], columns)


READERS = {1: table_1, 2: table_2, 5: table_5, 7: table_7, 8: table_8, 9: table_9}


@pytest.mark.parametrize("number", READERS)
def test_every_figure_of_a_table_and_no_other(shared, number):
    ours = {tuple(key): value for *key, value in TABLES[list(READERS).index(number)].cells()}
    theirs = dict(READERS[number](shared))
    assert len(theirs) > 20
    assert ours == {key: float(figure) for key, figure in theirs.items()}
    # No table contradicts another: the same fact found through the public door is the same.
    for (name, budget, dataset, metric), figure in theirs.items():
        found = published(name, dataset, metric, budget)
        assert found is not None and found.value == float(figure)


def test_the_readme_agrees(shared):
    rows = markdown(shared, "## 1. Official")
    for name, top1, t2i, i2t in rows:
        first, second = name.split()
        vit, side = (second, first) if first == "NaFlex" else (first, second)
        found = variant(vit, side)
        for dataset, metric, figure in (
            ("imagenet", "top1", top1),
            ("coco", T2I, t2i),
            ("coco", I2T, i2t),
        ):
            assert published(found, dataset, metric, 256).value == float(figure)
    assert len(rows) == len(RELEASES)


def test_the_calibration_rows(shared):
    columns = "imagenet:top1 imagenet_v2:top1 objectnet:top1 coco:< flickr30k:< xm3600:<"
    rows = markdown(shared, "## 3. Calibration")
    for side, *cells in rows:
        name = variant("B/16", side, "SigLIP")
        for key, paper in each(name, [cell.split("/")[0] for cell in cells], columns):
            assert published(key[0], *key[2:]).value == float(paper)
    assert len(rows) == 4


def test_only_models_of_the_registry_are_named_and_all_are():
    names = {v.name for v in RELEASES + SIGLIP1_RELEASES}
    assert {name for table in TABLES for name, *_ in table.cells()} == names


def test_native_resolution_needs_the_budget_and_fixed_does_not():
    assert published("B/16 NaFlex", "imagenet", "top1", 256).value == 78.5
    assert published("B/16 NaFlex", "imagenet", "top1", 64).value == 71.2
    assert published("B/16 NaFlex", "imagenet", "top1", 128) is None
    assert published("B/16 NaFlex", "imagenet", "top1") is None
    assert published("B/16 224", "imagenet", "top1").value == 78.2
    assert published("B/16 224", "imagenet", "top1", 999).value == 78.2
    assert published("custom", "imagenet", "top1") is None
    assert published("B/16 224", "imagenet", "top5") is None


def test_a_fact_says_where_it_is_from_and_what_to_know():
    found = published("B/16 256", "objectnet", "top1")
    assert found.source == "SigLIP 2, arXiv 2502.14786, table 1"
    assert "protocol unpublished" in found.note and "ACID" in found.note
    assert "without ACID" in published("B/16 NaFlex", "imagenet", "top1", 64).note
    assert published("So400m/16 NaFlex", "imagenet", "top1", 64).note == ""


def test_curves_run_over_the_tokens():
    curve = published_curve("So400m/16 NaFlex", "imagenet", "top1")
    assert list(curve) == [64, 144, 256, 576, 676, 784, 900, 1024]
    assert curve[1024] == 84.4
    assert published_curve("So400m/14 384", "imagenet", "top1") == {729: 84.1}
    assert published_curve("custom", "imagenet", "top1") == {}


def test_shares_become_per_cent_and_errors_stay():
    assert in_units("top1", 0.5) == 50
    assert in_units("ar/text_to_image@1", 0.25) == 25
    assert in_units("rmse", 0.5) == 0.5
    assert in_units("angular_rmse", 24.9) == 24.9
