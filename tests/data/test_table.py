"""Tables of paths: the same rows as Python's csv and json read, and what is refused."""

import csv
import json
import pickle

import pytest
from data.samples import POINTER, picture

from siglip2_jax.data import Table
from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.data.rows import CsvRows, JsonRows
from siglip2_jax.data.table import table_columns

ROWS = [
    {"image": "0.jpg", "caption": "plain", "label": "3"},
    {"image": "sub/1.jpg", "caption": 'quoted "words", a comma\nand a second line', "label": ""},
    {"image": "2.jpg", "caption": "ünïcödé \u2028 one line", "label": "\r\n"},
    {"image": "0.jpg", "caption": "", "label": "the same image again"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("0.jpg", "sub/1.jpg", "2.jpg")):
        (tmp_path / name).write_bytes(picture(i))
    return tmp_path


def write_csv(path, rows, **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def read_as_csv(path, delimiter):
    """Rows as Python's own reader has them."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.csv", {"encoding": "utf-8-sig", "lineterminator": "\n"}),
        ("A.CSV", {"quoting": csv.QUOTE_ALL}),
        ("a.tsv", {"delimiter": "\t"}),
    ],
)
def test_rows_of_csv(folder, name, options):
    path = write_csv(folder / name, ROWS, **options)
    with open(path, "a") as file:
        file.write("\n")  # a blank line is no row
    delimiter = options.get("delimiter", ",")
    expected = read_as_csv(path, delimiter)
    assert expected == ROWS
    rows = pickle.loads(pickle.dumps(CsvRows(path, delimiter)))
    assert [rows[i] for i in (3, 0, 2, 1)] == [ROWS[i] for i in (3, 0, 2, 1)]
    examples = Table(path).open()
    assert len(examples) == 4
    names = [str(folder / row["image"]) for row in ROWS]
    names[3] += "#3"
    for i, row in enumerate(ROWS):
        example = examples[i]
        assert example == {
            "image": (folder / row["image"]).read_bytes(),
            "captions": (row["caption"],) if row["caption"] else (),
            "name": names[i],
            "label": row["label"],
        }
        assert examples.without_image(i) == {**example, "image": b""}


def test_rows_take_twelve_bytes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image\n" + "".join(f"{i}.jpg\n" for i in range(1000)))
    rows = CsvRows(path)
    assert rows._starts.nbytes + rows._lengths.nbytes == 12 * len(rows) == 12000


def test_json_lines(folder):
    rows = [
        {"file_name": str(folder / "0.jpg"), "title": ["one", "two", "one"], "n": {"x": [1]}},
        {"file_name": (folder / "2.jpg").as_uri(), "title": None},
    ]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    examples = Table(str(path), "file_name", "title").open()
    assert examples[0]["captions"] == ("one", "two") and examples[0]["n"] == {"x": [1]}
    assert examples[1]["captions"] == () and examples[1]["image"] == picture(2)
    assert examples[1]["name"] == str(folder / "2.jpg")
    assert table_columns(str(path)) == ["file_name", "title", "n"]


def test_uris_with_escapes(tmp_path):
    file = tmp_path / "a b%ü.jpg"
    file.write_bytes(picture(5))
    (tmp_path / "a.csv").write_text(f"image\n{file.as_uri()}\n")
    assert Table(str(tmp_path / "a.csv"), caption=None).open()[0]["image"] == picture(5)


def test_templates_and_no_captions(folder):
    path = write_csv(folder / "a.csv", ROWS)
    assert Table(path, caption=None).open()[0]["captions"] == ()
    assert Table(path, template="no {label}").open()[0]["captions"] == ("no 3",)
    with pytest.raises(ValueError, match="needs the field 'x', found image, caption, label"):
        Table(path, template="{x}").open()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "image,title\n0.jpg,x\n",
            "has no column 'caption'; its columns are image, title",
        ),
        ("a.jsonl", '{"file": "0.jpg"}\n', "has no column 'image'; its columns are file"),
        ("a.csv", "image,caption\n", "there are no rows"),
        ("a.csv", "", "is empty; expected a row with the names of columns"),
        ("a.csv", "image,image\n", "line 1: two columns have the same name: image, image"),
        (
            "a.csv",
            "image,caption\n0.jpg,a, b\n",
            "line 2: a row has 3 fields and the header 2;",
        ),
        ("a.jsonl", "[1]\n", r"line 1: expected an object with columns, found \[1\]"),
        (
            "a.csv",
            "image,caption\n0.jpg,x\nhttps://a.org/b.jpg,y\n",
            r"line 3: https://a.org/b.jpg is on the web; download the images first, such as with "
            "img2dataset",
        ),
        ("a.tsv", POINTER.decode(), "line 1: it is .*Git LFS"),
    ],
)
def test_tables_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Table(str(tmp_path / name)).open()
    assert str(error.value).startswith(str(tmp_path / name))


def test_not_utf_8_and_not_there(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\n0.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match="line 2: not text in UTF-8 .* at byte 9"):
        Table(str(tmp_path / "a.csv")).open()
    with pytest.raises(ValueError, match=r"b.csv: no such file; expected .csv, .tsv, .jsonl$"):
        Table(str(tmp_path / "b.csv")).open()


def test_images_that_are_missing(folder):
    path = write_csv(
        folder / "a.csv",
        [{"image": x, "caption": "x"} for x in ("lost.jpg", "gone/1.jpg", "sub", "")],
    )
    examples = Table(path).open()
    with pytest.raises(ExampleError, match=r"lost.jpg: no such file\.$"):
        examples[0]
    with pytest.raises(SourceError, match="there is no folder .*gone; mount it, or put it back"):
        examples[1]
    with pytest.raises(ExampleError, match=r"sub: this is no file\.$"):
        examples[2]
    with pytest.raises(ExampleError, match="row 3: it has no path in image, found ''"):
        examples[3]


def test_a_table_that_changes(folder):
    path = write_csv(folder / "a.csv", ROWS)
    examples = pickle.loads(pickle.dumps(Table(path).open()))
    (folder / "a.csv").write_text("image,caption\n2.jpg,other\n")
    with pytest.raises(SourceError, match="a.csv has changed since it was opened"):
        examples[0]


def test_rows_of_json_are_those_of_before(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('1\n\n{"a": 2}\n')
    assert list(JsonRows(path)) == [1, {"a": 2}]
