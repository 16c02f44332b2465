"""The contact sheet is one safe, self-contained page that shows each hit once, in order."""

import base64
import io
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.search.contact_sheet import SIDE, contact_sheet
from siglip2_jax.search.hit_images import read_hit
from siglip2_jax.search.hits import Hit

NASTY = "<script>alert('x')</script> & \"$title\""


class Page(HTMLParser):
    """Collects the tags and the text of a page, and checks that what is opened is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def hit(item, score=0.5, caption=None, **fields):
    return Hit(str(item), score, caption, fields, 400, 30)


def sheet(results, tmp_path, **options) -> Page:
    contact_sheet(results, tmp_path / "page.html", **options)
    return Page((tmp_path / "page.html").read_text())


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (480, 36), (200, 30, 40)).save(path)
    return path


def thumbnails(page):
    data = [
        base64.b64decode(x["src"].removeprefix("data:image/jpeg;base64,")) for x in page.images()
    ]
    return [Image.open(io.BytesIO(file)) for file in data]


def test_every_hit_in_order(image, tmp_path):
    Image.new("RGB", (10, 20), (0, 200, 0)).save(tmp_path / "green.png")
    results = [
        ("a red boat", [hit(image, 0.25, "red", year=1999), hit(tmp_path / "green.png", 0.125)]),
        ("no boat", [hit(tmp_path / "green.png", -0.5)]),
        ("nothing", []),
    ]
    page = sheet(results, tmp_path)
    scores = [text for text in page.texts if text.startswith("score ")]
    assert scores == ["score 0.2500", "score 0.1250", "score -0.5000"]
    shown = thumbnails(page)
    assert [x.size for x in shown] == [(SIDE, 18), (10, 20), (10, 20)]
    colours = [np.asarray(x).mean((0, 1)).round(-1).tolist() for x in shown]
    assert colours == [[200, 30, 40], [0, 200, 0], [0, 200, 0]]
    assert [(int(x["width"]), int(x["height"])) for x in page.images()] == [x.size for x in shown]
    heads = [text for text in page.texts if text in ("a red boat", "no boat", "nothing")]
    assert heads == ["a red boat", "no boat", "nothing"] * 2  # links, then sections
    assert "No image was found." in page.texts and "1999" in page.texts


def test_screen_readers_and_links(image, tmp_path):
    page = sheet([("q", [hit(image, caption="red"), hit(image)]), ("r", [])], tmp_path)
    assert [x["alt"] for x in page.images()] == ["red", str(image)]
    assert all(x["loading"] == "lazy" for x in page.images())
    ids = {x["id"] for _, x in page.tags if "id" in x}
    assert (
        {x["href"].removeprefix("#") for tag, x in page.tags if tag == "a"} == ids == {"q0", "q1"}
    )
    assert {x["aria-labelledby"] for tag, x in page.tags if tag == "section"} == ids
    assert ("html", {"lang": "en"}) in page.tags
    assert any(x.get("name") == "viewport" for tag, x in page.tags if tag == "meta")


def test_what_users_write_is_text(image, tmp_path):
    hits = [Hit(str(image), 0.5, NASTY, {NASTY: NASTY}, 1, 1), hit(NASTY)]
    page = sheet([(NASTY, hits)], tmp_path, title=NASTY)
    assert "script" not in [tag for tag, _ in page.tags]
    # Title, heading, query, caption, field and value, and the id of what is not here.
    assert page.texts.count(NASTY) == 7
    assert page.images()[0]["alt"] == NASTY


def test_images_that_are_not_here_or_broken(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    page = sheet([("q", [hit("gone.jpg"), hit(tmp_path / "broken.jpg")])], tmp_path)
    assert page.images() == []
    assert "the image is not here" in page.texts
    assert any("broken.jpg: the JPEG data is damaged" in text for text in page.texts)
    assert sum(text.startswith("score ") for text in page.texts) == 2


def test_names_that_are_no_text(tmp_path):
    page = sheet([("q", [hit("a\udcff.jpg")])], tmp_path)
    assert "a\\udcff.jpg" in page.texts


def test_large_images_are_small_in_the_page(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), np.uint8)).save(tmp_path / "large.jpg")
    contact_sheet([("q", [hit(tmp_path / "large.jpg")])], tmp_path / "page.html")
    assert (tmp_path / "large.jpg").stat().st_size > 1.5e6
    assert (tmp_path / "page.html").stat().st_size < 60e3


def test_an_interrupted_page_leaves_the_one_before(image, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")

    def read(item):
        if item == "stop":
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        contact_sheet([("q", [hit(image), hit("stop")])], path, read=read)
    assert path.read_text() == "before"
    assert {x.name for x in tmp_path.iterdir()} == {"page.html", "wide.png"}


def test_members_of_a_tar(image, tmp_path):
    other = io.BytesIO()
    Image.new("RGB", (7, 5)).save(other, "PNG")
    path = tmp_path / "a:b.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in {"x/1.png": image.read_bytes(), "x/2.png": other.getvalue()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert read_hit(f"{path}:x/2") == other.getvalue()
    assert read_hit(f"{path}:x/1") == image.read_bytes()
    for missing in (f"{path}:x/3", f"{path}", f"{tmp_path}/c.tar:x/1", "17", ""):
        assert read_hit(missing) is None or missing == str(path)
    page = sheet([("q", [hit(f"{path}:x/2")])], tmp_path)
    assert [x.size for x in thumbnails(page)] == [(7, 5)]


@pytest.mark.remote
@pytest.mark.parametrize("column", ["image", "picture"])
def test_rows_of_parquet(image, tmp_path, column):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = image.read_bytes()
    values = [{"bytes": data, "path": "a.png"}, {"bytes": data[:50], "path": "b.png"}]
    table = pyarrow.table({"sha": [b"0", b"1"], column: values, "text": ["x", "y"]})
    path = tmp_path / "train.parquet"
    parquet.write_table(table.drop_columns(["sha"]) if column == "picture" else table, path)
    assert [read_hit(f"{path}:{row}") for row in range(2)] == [data, data[:50]]
    assert read_hit(f"{path}:2") is None and read_hit(f"{path}:last") is None
    page = sheet([("q", [hit(f"{path}:0"), hit(f"{path}:1")])], tmp_path)
    assert [x.size for x in thumbnails(page)] == [(SIDE, 18)]
    parquet.write_table(table.select(["text"]), path)
    assert read_hit(f"{path}:0") is None
