"""Examples of calibrations as users write them."""

import json

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.evals.calibration_examples import read_examples, score
from siglip2_jax.testing import StandInEmbedder


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_labels_of_a_table(tmp_path):
    table = write(tmp_path / "a.csv", "image,label\nx.jpg,cat\ny.jpg,dog\nx.jpg,pet\n")
    judged = read_examples(table)
    assert judged.images == [str(tmp_path / "x.jpg"), str(tmp_path / "y.jpg")]
    assert judged.texts == ["cat", "dog", "pet"] and judged.labels
    matches = {pair for pair, verdict in judged.verdicts.items() if verdict}
    assert matches == {(0, 0), (0, 2), (1, 1)} and len(judged.verdicts) == 6


def test_labels_of_a_set_keep_its_order_and_have_no_example_perhaps(tmp_path):
    lines = [{"image": "x.jpg", "labels": ["cat"]}, {"image": "y.jpg", "labels": []}]
    table = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    judged = read_examples(table, ("dog", "cat"))
    assert judged.texts == ["dog", "cat"]
    assert judged.verdicts == {(0, 0): False, (0, 1): True, (1, 0): False, (1, 1): False}


def test_a_folder_for_each_label(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    judged = read_examples(str(tmp_path))
    assert judged.texts == ["cat", "dog"] and len(judged.images) == 3
    assert [judged.verdicts[i, 0] for i in range(3)] == [True, True, False]


def test_pairs_have_no_other_verdicts(tmp_path):
    table = write(
        tmp_path / "a.csv", "image,text,match\nx.jpg,a cat,yes\nx.jpg,a dog,0\ny.jpg,a cat,1"
    )
    judged = read_examples(table)
    assert judged.verdicts == {(0, 0): True, (0, 1): False, (1, 0): True} and not judged.labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,label\n", "has no rows; expected examples"),
        ("a.csv", "image,name\nx.jpg,cat\n", "line 2: expected a `label`"),
        ("a.csv", "image,label\n,cat\n", "line 2: expected an `image`"),
        ("a.csv", "image,text,match\nx.jpg,cat,perhaps\n", "in `match` true or false; found 'cat'"),
        ("a.jsonl", "[1]\n", "line 1: expected an object, found"),
        ("a.txt", "x.jpg cat\n", "ends in .csv or .jsonl"),
    ],
)
def test_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_examples(write(tmp_path / name, text))


def test_a_label_outside_the_set_is_refused(tmp_path):
    table = write(tmp_path / "a.csv", "image,label\nx.jpg,cow\n")
    with pytest.raises(ValueError, match="has the label 'cow', which is not among the 2 labels"):
        read_examples(table, ("cat", "dog"))


def test_cosines_of_readable_images(tmp_path):
    table = write(tmp_path / "a.csv", "image,label\nx,cat\nbroken,cat\ny,dog\n")
    rows = {str(tmp_path / "x"): [0.6, 0.8], str(tmp_path / "y"): [1.0, 0.0]}
    rows[str(tmp_path / "broken")] = [np.nan, np.nan]
    model = StandInEmbedder(
        {k: np.array(x) for k, x in rows.items()},
        {"a cat": np.array([1.0, 0.0]), "a dog": np.array([0.0, 1.0])},
    )
    pairs, unreadable = score(model, read_examples(table), ["a {}"], max_num_patches=16)
    assert unreadable == 1
    np.testing.assert_allclose(pairs.cosines, [0.6, 0.8, 1.0, 0.0], atol=1e-7)
    assert pairs.matches.tolist() == [True, False, False, True]
    assert pairs.image.tolist() == [0, 0, 1, 1]
