"""Sets of one's own: forms, parts, rows of the same image."""

import csv
import json
import shutil

import pytest
from PIL import Image

from siglip2_jax.data.pairs import Pairs, find_source
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.table import Table

COUNT = 40


@pytest.fixture
def images(tmp_path):
    """A folder of small images, each of its own colour."""
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    for i in range(COUNT):
        Image.new("RGB", (16, 16), (6 * i, 255 - 6 * i, 100)).save(folder / f"{i:02}.png")
    return folder


def write_folder(images, **fields):
    rows = [
        {"file": f"{i:02}.png", "captions": [f"colour {i}"]}
        | {name: values[i] for name, values in fields.items()}
        for i in range(COUNT)
    ]
    path = images.parent / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(images.parent)


def write_table(images, repeats: int = 1):
    with (images.parent / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for i in range(COUNT):
            for k in range(repeats):
                writer.writerow([f"images/{i:02}.png", f"colour {i}" + " again" * k])
    return str(images.parent / "pairs.csv")


def write_parquet(images):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (images.parent / "files").mkdir()
    columns = {
        "image": [{"bytes": (images / f"{i:02}.png").read_bytes()} for i in range(COUNT)],
        "caption": [f"colour {i}" for i in range(COUNT)],
        "split": ["train" if i % 4 else "validation" for i in range(COUNT)],
    }
    parquet.write_table(pyarrow.table(columns), images.parent / "files" / "pairs.parquet")
    return str(images.parent / "files")


def captions(path, part, **fields) -> list[tuple[str, ...]]:
    examples = Pairs(path, part, **fields).open()
    return [examples[i]["captions"] for i in range(len(examples))]


def everything(path) -> list[set[tuple[str, ...]]]:
    return [set(captions(path, part)) for part in ("train", "held_out")]


def test_parts_are_whole_and_apart(images):
    train, held_out = everything(write_folder(images))
    assert len(train) + len(held_out) == COUNT and not train & held_out
    assert 1 <= len(held_out) <= 14  # a share of 0.15, within 3 deviations


def test_the_share_is_kept_on_average(tmp_path):
    folder = tmp_path / "many" / "images"
    folder.mkdir(parents=True)
    rows = []
    for i in range(2000):
        (folder / f"{i}.png").write_bytes(f"image {i}".encode())  # opening decodes nothing
        rows.append(json.dumps({"file": f"{i}.png", "caption": "an image"}) + "\n")
    (folder.parent / "captions.jsonl").write_text("".join(rows))
    for share in (0.1, 0.3):
        count = len(Pairs(str(folder.parent), "held_out", share).open())
        assert abs(count - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5


def test_an_image_stays_in_its_part(images, tmp_path):
    """The form, the place and the other images do not count."""
    folder = everything(write_folder(images))
    shutil.move(images.parent, tmp_path / "moved")
    moved = tmp_path / "moved" / "images"
    (moved.parent / "captions.jsonl").unlink()
    assert everything(write_table(moved)) == folder
    path = moved.parent / "pairs.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: COUNT // 2]))
    assert [few <= part for few, part in zip(everything(str(path)), folder, strict=True)] == [
        True
    ] * 2


def test_rows_of_an_image_become_one_example(images):
    path = write_table(images, repeats=3)
    shutil.copy(images / "00.png", images / "copy.png")
    with open(path, "a") as file:
        file.write("images/copy.png,a copy\n")
    train, held_out = everything(path)
    assert len(train) + len(held_out) == COUNT
    (zero,) = (x for x in train | held_out if "colour 0" in x)
    assert zero == ("colour 0", "colour 0 again", "colour 0 again again", "a copy")


def test_a_column_decides(images):
    split = ["train"] * 30 + ["val", "test"] * 5
    path = write_folder(images, split=split)
    assert captions(path, "held_out") == [(f"colour {i}",) for i in range(30, COUNT)]
    assert captions(write_parquet(images), "held_out") == [
        (f"colour {i}",) for i in range(0, COUNT, 4)
    ]


def test_forms_are_found(images):
    pytest.importorskip("pyarrow")
    table = write_table(images)
    wanted = Table(table, "file_name", "text")
    assert find_source(table) == find_source(str(images.parent)) == wanted
    path = write_parquet(images)
    assert find_source(path) == Parquet(path, fields=("split",))
    assert find_source(write_folder(images)) == Folder(str(images.parent))


def test_damaged_images_are_left_to_training(images):
    path = write_folder(images)
    rows = (images.parent / "captions.jsonl").read_text()
    bad = json.dumps({"file": "00.png", "captions": 3}) + "\n"
    (images.parent / "captions.jsonl").write_text(bad + rows)
    train = Pairs(path, "train").open()
    with pytest.raises(ValueError, match="00.png: a caption is int 3"):
        train[0]
    assert len(train) + len(Pairs(path, "held_out").open()) == COUNT + 1


def test_what_does_not_fit_is_one_sentence(images, tmp_path):
    expected = "expected a folder with captions.jsonl and images, a .csv, .tsv or .jsonl table"
    with pytest.raises(ValueError, match=f"no set of images with captions at .*none; {expected}"):
        find_source(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=f"holds 00.png, .*; {expected}"):
        find_source(str(images))
    path = write_folder(images, split=["train"] * COUNT)
    with pytest.raises(ValueError, match="none of its 40 images is held out; give rows a column"):
        Pairs(path, "held_out").open()
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        Pairs(path, "train", 1.0)
    (images.parent / "captions.jsonl").unlink()
    for name in ("a.csv", "b.csv"):
        (images.parent / name).write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"holds a.csv, b.csv; expected"):
        find_source(str(images.parent))
