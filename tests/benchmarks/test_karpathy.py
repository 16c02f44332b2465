"""Karpathy's splits, read from small files in the published layout."""

import json

import numpy as np
import pytest

from siglip2_jax.benchmarks.karpathy import Karpathy, read_karpathy
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.testing import StandInEmbedder


def entry(name, split, captions, **more):
    sentences = [{"raw": text, "tokens": text.split(), "sentid": 0} for text in captions]
    return {"filename": name, "split": split, "sentences": sentences, "imgid": 0} | more


COCO = [
    entry("COCO_1.jpg", "test", ["A dog. ", "a dog", "a dog"], filepath="val2014"),
    entry("COCO_2.jpg", "restval", ["a cat"], filepath="val2014"),
    entry("COCO_3.jpg", "test", ["a bird", "A bird"], filepath="train2014"),
]


@pytest.fixture
def write(tmp_path):
    def write(found, name="dataset.json"):
        text = found if isinstance(found, str) else json.dumps(found)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_split_keeps_order_and_every_caption(write):
    path = write({"dataset": "coco", "images": COCO})
    paths, captions = read_karpathy(path, "/photos")
    assert paths == ["/photos/val2014/COCO_1.jpg", "/photos/train2014/COCO_3.jpg"]
    assert captions == [("A dog. ", "a dog", "a dog"), ("a bird", "A bird")]
    assert read_karpathy(path, "/photos", "restval")[1] == [("a cat",)]
    flickr = write({"dataset": "flickr30k", "images": [entry("1.jpg", "val", ["x"])]})
    assert read_karpathy(flickr, "gs://bucket/photos", "val")[0] == ["gs://bucket/photos/1.jpg"]


def test_it_is_a_source_for_retrieval(write, tmp_path):
    for name in ("val2014/COCO_1.jpg", "train2014/COCO_3.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    source = Karpathy(write({"images": COCO}), str(tmp_path))
    opened = source.open()
    assert len(opened) == 2 and opened[1]["captions"] == ("a bird", "A bird")
    assert opened[0]["name"] == str(tmp_path / "val2014/COCO_1.jpg")
    rows = np.eye(2)
    images = {opened[i]["image"]: rows[i] for i in range(2)}
    texts = {text: rows[i] for i in range(2) for text in opened[i]["captions"]}
    assert set(Retrieval(source=source)(StandInEmbedder(images, texts)).values()) == {1.0}
    (tmp_path / "train2014/COCO_3.jpg").unlink()
    with pytest.raises(OSError, match="COCO_3.jpg"):
        Retrieval(source=source)(StandInEmbedder(images, texts))


def test_malformed_files_are_named(write, tmp_path):
    with pytest.raises(ValueError, match="none.json: no such file; expected JSON"):
        read_karpathy(str(tmp_path / "none.json"), "")
    with pytest.raises(ValueError, match="dataset.json: not JSON"):
        read_karpathy(write('{"images": ['), "")
    for found in ([], {"images": {}}):
        with pytest.raises(ValueError, match='expected an object with a list "images", as in Kar'):
            read_karpathy(write(found), "")
    bad = [{k: v for k, v in COCO[0].items() if k != gone} for gone in ("split", "filename")]
    bad += [COCO[0] | {"sentences": ["a dog"]}, COCO[0] | {"sentences": [{"raw": None}]}, []]
    for broken in bad:
        with pytest.raises(ValueError, match='image 1 has no texts "split", "filename" and "sent'):
            read_karpathy(write({"images": [COCO[0], broken]}), "")


def test_a_split_that_is_not_there(write):
    with pytest.raises(ValueError, match="none of its 3 images is in the split 'val'; it has 'res"):
        read_karpathy(write({"images": COCO}), "", "val")
