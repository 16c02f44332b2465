"""Dollar Street, GeoDE and Google Landmarks in the layouts they are published in."""

from __future__ import annotations

import ast
import hashlib
import math
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote

from etils import epath

from siglip2_jax.benchmarks.culture.image_table import TableImages, read_table
from siglip2_jax.data.sources import Examples

Part = Literal["all", "train", "test"]

DOLLAR_STREET_TRAIN = "images_v2_imagenet_train.csv"
DOLLAR_STREET_TEST = "images_v2_imagenet_test.csv"
_TRAIN_SHARE = 3  # of GeoDE's images every third is for training


@dataclass(frozen=True)
class DollarStreet:
    """Images of homes with the ImageNet classes of their topics (Gaviria Rojas et al. 2022).

    A table has a row an image: `imageRelPath` (within the directory), `imagenet_sysnet_id` (a list
    such as `[904, 905]`: the classes, from 0, that the image's topic was mapped to), `country.id`,
    `region.id` and `income` (of the home, in dollars a month). Images of topics without a class are
    not in these tables. Examples have the fields `classes`, `country`, `region` and `income`.

    Attributes:
      path: the directory `dataset_dollarstreet`, local or `gs://`.
      tables: its files to read. SigLIP 2's zero-shot numbers are on 21,000 images of 96 topics,
        which may differ from the images of both tables.
    """

    path: str
    tables: tuple[str, ...] = (DOLLAR_STREET_TRAIN, DOLLAR_STREET_TEST)

    def open(self) -> Examples:
        """Reads the tables; images are read one by one later.

        Raises:
          ValueError: a table is missing or malformed, or the first image is not there.
        """
        columns = "imageRelPath", "imagenet_sysnet_id", "country.id", "region.id", "income"
        root, rows = epath.Path(self.path), []
        for name in self.tables:
            for i, row in enumerate(read_table(root / name, columns), 1):
                where = f"{root / name}, row {i}"
                fields = {
                    "classes": _class_numbers(row["imagenet_sysnet_id"], where),
                    "country": row["country.id"],
                    "region": row["region.id"],
                    "income": _income(row["income"], where),
                }
                rows.append((root / row["imageRelPath"], fields))
        return TableImages(rows, root / ", ".join(self.tables))


def _class_numbers(text: str, where: str) -> list[int]:
    try:
        numbers = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        numbers = None
    if not (isinstance(numbers, list) and numbers and all(type(x) is int for x in numbers)):
        raise ValueError(
            f"{where}: imagenet_sysnet_id is {text!r:.60}; expected numbers of classes, as in [904]"
        )
    return numbers


def _income(text: str, where: str) -> float:
    try:
        income = float(text)
    except ValueError:
        income = math.nan
    if not income >= 0:
        raise ValueError(f"{where}: income is {text!r:.60}; expected dollars a month")
    return income


@dataclass(frozen=True)
class GeoDE:
    """Images of 40 kinds of objects from 6 regions of the world (Ramaswamy et al., 2301.02560).

    `index.csv` has a row an image: `file_path` (within `images/`), `object`, `region` and
    `ip_country` or `country`. Examples have the fields `object` (with spaces), `region` and
    `country`.

    Attributes:
      path: the directory, local or `gs://`.
      part: "train" is a third of the images, chosen by a hash of the path, "test" the rest; the
        parts that published 10-shot numbers used are not known.
      least: leaves out, from every part, countries with fewer images than this in "train": some
        have a handful.
    """

    path: str
    part: Part = "all"
    least: int = 0

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise ValueError(f"GeoDE.part is {self.part!r}; expected 'all', 'train' or 'test'")

    def open(self) -> Examples:
        """Reads the table; images are read one by one later.

        Raises:
          ValueError: the table is missing or malformed, or the first image is not there.
        """
        root = epath.Path(self.path)
        table = read_table(root / "index.csv", ("file_path", "object", "region"))
        country = "country" if table and "country" in table[0] else "ip_country"
        if table and table[0].get(country) is None:
            raise ValueError(f"{root / 'index.csv'}: there is no column 'country' or 'ip_country'")
        rows, train_counts = [], dict.fromkeys((row[country] for row in table), 0)
        for row in table:
            digest = hashlib.sha256(row["file_path"].encode()).digest()
            part = "test" if int.from_bytes(digest[:8], "big") % _TRAIN_SHARE else "train"
            train_counts[row[country]] += part == "train"
            if self.part in ("all", part):
                kind = row["object"].replace("_", " ")
                fields = {"object": kind, "region": row["region"], "country": row[country]}
                rows.append((root / "images" / row["file_path"], fields))
        rows = [row for row in rows if train_counts[row[1]["country"]] >= self.least]
        return TableImages(rows, root / "index.csv")


@dataclass(frozen=True)
class Landmarks:
    """Test images of Google Landmarks v2 that show a landmark (Weyand et al., arXiv 2004.01804).

    `recognition_solution_v2.1.csv` has a row an image: `id` and `landmarks` (numbers with spaces
    between them; empty, and the image left out, where it shows none). `train_label_to_category.csv`
    has `landmark_id` and `category`, an address that ends in the landmark's name. Images are
    `test/a/b/c/abc….jpg`, by the first letters of their ids. Examples have the field `landmark`, a
    list of names.

    Attributes:
      path: the directory with both tables and `test/`, local or `gs://`.
    """

    path: str

    def open(self) -> Examples:
        """Reads the tables; images are read one by one later.

        Raises:
          ValueError: a table is missing or malformed, or the first image is not there.
        """
        root = epath.Path(self.path)
        labels = root / "train_label_to_category.csv"
        categories = {
            row["landmark_id"]: row["category"]
            for row in read_table(labels, ("landmark_id", "category"))
        }
        table, rows = root / "recognition_solution_v2.1.csv", []
        for row in read_table(table, ("id", "landmarks")):
            numbers, image = row["landmarks"].split(), row["id"]
            if unknown := [number for number in numbers if number not in categories]:
                raise ValueError(
                    f"{labels}: there is no landmark {unknown[0]}, which {image} shows"
                )
            if numbers:
                names = [_landmark_name(categories[number]) for number in numbers]
                rows.append((root / "test" / "/".join(image[:3]) / f"{image}.jpg", names))
        return TableImages([(path, {"landmark": names}) for path, names in rows], table)


def _landmark_name(category: str) -> str:
    """`http://commons.wikimedia.org/wiki/Category:Eiffel_Tower` to "Eiffel Tower"."""
    return unquote(category).rpartition("Category:")[2].replace("_", " ").strip()
