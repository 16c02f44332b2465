"""A dataset prepared by TFDS without TensorFlow, read back through our source."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.samples import picture

from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.item import Columns
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.data.tfds import Tfds
from siglip2_jax.preprocess.image import ImagePreprocessor

COUNT = 5


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with captions in three shapes, and a class."""

    # A module of a package would make TFDS 4.9.10 import importlib_resources, which it does not
    # require.
    __module__ = "pictures"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "title": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "annotations": tfds.features.Sequence(
                {"text": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
            ),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "thumbnail": tfds.features.Image(encoding_format="png"),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            texts = [f"text {i} {j}" for j in range(i)]
            yield (
                i,
                {
                    "image": io.BytesIO(picture(i)),
                    "title": f"title {i} é",
                    "captions": texts,
                    "annotations": [{"text": text, "id": 7} for text in texts],
                    "label": i % 2,
                    "thumbnail": io.BytesIO(picture(i, kind="PNG")),
                },
            )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    builder = Pictures(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return str(builder.data_path)


def numbered(examples):
    """Each example with the number its image tells; TFDS shuffles what it writes."""
    figures = {picture(i): i for i in range(COUNT)}
    return {figures[examples[n]["image"]]: examples[n] for n in range(len(examples))}


@pytest.mark.parametrize("field", ["captions", "annotations/text"])
def test_captions(directory, field):
    examples = Tfds("pictures", "train", directory, captions=field).open()
    found = numbered(pickle.loads(pickle.dumps(examples)))
    for i in range(COUNT):
        assert found[i]["captions"] == tuple(f"text {i} {j}" for j in range(i))
        assert found[i]["label"] == i % 2 and found[i]["title"] == f"title {i} é"
        assert found[i]["thumbnail"] == picture(i, kind="PNG")
    names = {example["name"] for example in found.values()}
    assert names == {f"pictures:train[{n}]" for n in range(COUNT)}


def test_text_and_template(directory):
    found = numbered(Tfds("pictures", "train", directory, captions="title").open())
    assert found[3]["captions"] == ("title 3 é",)
    source = Tfds("pictures", "train[:3]", directory, template="a photo of a {label}, {title}")
    found = numbered(source.open())
    assert len(found) == 3
    for i, example in found.items():
        assert example["captions"] == (f"a photo of a {('cat', 'dog')[i % 2]}, title {i} é",)


def test_items(directory, monkeypatch):
    monkeypatch.setattr("siglip2_jax.data.items.kinds.ROWS", 2)
    columns = Columns(caption="title", fields=("label",))
    for spec, count in (("train", COUNT), ("train[:3]", 3)):
        shards = find_items([f"tfds:{directory}:{spec}"], columns)
        assert [(x.first, x.last) for x in shards][-1] == ((count - 1) // 2 * 2, count)
        with ItemReader(shards, ImagePreprocessor(4, None), columns=columns) as reader:
            items = [item for batch in reader for item in batch.items]
        assert [x.id for x in items] == [f"{directory}:{spec}[{n}]" for n in range(count)]
        numbers = [int(x.caption.split()[1]) for x in items]
        assert [x.fields for x in items] == [{"label": i % 2} for i in numbers]
        assert len(set(numbers)) == count and not any(x.error for x in items)
    (shard,) = find_items([f"tfds:{directory}:train[:1]"])
    assert shard.source.captions == "captions"
    with pytest.raises(ValueError, match=r"has no column 'x'; its columns are .*title"):
        find_items([f"tfds:{directory}:train"], Columns(id="x"))


def test_no_captions(directory):
    examples = Tfds("pictures", "train", directory, captions=None).open()
    assert examples[0]["captions"] == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "pictures:test cannot be opened in"),
        (
            {"image": "photo"},
            "pictures:train has no field photo; its fields are annotations, captions, image",
        ),
        ({"captions": "texts"}, "pictures:train has no field texts"),
        ({"template": "a {breed}"}, "needs the field 'breed'"),
        ({"directory": "absent"}, "pictures:train cannot be opened in absent"),
    ],
)
def test_mistakes_are_named(directory, options, message):
    with pytest.raises(ValueError, match=message) as error:
        Tfds(**{"name": "pictures", "split": "train", "directory": directory, **options}).open()
    assert "\n" not in str(error.value)


def test_a_field_that_holds_no_captions(directory):
    examples = Tfds("pictures", "train", directory, captions="title/text").open()
    with pytest.raises(ValueError, match=r"pictures:train\[0\]: there is no field title/text"):
        examples[0]
