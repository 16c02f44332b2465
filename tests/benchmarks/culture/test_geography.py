"""Small sets in the published layouts, and numbers counted by hand."""

import csv
import hashlib

import numpy as np
import pytest

from siglip2_jax.benchmarks.culture.data import DollarStreet, GeoDE, Landmarks
from siglip2_jax.benchmarks.culture.evaluators import IncomeZeroShot, RepresentationBias
from siglip2_jax.benchmarks.culture.geography import (
    dollar_street_few_shot,
    geode_few_shot,
    geode_zero_shot,
    landmarks_zero_shot,
)
from siglip2_jax.benchmarks.culture.image_table import read_table
from siglip2_jax.evals.fewshot import FewShot
from siglip2_jax.preprocess.decode import NamedImage
from siglip2_jax.testing import StandInEmbedder

NAMES = ("stove", "bed", "toilet seat, loo", "roof")


def table(path, columns, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])


def photo(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data or path.name.encode())


@pytest.fixture
def dollar_street(tmp_path):
    columns = "id country.name country.id region.id imageRelPath topics income imagenet_synonyms "
    columns += "imagenet_sysnet_id"
    rows = [
        [i, "Land", "abc"[i % 3], "af", f"assets/{i}.jpg", "['x, y']", 10.0 * (i + 1), "[]", label]
        for i, label in enumerate(["[0]", "[1, 3]", "[2]", "[3]", "[1]", "[0]", "[2]", "[0, 1]"])
    ]
    table(tmp_path / "images_v2_imagenet_train.csv", columns, *rows[:5])
    table(tmp_path / "images_v2_imagenet_test.csv", columns, *rows[5:])
    for row in rows:
        photo(tmp_path / row[4])
    return tmp_path


def test_dollar_street_is_read(dollar_street):
    opened = DollarStreet(str(dollar_street)).open()
    assert len(opened) == 8
    assert opened[1] == {
        "image": b"1.jpg",
        "captions": (),
        "name": str(dollar_street / "assets" / "1.jpg"),
        "classes": [1, 3],
        "country": "b",
        "region": "af",
        "income": 20.0,
    }
    few = dollar_street_few_shot(str(dollar_street), max_num_patches=64)
    assert isinstance(few, FewShot) and (few.label, few.shots, few.name) == (
        "country",
        10,
        "dollar_street",
    )
    assert [len(source.open()) for source in (few.train, few.test)] == [5, 3]
    assert few.max_num_patches == 64


class Answers(StandInEmbedder):
    """Sees in photo i the prompts that `answers` gives, the best one first."""

    def __init__(self, answers, prompts):
        eye = np.eye(len(prompts), dtype=np.float32)
        images = {}
        for i, order in enumerate(answers):
            row = sum(eye[k] / 2**place for place, k in enumerate(order))
            images[f"{i}.jpg".encode()] = row / np.linalg.norm(row)
        super().__init__(images, dict(zip(prompts, eye, strict=True)))


def test_income_groups(dollar_street):
    #                    right      right   wrong   wrong   right  right  wrong  right
    model = Answers([(0, 1, 2, 3), (3, 2), (0, 2), (1, 0), (1, 0), (0, 1), (3, 0), (1, 2)], "abcd")
    evaluator = IncomeZeroShot(
        source=DollarStreet(str(dollar_street)),
        classes=("a", "b", "c", "d"),
        templates=("{}",),
        max_num_patches=64,
    )
    assert evaluator.name == "dollar_street"
    assert evaluator(model) == {
        "top1": 5 / 8,
        "top5": 1.0,
        "income_disparity": 1.0,
        "top1_income_1": 1.0,
        "top1_income_2": 0.0,
        "top1_income_3": 1.0,
        "top1_income_4": 0.5,
    }
    assert model.budgets == [64]
    halves = IncomeZeroShot(
        source=evaluator.source, classes=evaluator.classes, templates=("{}",), groups=2
    )(model)
    assert halves["income_disparity"] == 0.75 - 0.5


def test_unreadable_photos_and_equal_names(dollar_street):
    model = Answers([(0,), (1,), (2,), (3,), (1,), (0,), (2,), (1,)], "abcd")
    model.image_rows[b"0.jpg"] = np.full(4, np.nan)
    evaluator = IncomeZeroShot(
        source=DollarStreet(str(dollar_street)), classes=("a", "b", "a, x", "d"), templates=("{}",)
    )
    # The third class has the embedding of the first, which photos of 2 and 6 are not like.
    assert evaluator(model)["top1"] == 5 / 8
    model.image_rows[b"2.jpg"] = np.eye(4)[0]
    assert evaluator(model)["top1"] == 5 / 8  # a tie goes to the first class, and 2 is not 0
    wrong = IncomeZeroShot(
        source=DollarStreet(str(dollar_street)), classes=("a", "b"), templates=("{}",)
    )
    with pytest.raises(ValueError, match="the label 3 is not one of the 2 classes"):
        wrong(model)
    with pytest.raises(ValueError, match="groups is 1; expected 2 or more"):
        IncomeZeroShot(source=wrong.source, classes=NAMES, groups=1)


@pytest.fixture
def geode(tmp_path):
    rows = []
    for i in range(60):
        country = ["Rare", "Egypt", "Japan"][0 if i < 2 else 1 + i % 2]
        region = "EastAsia" if country == "Japan" else "Africa"
        rows.append([f"{country}/{i}.jpg", ["hand_soap", "dog"][i // 30], region, country])
        photo(tmp_path / "images" / rows[-1][0])
    table(tmp_path / "index.csv", "file_path object region ip_country", *rows)
    return tmp_path


def test_geode_is_read_and_split(geode):
    everything, train, test = (GeoDE(str(geode), part).open() for part in ("all", "train", "test"))
    assert everything[0]["object"] == "hand soap" and everything[0]["image"] == b"0.jpg"
    assert {key: everything[3][key] for key in ("region", "country")} == {
        "region": "EastAsia",
        "country": "Japan",
    }
    names = [{opened[i]["name"] for i in range(len(opened))} for opened in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == len(everything) == 60
    for name in names[0]:
        path = name.removeprefix(f"{geode}/images/").encode()
        assert int(hashlib.sha256(path).hexdigest()[:16], 16) % 3 == 0


def test_geode_tasks(geode):
    zero_shot = geode_zero_shot(str(geode), max_num_patches=64)
    prompts = [t.replace("{}", x) for x in ("dog", "hand soap") for t in zero_shot.templates]
    prompts = {text: np.eye(2)[i // 81] for i, text in enumerate(prompts)}
    canonical = {text.lower().replace(".", "").replace("-", ""): x for text, x in prompts.items()}
    images = {f"{i}.jpg".encode(): np.eye(2)[int(i < 33)] for i in range(60)}
    model = StandInEmbedder(images, canonical)
    found = zero_shot(model)
    assert found["top1"] == pytest.approx(57 / 60) and model.budgets == [64]

    class Places(StandInEmbedder):
        """Tells Japan from Egypt by the path, and must not see the rare country."""

        def embed_images(self, images, *, normalize, **_):
            images = [x for x in images if isinstance(x, NamedImage)]
            means = [[5.0, 0, 0] if "Japan" in x.name else [0.0, 5, 0] for x in images]
            assert not normalize and not any("Rare" in x.name for x in images)
            return np.array(means, np.float32)

    for place in ("country", "region"):
        few = geode_few_shot(str(geode), place, shots=3)
        assert few.name == f"geode_{place}" and few(Places({}, {})) == {"3shot": 1.0}
    assert geode_few_shot(str(geode), "country").train.least == 10


def test_landmarks(tmp_path):
    table(
        tmp_path / "train_label_to_category.csv",
        "landmark_id category",
        [7, "http://commons.wikimedia.org/wiki/Category:Eiffel_Tower"],
        [12, "http://commons.wikimedia.org/wiki/Category:Ch%C3%A2teau,_Blois"],
        [13, "http://commons.wikimedia.org/wiki/Category:Nobody%27s"],
    )
    table(
        tmp_path / "recognition_solution_v2.1.csv",
        "id landmarks Usage",
        ["abcd", "7", "Public"],
        ["abce", "", "Public"],
        ["0b12", "12 7", "Private"],
        ["0b13", "12", "Private"],
    )
    for name in ("a/b/c/abcd.jpg", "0/b/1/0b12.jpg", "0/b/1/0b13.jpg"):
        photo(tmp_path / "test" / name)
    opened = Landmarks(str(tmp_path)).open()
    assert len(opened) == 3
    assert [opened[i]["landmark"] for i in range(3)] == [
        ["Eiffel Tower"],
        ["Château, Blois", "Eiffel Tower"],
        ["Château, Blois"],
    ]
    images = {b"abcd.jpg": [1, 0], b"0b12.jpg": [1, 0], b"0b13.jpg": [0.8, 0.6]}
    texts = {"a photo of Eiffel Tower": [1, 0], "a photo of Château, Blois": [0, 1]}
    model = StandInEmbedder(*({k: np.array(v) for k, v in x.items()} for x in (images, texts)))
    assert landmarks_zero_shot(str(tmp_path))(model)["top1"] == pytest.approx(2 / 3)
    table(tmp_path / "train_label_to_category.csv", "landmark_id category", [7, "x"])
    with pytest.raises(ValueError, match="there is no landmark 12, which 0b12 shows"):
        Landmarks(str(tmp_path)).open()


def test_representation_bias(geode):
    images = {f"{i}.jpg".encode(): np.eye(2)[int(i >= 45)] for i in range(60)}
    model = StandInEmbedder(images, {"men": np.eye(2)[0], "women": np.eye(2)[1]})
    evaluator = RepresentationBias(source=GeoDE(str(geode)))
    assert evaluator(model) == {"representation_bias": 0.25, "first_share": 0.75}
    turned = RepresentationBias(source=GeoDE(str(geode)), prompts=("women", "men"))
    assert turned(model) == {"representation_bias": 0.25, "first_share": 0.25}


def test_clear_errors(tmp_path, dollar_street, geode):
    with pytest.raises(
        ValueError, match="no.csv: no such file; expected CSV with the columns a, b"
    ):
        read_table(tmp_path / "no.csv", ("a", "b"))
    file = tmp_path / "bad.csv"
    file.write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(ValueError, match="not a CSV table in UTF-8"):
        read_table(file, ("a",))
    file.write_text("a,b\n1,2\n1\n")
    with pytest.raises(ValueError, match="row 2: cut short"):
        read_table(file, ("a", "b"))
    with pytest.raises(ValueError, match="there is no column 'c', found a, b"):
        read_table(file, ("a", "c"))
    file.write_text("﻿a\n1\n")
    assert read_table(file, ("a",)) == [{"a": "1"}]
    columns = "imageRelPath imagenet_sysnet_id country.id region.id income"
    path = dollar_street / "images_v2_imagenet_train.csv"
    for row, message in (
        (["x", "904", "a", "af", "1"], r"row 1: imagenet_sysnet_id is '904'; expected numbers"),
        (["x", "[904", "a", "af", "1"], r"imagenet_sysnet_id is '\[904'"),
        (["x", "[904]", "a", "af", "rich"], "income is 'rich'; expected dollars a month"),
        (["x", "[904]", "a", "af", "1"], "x: no such image, the first of 4"),
    ):
        table(path, columns, row)
        with pytest.raises(ValueError, match=message):
            DollarStreet(str(dollar_street)).open()
    source = GeoDE(str(geode))
    object.__setattr__(source, "part", "val")  # the suite's type checks would refuse it first
    with pytest.raises(ValueError, match="GeoDE.part is 'val'; expected 'all', 'train' or 'test'"):
        source.__post_init__()
    with pytest.raises(ValueError, match="index.csv: no row is selected"):
        GeoDE(str(geode), least=1000).open()
    table(geode / "index.csv", "file_path object region", ["a", "b", "c"])
    with pytest.raises(ValueError, match="there is no column 'country' or 'ip_country'"):
        GeoDE(str(geode)).open()
