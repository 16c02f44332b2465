"""The page that a server shows, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import siglip2_jax
from siglip2_jax.demo import shipped_examples
from siglip2_jax.testing import tiny_embedder

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")
served = pytest.importorskip("served")

sync_api.expect.set_options(timeout=60_000)
LABELS = ["a dog", "people at a table", "a street"]
IMAGE = shipped_examples()[0].image
ANIMALS = ["a zebra", "an elephant"]
KEY = "a-key-of-the-test"

pytestmark = pytest.mark.browser

# For each text: its colour and the nearest background that is painted behind it.
COLOURS = """() => [...document.querySelectorAll("h1,h2,h3,p,label,small,span,button")]
  .filter((x) => x.offsetParent && x.textContent.trim())
  .map((x) => {
    let behind = x;
    while (behind.parentElement && getComputedStyle(behind).backgroundColor.endsWith(", 0)"))
      behind = behind.parentElement;
    return [x.textContent, getComputedStyle(x).color, getComputedStyle(behind).backgroundColor];
  })"""
UNNAMED = """() => [...document.querySelectorAll("input,select,textarea,button,canvas")]
  .filter((x) => !(x.labels?.length && x.labels[0].textContent.trim())
    && !x.getAttribute("aria-label") && !(x.tagName == "BUTTON" && x.textContent.trim()))
  .map((x) => x.outerHTML)"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_embedder().save(path)
    return path


@pytest.fixture(scope="module")
def server(source: Path) -> Iterator[served.Served]:
    labels = source.parent / "animals.txt"
    labels.write_text("\n".join(ANIMALS))
    options = ["--max-num-patches", "64", "16", "--labels-file", str(labels)]
    with served.Served(source, source.parent / "log", options) as server:
        yield server


@pytest.fixture
def page(browser: sync_api.Browser, server: served.Served) -> Iterator[sync_api.Page]:
    yield from visit(browser, server)


def visit(
    browser: sync_api.Browser, server: served.Served, errors: int = 0, **options
) -> Iterator[sync_api.Page]:
    """The page in a fresh window; it must ask this server alone, and log so many errors."""
    context = browser.new_context(**options)
    page = context.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(server.url)
    sync_api.expect(page.locator("#key:visible, #budget option").first).to_be_attached()
    yield page
    local = (server.url, "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []
    assert len(problems) == errors, problems
    context.close()


def fill(page: sync_api.Page, images: Path | list[Path]) -> None:
    page.get_by_label("Images", exact=True).set_input_files(images)
    page.get_by_label("Labels", exact=True).fill("\n".join(LABELS))


def wait_for(page: sync_api.Page, status: str) -> None:
    sync_api.expect(page.locator("#status")).to_have_text(status)


def read_scores(page: sync_api.Page, result: int = 0) -> dict[str, float]:
    rows = page.locator("#results > li").nth(result).locator(".scores li")
    labels = rows.locator(".text > span:first-child").all_text_contents()
    values = rows.locator(".value").all()
    numbers = [float(value.get_attribute("data-probability") or "nan") for value in values]
    return dict(zip(labels, numbers, strict=True))


def test_shows_the_probabilities_of_the_api(page, server, source):
    fill(page, IMAGE)
    page.get_by_label("Patches an image").select_option("64")
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "Done: 1 labelled.")
    model = siglip2_jax.load(source)
    images = model.embed_images([IMAGE], max_num_patches=64)
    expected = model.probabilities(images, model.embed_texts(LABELS))[0]
    shown = read_scores(page)
    assert list(shown) == [LABELS[i] for i in np.argsort(-expected)]
    for label, probability in zip(LABELS, expected, strict=True):
        assert shown[label] == pytest.approx(probability, rel=1e-5)
    with Image.open(IMAGE) as image:
        _, (rows, columns) = model.preprocess.to_patches(image, 64)
        sizes = f"{image.width} × {image.height} pixels"
    grid = f"the model sees {columns} × {rows} = {rows * columns} patches of 4 × 4."
    assert page.locator("#results .soft").text_content() == f"{sizes}; {grid}"
    width, height = page.locator("canvas").evaluate("(x) => [x.width, x.height]")
    assert width * rows == height * columns and width % (4 * columns) == 0


def test_bars_are_as_long_as_the_probabilities(page):
    fill(page, IMAGE)
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "Done: 1 labelled.")
    ratio = "(x) => x.getBoundingClientRect().width / x.parentElement.getBoundingClientRect().width"
    shown = list(read_scores(page).values())
    widths = [bar.evaluate(ratio) for bar in page.locator(".bar").all()]
    assert widths == pytest.approx(shown, abs=0.01)
    page.get_by_label("Bars relative to the best label").check()
    widths = [bar.evaluate(ratio) for bar in page.locator(".bar").all()]
    assert widths == pytest.approx([x / max(shown) for x in shown], abs=0.01)


def test_a_bad_image_beside_good_ones(browser, server, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(IMAGE.read_bytes()[:300])
    (page,) = [*visit_once(browser, server)]
    fill(page, [IMAGE, bad, shipped_examples()[1].image])
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "1 of 3 images could not be labelled.")
    assert [len(read_scores(page, i)) for i in range(3)] == [3, 0, 3]
    assert page.locator("#results > li").nth(1).locator(".bad").text_content()


def visit_once(browser: sync_api.Browser, server: served.Served) -> Iterator[sync_api.Page]:
    page = browser.new_page()
    page.goto(server.url)
    yield page


def test_by_keyboard_alone(page):
    page.on("filechooser", lambda chooser: chooser.set_files(IMAGE))
    page.keyboard.press("Tab")
    sync_api.expect(page.get_by_label("Images", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#files-note")).to_have_text(f"1 image: {IMAGE.name}")
    page.keyboard.press("Tab")  # to the sets of labels
    page.keyboard.press("Tab")
    page.keyboard.type("a dog\na cat")
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["budget", "grid", "relative", "go"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    wait_for(page, "Done: 1 labelled.")
    assert set(read_scores(page)) == {"a dog", "a cat"}
    page.get_by_label("Labels", exact=True).focus()
    page.keyboard.type("\na boat")
    page.keyboard.press("Control+Enter")
    wait_for(page, "Done: 1 labelled.")
    sync_api.expect(page.locator(".scores li")).to_have_count(3)


def test_labels_that_the_server_knows(page):
    fill(page, IMAGE)
    page.get_by_label("Set of labels").select_option("animals")
    sync_api.expect(page.get_by_label("Labels", exact=True)).to_be_disabled()
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "Done: 1 labelled.")
    assert set(read_scores(page)) == set(ANIMALS)


def test_search_where_there_is_a_database(page, server):
    """The server of this test has none: its answers are made here, in the form of the API."""
    schemas = pytest.importorskip("siglip2_jax.serve.schemas")
    asked = []
    models = server.get("/v1/models").json()
    models["data"][0]["search"] = True
    hit = {"id": "x/1.jpg", "score": 0.25, "caption": "<b>a dog</b>", "fields": {}}
    hits = [schemas.SearchHit(**hit, width=640, height=480)]
    answer = schemas.SearchAnswer(model="tiny", results=hits).model_dump()

    def search(route: sync_api.Route) -> None:
        asked.append(schemas.SearchRequest(**route.request.post_data_json))
        route.fulfill(json=answer)

    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.route("**/v1/search", search)
    page.reload()
    page.get_by_label("Description of the images").fill("a dog")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#search-status")).to_have_text("1 image found.")
    assert page.locator("#hits").inner_text().split("\n") == [
        "x/1.jpg",
        "score 0.250: <b>a dog</b>",
    ]
    fill(page, IMAGE)
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "Done: 1 labelled.")
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name=f"Find images similar to {IMAGE.name}").click()
    sync_api.expect(page.locator("#search-status")).to_have_text("1 image found.")
    first, second = asked
    assert (first.query, first.image) == ("a dog", None)
    assert second.query is None and second.image.startswith("data:image/jpeg;base64,")


def test_an_image_can_be_dropped(page):
    page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 40, height: 30});
          const blob = await new Promise((done) => canvas.toBlob(done));
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], "dropped.png", {type: "image/png"}));
          const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
          document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
    )
    assert page.locator("#files-note").text_content() == "1 image: dropped.png"
    page.get_by_label("Labels", exact=True).fill("a dog")
    page.get_by_role("button", name="Label images").click()
    wait_for(page, "Done: 1 labelled.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, server, scheme):
    phone = {"width": 360, "height": 640}
    visits = visit(browser, server, viewport=phone, color_scheme=scheme, has_touch=True)
    page = next(visits)
    fill(page, IMAGE)
    page.get_by_role("button", name="Label images").tap()
    wait_for(page, "Done: 1 labelled.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    heights = [x.bounding_box()["height"] for x in page.get_by_role("button").all()]
    assert min(heights) >= 44
    ratios = {text: contrast(front, back) for text, front, back in page.evaluate(COLOURS)}
    assert {text: ratio for text, ratio in ratios.items() if ratio < 4.5} == {}
    assert page.evaluate(UNNAMED) == []
    assert next(visits, None) is None


def contrast(front: str, back: str) -> float:
    """Ratio of the luminances of two colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        channels = np.array([int(x) for x in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(front), luminance(back)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


def test_a_screen_reader_finds_its_way(page):
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(UNNAMED) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((x) => x.id)")
    assert len(ids) == len(set(ids))
    levels = page.evaluate(
        """() => [...document.querySelectorAll("h1,h2,h3")]
          .filter((x) => x.offsetParent).map((x) => x.tagName)"""
    )
    assert levels == ["H1", "H2", "H2"]
    assert page.get_by_role("status").count() >= 1
    assert page.get_by_role("form", name="Label images").count() == 1
    page.get_by_role("button", name="Label images").click()  # nothing is chosen yet
    assert page.evaluate("document.activeElement.id") in ("files", "labels")


def test_foreign_scripts_do_not_run(browser, server):
    visits = visit(browser, server, errors=1)
    page = next(visits)
    page.evaluate(
        "document.head.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))"
    )
    assert page.evaluate("typeof x") == "undefined"
    assert next(visits, None) is None


def test_a_key_is_asked_for(browser, source, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with served.Served(source, tmp_path / "log", ["--api-keys", str(keys)]) as server:
        visits = visit(browser, server, errors=2)
        page = next(visits)
        page.get_by_label("API key").fill("another-key")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#status")).to_have_class("bad")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#key-form")).to_be_hidden()
        fill(page, IMAGE)
        page.get_by_role("button", name="Label images").click()
        wait_for(page, "Done: 1 labelled.")
        assert KEY not in page.content()
        assert next(visits, None) is None
