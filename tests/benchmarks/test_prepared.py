"""Datasets in TFDS's layout give the numbers of the same photos in folders."""

import io
import json
import re
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.samples import picture

from siglip2_jax.benchmarks.suite import Entry, Suite, evaluate
from siglip2_jax.benchmarks.tasks.base import Setting
from siglip2_jax.benchmarks.tasks.catalogue import choose_tasks
from siglip2_jax.benchmarks.tasks.prepared import IMAGENET, imagenet_images
from siglip2_jax.testing import tiny_embedder

IMAGE, TEXT = tfds.features.Image(encoding_format="jpeg"), tfds.features.Text()
WORDNET = tuple(f"n{i:08d}" for i in range(1000))
TABLE = np.random.default_rng(0).standard_normal((1000, 32))
BROKEN = b"no photo"


def prepare(directory, dataset, features, splits, version="1.0.0"):
    """Files as TFDS writes them; `dataset` may have a config ("imagenet_v2/matched-frequency")."""
    title, _, config = dataset.partition("/")
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            __module__ = "prepared"  # as in tests/data/test_tfds.py
            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
            name = title

            def _info(self):
                found = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=found)

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(rows) for split, rows in splits.items()}

            def _generate_examples(self, rows):
                for i, row in enumerate(rows):
                    yield i, row | {"image": io.BytesIO(row["image"])}

    builder = Builder(data_dir=str(directory), file_format="array_record")
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=options)
    return directory / dataset / version


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Seeing:
    """Sees of each photo the class it is painted as; a prompt's class is the number in it."""

    def __init__(self, painted):
        self._painted = painted

    def embed_images(self, images, **_):
        rows = [self._row(x.image) for x in images]
        return np.array(rows, np.float32)

    def _row(self, image):
        if image == BROKEN:
            return np.full(32, np.nan)
        noise = np.random.default_rng(zlib.crc32(image)).standard_normal(32)
        return TABLE[self._painted[image]] + noise / 8

    def embed_texts(self, texts, **_):
        rows = TABLE[[int(re.search(r"\d+", text)[0]) for text in texts]]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def image_features(self, images, **_):
        raise NotImplementedError


# Class, and what the model sees; the third is seen as another class, the last cannot be read.
VALIDATION = ((3, 3), (17, 17), (3, 17), (999, 999), (10, 10), (2, 2), (2, None))
PHOTOS = tuple(BROKEN if s is None else picture(i) for i, (_, s) in enumerate(VALIDATION))
TRAIN = tuple((label, picture(100 * label + i)) for label in (2, 3, 10, 17, 999) for i in range(10))


@pytest.fixture(scope="module")
def painted():
    seen = {photo: s for photo, (_, s) in zip(PHOTOS, VALIDATION, strict=True) if s is not None}
    return Seeing(seen | {photo: label for label, photo in TRAIN})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The same photos in folders, and as TFDS has them, with the same files beside them."""
    root = tmp_path_factory.mktemp("imagenet")
    plain, prepared = root / "plain", root / "tensorflow_datasets"
    rows = {"train": [], "validation": []}
    v2 = plain / "imagenet_v2" / "imagenetv2-matched-frequency-format-val"
    for number, name in enumerate(WORDNET):
        for part in ("train", "val"):
            (plain / "imagenet" / part / name).mkdir(parents=True)
        (v2 / str(number)).mkdir(parents=True)
    for i, ((label, _), photo) in enumerate(zip(VALIDATION, PHOTOS, strict=True)):
        file = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        write(plain / "imagenet" / "val" / WORDNET[label] / file, photo)
        write(v2 / str(label) / file, photo)
        rows["validation"].append({"image": photo, "label": label, "file_name": file})
    for i, (label, photo) in enumerate(TRAIN):
        write(plain / "imagenet" / "train" / WORDNET[label] / f"{i}.JPEG", photo)
        rows["train"].append({"image": photo, "label": label, "file_name": f"{i}.JPEG"})
    classes = tfds.features.ClassLabel(names=WORDNET)
    features = {"image": IMAGE, "label": classes, "file_name": TEXT}
    prepare(prepared, "imagenet2012", features, rows, "5.1.0")
    found = {"test": rows["validation"]}
    prepare(prepared, "imagenet_v2/matched-frequency", features, found, "3.0.0")
    beside = {
        "classnames.json": [f"class {i}" for i in range(1000)],
        "real.json": [[3], [17, 2], [17], [], [1, 2], [2, 10], [2]],
        "babel_imagenet.json": {"DE": [[3, 4, 17, 2], [f"Klasse {i}" for i in (3, 4, 17, 2)]]},
        "babel_prompts.json": {"DE": ["Bild von {}"]},
    }
    for file, value in beside.items():
        for folder in (plain / "imagenet", plain / "imagenet_v2", prepared):
            write(folder / file, json.dumps(value).encode())
    return plain, prepared


@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("imagenet", "top1", 5 / 7),
        ("imagenet_v2", "top1", 5 / 7),
        ("imagenet_real", "top1", 4 / 6),  # one has no label, one is reassessed as what is seen
        ("babel_imagenet_de", "top1", 3 / 5),
        ("imagenet_10shot", "10shot", 5 / 7),
        ("imagenet_linear", "top1", 5 / 7),
    ],
)
def test_imagenet_in_place_of_folders(imagenet, painted, name, metric, expected):
    (task,) = choose_tasks([name])
    found = []
    for data in imagenet:
        root = task.find(data)
        assert root == (data if data.name == "tensorflow_datasets" else data / task.folder)
        found.append(task.make(Setting(root=root, budget=9))(painted))
    assert found[0][metric] == found[1][metric] == pytest.approx(expected)
    assert found[0].keys() == found[1].keys()
    if task.kind == "zeroshot_classification":
        assert found[0] == found[1]


def test_which_version_is_read(tmp_path):
    for version in ("5.9.0", "5.10.0", "incomplete.ABC_6.0.0"):
        write(tmp_path / IMAGENET / version / "dataset_info.json", b"{}")
    source = imagenet_images(tmp_path, "val", IMAGENET, "validation")
    assert source.directory == str(tmp_path / IMAGENET / "5.10.0")
    (tmp_path / "val").mkdir()
    assert imagenet_images(tmp_path, "val", IMAGENET, "validation").path == str(tmp_path / "val")


def test_what_is_missing(tmp_path):
    (task,) = choose_tasks(["imagenet"])
    place = tmp_path / "imagenet"
    found = task.missing(tmp_path)
    assert found.startswith(f"{place / 'val'}, {place / 'classnames.json'}: not there; ")
    assert "or put TFDS's imagenet2012 there instead (file_format='array_record')" in found
    write(tmp_path / IMAGENET / "5.1.0" / "dataset_info.json", b"{}")
    assert task.find(tmp_path) is None
    assert task.missing(tmp_path).startswith(f"{tmp_path / 'classnames.json'}: not there; ")


def test_a_split_that_was_not_prepared(tmp_path, painted):
    row = {"image": picture(0), "label": 0}
    features = {"image": IMAGE, "label": tfds.features.ClassLabel(names=WORDNET)}
    prepare(tmp_path, IMAGENET, features, {"train": [row]})
    write(tmp_path / "classnames.json", json.dumps(WORDNET).encode())
    (task,) = choose_tasks(["imagenet"])
    evaluator = task.make(Setting(root=task.find(tmp_path), budget=9))
    with pytest.raises(ValueError, match=r"Unknown split 'validation'. Should be one of \['train'"):
        evaluator(painted)


PETS = "red_cat", "grey_dog", "bird"
PET = {
    "image": IMAGE,
    "species": tfds.features.ClassLabel(names=["mammal", "other"]),
    "label": tfds.features.ClassLabel(names=PETS),
}


def pet(i, photo=None, label=None):
    label = i % 3 if label is None else label
    return {"image": photo or picture(i), "label": label, "species": label // 2}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Photos of pets: by TFDS with labels of `test` held back, in folders, and in JSON lines."""
    root = tmp_path_factory.mktemp("pets")
    train, held = [pet(i) for i in range(30)], [pet(i) for i in range(30, 42)]
    held.append(pet(42, BROKEN))
    test = [pet(0, label=-1) | {"species": -1}]
    version = prepare(
        root, "own_pets", PET, {"train": train, "validation": held, "test": test}, "1.2.0"
    )
    lines = []
    for split, part in (("train", train), ("validation", held)):
        for i, row in enumerate(part):
            file = f"{split}{i}.jpg"
            write(root / "rows" / "images" / file, row["image"])
            fields = {"file": file, "label": PETS[row["label"]], "split": split}
            lines.append(json.dumps(fields))
            if split == "validation":
                write(root / "folders" / PETS[row["label"]] / file, row["image"])
    write(root / "rows" / "labels.jsonl", "\n".join(lines).encode())
    return version, root / "folders", root / "rows"


@pytest.fixture(scope="module")
def measure():
    model = tiny_embedder()

    def run(task, data):
        (found,) = evaluate(model, Suite((Entry(task, (9,)),)), data, pretrained="")
        return found

    return run


def test_folders_of_ones_own(pets, measure):
    version, folders, _ = pets
    prepared, plain = measure("folders", version), measure("folders", folders)
    assert prepared.metrics == plain.metrics and prepared.images == plain.images == 13
    assert prepared.protocol == plain.protocol
    (failed,) = prepared.failed
    assert failed.startswith("own_pets:validation[")
    (task,) = choose_tasks(["folders"])
    evaluator = task.make(Setting(root=version, budget=9))
    assert evaluator.classes == ("red cat", "grey dog", "bird") and evaluator.label == "label"


@pytest.mark.parametrize("task", ["10shot", "linear"])
@pytest.mark.slow
def test_probes_of_ones_own(pets, measure, task):
    """Ten training photos a class, all of which the ten shots take, whatever their order."""
    version, _, rows = pets
    prepared, plain = measure(task, version), measure(task, rows)
    assert prepared.metrics.keys() == plain.metrics.keys() and prepared.images == plain.images
    assert len(prepared.failed) == len(plain.failed) == 1
    if task == "10shot":
        assert prepared.metrics == plain.metrics


@pytest.mark.parametrize("nested", [True, False])
def test_captions_of_ones_own(tmp_path, measure, nested):
    rows = [(picture(i), [f"photo {i}", f"view {i}"][: 1 + i % 2]) for i in range(8)]
    rows.append((BROKEN, ["none"]))
    lines = []
    for i, (photo, texts) in enumerate(rows):
        write(tmp_path / "plain" / "images" / f"{i}.jpg", photo)
        lines.append(json.dumps({"file": f"{i}.jpg", "captions": texts}))
    write(tmp_path / "plain" / "captions.jsonl", "\n".join(lines).encode())
    item = {"text": TEXT, "id": tfds.features.Scalar(np.int64)} if nested else TEXT
    features = {"image": IMAGE, "captions": tfds.features.Sequence(item)}
    found = [
        {"image": photo, "captions": [{"text": x, "id": 1} if nested else x for x in texts]}
        for photo, texts in rows
    ]
    version = prepare(tmp_path, "own_captions", features, {"train": found[:2], "val": found})
    prepared, plain = measure("captions", version), measure("captions", tmp_path / "plain")
    assert prepared.metrics == plain.metrics and prepared.images == plain.images == 9
    assert prepared.failed[0].startswith("own_captions:val[")


def test_datasets_that_will_not_do(tmp_path):
    (folders, shots, captions) = choose_tasks(["folders", "10shot", "captions"])

    def mistake(task, version, message):
        assert task.find(version) == version
        with pytest.raises(ValueError, match=message) as error:
            task.make(Setting(root=version, budget=9))
        assert str(error.value).startswith(str(version)) and "\n" not in str(error.value)

    only_train = prepare(tmp_path, "only_train", PET, {"train": [pet(0)]})
    mistake(folders, only_train, "its splits are train; expected test or val or validation among")
    mistake(captions, only_train, "its fields are image, label, species; expected captions, capt")
    only_test = prepare(tmp_path, "only_test", PET, {"test": [pet(0, label=-1) | {"species": 0}]})
    mistake(folders, only_test, "the examples of its splits test have no class in label; prepare")
    mistake(shots, only_test, "its splits are test; expected train among them")
    two = {"image": IMAGE, "breed": PET["label"], "species": PET["species"]}
    row = {"image": picture(0), "breed": 0, "species": 0}
    mistake(
        folders,
        prepare(tmp_path, "two_labels", two, {"test": [row]}),
        "its class labels are breed, species, among the fields breed, image, species; expected one",
    )
    write(tmp_path / "broken" / "dataset_info.json", b"{")
    mistake(folders, tmp_path / "broken", r"cannot be opened \(.*expected a version of a dataset")
