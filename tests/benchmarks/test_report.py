"""The report: three files that say the same, and a page that is safe and whole."""

import base64
import json
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from siglip2_jax.benchmarks.report.plots import report_series
from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.write import write_report

NASTY = "<script>alert('x')</script> & \"$title\" | b"


def measured(dataset="imagenet", budget=256, **changes) -> Result:
    fields = {
        "dataset": dataset,
        "task": "zeroshot_classification",
        "model": "B/16 NaFlex",
        "pretrained": "b16_naflex.npz",
        "metrics": {"top1": 0.7823, "top5": 0.95},
        "protocol": {"num_patches": budget, "resolution": None, "preproc": "hf", "canonical": True},
        "images": 50_000,
        "seconds": 100.0,
        "images_per_s": 512.34,
        "data_wait": 0.126,
    }
    return Result(**fields | changes)


def missing(sentence: str) -> Result:
    return measured("objectnet", metrics={}, missing=sentence, images=0)


def languages(**changes) -> Result:
    recalls = {f"{kind}@1": 0.5 for kind in ("image_to_text", "text_to_image")}
    each = {f"{name}/{key}": value / 2 for name in ("ar", "th") for key, value in recalls.items()}
    task = "zeroshot_retrieval"
    return measured("xm3600", task=task, metrics=recalls | each, images=3600, **changes)


class Page(HTMLParser):
    """Collects tags, and the texts of the rows of tables and of all else."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def written(tmp_path, *results: Result) -> tuple[dict, str, Page]:
    path = write_report(results, tmp_path / "new" / "report")
    assert sorted(x.name for x in path.parent.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    data = json.loads((path.parent / "report.json").read_text())
    return data, (path.parent / "report.md").read_text(), Page(path.read_text())


def cells(markdown: str) -> list[list[str]]:
    """Cells of all lines of tables, but for those under heads."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in found if set("".join(row)) != {"-"}]


def test_ours_published_and_the_difference_in_all_three(tmp_path):
    data, markdown, page = written(tmp_path, measured())
    row = data["rows"][0]
    assert (row["ours"], row["published"]) == (pytest.approx(78.23), 78.5)
    assert row["difference"] == pytest.approx(-0.27)
    assert row["source"].endswith("table 7")
    assert data["rows"][1]["published"] is None and data["rows"][1]["difference"] is None
    protocol = "preproc hf, canonical true"
    top1 = ["imagenet", "256 tokens", "top1", "78.23", "78.5", "−0.27"]
    html_speed = ["50,000", "0", "512.3", "13%", protocol]
    assert cells(markdown)[1] == [*top1, "50000", "0", "512.3", "13%", protocol]
    assert page.rows[1] == [*top1, *html_speed]
    assert page.rows[2] == ["top5", "95.00", "–", "–"]
    assert cells(markdown)[2][2:6] == ["top5", "95.00", "–", "–"]


def test_results_come_back_from_the_json(tmp_path):
    results = [measured(), missing("Get it."), languages(failed=("a.jpg",))]
    data, *_ = written(tmp_path, *results)
    assert [Result.from_json(x) for x in data["results"]] == results


def test_every_budget_has_its_own_published_number(tmp_path):
    data, *_ = written(tmp_path, measured(budget=64), measured(budget=144), measured(budget=200))
    found = [row["published"] for row in data["rows"] if row["metric"] == "top1"]
    assert found == [71.2, 76.2, None]


def test_missing_data_is_a_row_with_the_way_to_get_it(tmp_path):
    _, markdown, page = written(tmp_path, measured(), missing("Ask at objectnet.dev."))
    assert cells(markdown)[-1][-1] == "no data: Ask at objectnet.dev."
    assert page.rows[-1] == ["objectnet", "256 tokens", "No data. Ask at objectnet.dev."]


def test_languages_are_folded_away(tmp_path):
    data, markdown, page = written(tmp_path, languages())
    assert [row["metric"] for row in data["rows"]] == ["image_to_text@1", "text_to_image@1"]
    assert ["th", "25.00", "25.00"] in cells(markdown)
    assert ["th", "25.00", "25.00"] in page.rows
    assert "details" in page.tags


def test_a_translation_is_not_compared_with_english(tmp_path):
    data, _, page = written(tmp_path, measured(language="de"))
    assert data["rows"][0]["published"] is None
    assert page.rows[1][0] == "imagenet (de)"
    assert languages(language="mul").language == "mul"
    data, *_ = written(tmp_path, languages(language="mul", model="B/16 256"))
    assert data["rows"][1]["published"] == 40.7


def test_errors_are_in_their_unit_and_lower_is_better(tmp_path):
    fields = {"model": "So400m/14 384", "protocol": {"num_patches": 729, "resolution": 384}}
    depth = measured("nyuv2", task="depth", metrics={"rmse": 0.4}, **fields)
    _, markdown, _ = written(tmp_path, depth)
    assert cells(markdown)[1][1:6] == ["384 px", "rmse", "0.400", "0.466", "−0.066"]
    path = tmp_path / "new" / "report" / "report.html"
    assert 'class="better">−0.066' in path.read_text()


def test_a_line_over_budgets_beside_the_published_ones():
    fixed = measured(model="B/16 256", protocol={"num_patches": 256, "resolution": 256})
    plots = report_series([measured(budget=64), measured(budget=256), fixed])
    (series,) = plots.values()
    points = {one.name: one.points for one in series}
    assert list(plots) == ["imagenet top1"] and list(points)[-2:] == [
        "ours, B/16 NaFlex",
        "ours, B/16 256",
    ]
    assert points["ours, B/16 NaFlex"] == pytest.approx({64: 78.23, 256: 78.23})
    assert points["ours, B/16 256"] == pytest.approx({256: 78.23})
    assert points["published, B/16 NaFlex"][64] == 71.2
    assert points["published, B/16 at fixed resolution"][196] == 78.2
    assert sum(map(len, points.values())) == 3 + 8 + 4


def test_weights_of_one_model_are_told_apart():
    (series,) = report_series([measured(), measured(pretrained="runs/b/")]).values()
    names = [one.name for one in series if one.name.startswith("ours, ")]
    assert names == ["ours, B/16 NaFlex (b16_naflex.npz)", "ours, B/16 NaFlex (b)"]


def test_a_model_of_ones_own_has_its_line_only(tmp_path):
    results = [measured(budget=budget, model="custom") for budget in (64, 256)]
    data, _, page = written(tmp_path, *results)
    assert [row["published"] for row in data["rows"]] == [None] * 4
    ((_, (line,)),) = report_series(results).items()
    assert list(line.points) == [64, 256] and page.tags.count("img") == 1


def test_plots_are_images_within_the_page_with_their_texts(tmp_path):
    results = [measured(NASTY, budget=budget, model="$a_1$") for budget in (64, 256)]
    *_, page = written(tmp_path, *results)
    (source,) = page.links
    kind, data = source.split(",")
    assert kind == "data:image/svg+xml;base64"
    svg = ElementTree.fromstring(base64.b64decode(data))
    texts = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {f"{NASTY} top1", "ours, $a_1$", "64", "256", "tokens of an image"} <= texts


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_markdown_and_json_need_no_extra(tmp_path, monkeypatch, package):
    (tmp_path / "report.html").write_text("of other results")
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    for name in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"siglip2_jax.benchmarks.report.{name}", raising=False)
    assert write_report([measured()], tmp_path) == tmp_path / "report.md"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_what_users_write_is_text(tmp_path):
    nasty = measured(NASTY, pretrained=NASTY, failed=(NASTY,) * 25, protocol={NASTY: NASTY})
    _, markdown, page = written(tmp_path, nasty, measured(NASTY, metrics={}, missing=NASTY))
    assert "script" not in page.tags and page.links == []
    assert not page.open
    assert page.rows[1][0] == NASTY
    assert "and 5 more, all in report.json" in page.texts
    table = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {12}


def test_no_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report([], tmp_path)
