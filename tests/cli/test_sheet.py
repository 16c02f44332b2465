"""The similarity sheet is one safe, self-contained page."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from siglip2_jax.cli.sheet import THUMBNAIL, similarity_sheet

NASTY = "<script>alert('x')</script> & \"$title\""


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def sheet(similarity, **changes) -> Page:
    images = [Image.new("L", (400, 30)), Image.new("RGBA", (5, 9))]
    arguments = {"title": NASTY, "summary": NASTY, "credits": [NASTY, "b"]} | changes
    return Page(similarity_sheet(images, [NASTY, "plain"], similarity, **arguments))


def test_what_users_write_is_text():
    page = sheet(np.array([[0.5, -1], [0.25, 1]], np.float32))
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "iframe" not in tags
    assert page.texts.count(NASTY) == 5  # title, heading, summary, caption, credit


def test_cells_are_where_they_belong():
    page = sheet(np.array([[0.5, -1], [0.25, 1]], np.float32))
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    assert [cell.get("class") for cell in cells] == ["own", None, None, "own"]
    numbers = [text for text in page.texts if re.fullmatch(r"-?\d\.\d\d", text)]
    assert numbers == ["0.50", "0.25", "-1.00", "1.00"]  # a row per text, a column per image
    assert "rgb(255,255,255)" in cells[2]["style"] and "rgb(65,135,225)" in cells[3]["style"]


def test_nothing_is_fetched():
    page = sheet(np.ones((2, 2), np.float32))  # all alike: no division by their spread
    sources = [attributes["src"] for tag, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2 and all(x.startswith("data:image/jpeg;base64,") for x in sources)
    assert not any("href" in attributes for _, attributes in page.tags)
    data = [base64.b64decode(source.partition(",")[2]) for source in sources]
    sizes = [Image.open(io.BytesIO(file)).size for file in data]
    assert sizes == [(THUMBNAIL, 8), (5, 9)]  # 400 x 30 and 5 x 9 before
