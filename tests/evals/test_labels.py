"""Labelled sets in their published layouts, in miniature."""

import json

import pytest

from siglip2_jax.data.sources import Described, Memory
from siglip2_jax.evals.labels import ClassFolders, ReaL, objectnet_classes


def touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fields(source, *keys):
    opened = source.open()
    return [tuple(opened[i][key] for key in keys) for i in range(len(opened))]


def test_folders_are_classes_in_order(tmp_path, caplog):
    for i, name in enumerate(("n02/b.JPEG", "n01/z.png", "n02/a.JPEG", "n10/deeper/c.jpg")):
        touch(tmp_path / name, bytes([i]))
    touch(tmp_path / "flat.jpg")
    for hidden in (".hidden", "__MACOSX", "n01/.ipynb_checkpoints"):
        touch(tmp_path / hidden / "d.jpg")
    touch(tmp_path / "n01" / "notes.txt")
    (tmp_path / "n03").mkdir()  # without images, it is a class still
    source = ClassFolders(str(tmp_path), count=4)
    assert fields(source, "label", "folder", "image", "captions") == [
        (0, "n01", b"\x01", ()),
        (1, "n02", b"\x02", ()),
        (1, "n02", b"\x00", ()),
        (3, "n10", b"\x03", ()),
    ]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"{tmp_path}: 1 other file is passed over (1 .txt)",
        f"{tmp_path}: images in no folder are passed over (1)",
    ]
    assert fields(source, "name")[0] == (str(tmp_path / "n01" / "z.png"),)
    opened = source.open()
    (tmp_path / "n01" / "z.png").unlink()  # which is not looked for
    known = opened.without_image(0)
    assert known["label"] == 0 and known["image"] == b"" and isinstance(opened, Described)
    with pytest.raises(ValueError, match="found 4 folders, expected 1000"):
        ClassFolders(str(tmp_path), count=1000).open()


def test_numbers_are_their_own_labels(tmp_path):
    """ImageNet-v2's folders, which do not sort as numbers do."""
    for name in ("0", "2", "10", "999"):
        touch(tmp_path / name / "a.jpeg")
    assert fields(ClassFolders(str(tmp_path)), "folder", "label") == [
        ("0", 0),
        ("10", 10),
        ("2", 2),
        ("999", 999),
    ]


def test_directories_that_are_none_of_this(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        ClassFolders(str(tmp_path / "nowhere")).open()
    touch(tmp_path / "flat.jpg")
    with pytest.raises(ValueError, match="found 0 folders, expected one for each class"):
        ClassFolders(str(tmp_path)).open()
    (tmp_path / "n01").mkdir()
    with pytest.raises(ValueError, match="there is no image in its 1 folders"):
        ClassFolders(str(tmp_path)).open()


def validation(*names):
    rows = ({"image": b"x", "captions": (), "name": name} for name in names)
    return Memory(tuple(rows))


def test_real_labels_go_by_the_number_in_the_name(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[65], [], [1, 2]]))
    names = ("val/n1/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001.JPEG")
    source = ReaL(validation(*names), str(path))
    assert fields(source, "real", "image") == [([1, 2], b"x"), ([65], b"x")]
    named = Memory(
        ({"image": b"", "captions": (), "name": "t[0]", "file_name": "ILSVRC2012_val_00000002"},)
    )
    assert fields(ReaL(named, str(path)), "real") == [([],)]
    with pytest.raises(ValueError, match="cat.jpg: there is no ILSVRC2012_val_NNNNNNNN in its"):
        ReaL(validation("cat.jpg"), str(path)).open()[0]
    with pytest.raises(ValueError, match="00000004.JPEG: .*real.json has labels for 1 to 3 only"):
        ReaL(validation("ILSVRC2012_val_00000004.JPEG"), str(path)).open()[0]


@pytest.mark.parametrize("value", [{"a": [1]}, [1, 2], [[1], ["2"]]])
def test_malformed_real_labels(tmp_path, value):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="real.json: expected a list with a list of class numbers"):
        ReaL(validation("a"), str(path)).open()


OBJECTNET = {
    "folder_to_objectnet_label.json": {
        "alarm_clock": "Alarm clock",
        "dress_shoe_men": "Dress shoe (men)",
        "banana": "Banana",
        "air_freshener": "Air freshener",  # not in ImageNet
    },
    "objectnet_to_imagenet_1k.json": {
        "Banana": "banana",
        "Dress shoe (men)": "Loafer",
        "Alarm clock": "digital clock; analog clock, clock",
    },
    # ImageNet's numbers in the order of WordNet ids, to lines of the file of labels, from 0.
    "pytorch_to_imagenet_2012_id.json": {"0": 3, "1": 0, "2": 2, "3": 1, "4": 4},
}
LINES = ["digital clock", "Loafer", "tench", "analog clock, clock", "banana"]
NAMES = ("analog clock", "digital clock", "tench", "loafer", "banana")


@pytest.fixture
def mappings(tmp_path):
    for name, value in OBJECTNET.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "imagenet_to_label_2012_v2").write_text("\n".join(LINES) + "\n")
    return tmp_path


def test_objectnet_by_its_own_names(mappings):
    classes = objectnet_classes(mappings)
    assert classes.names == ("Alarm clock", "Banana", "Dress shoe (men)")
    assert classes.labels == ("alarm_clock", "banana", "dress_shoe_men")
    assert classes.positions(["air_freshener"]) == ()


def test_objectnet_by_imagenets_names(mappings):
    classes = objectnet_classes(mappings, NAMES)
    assert classes.names == ("analog clock", "digital clock", "loafer", "banana")
    assert classes.positions(["alarm_clock"]) == (0, 1)
    assert classes.positions(["dress_shoe_men"]) == (2,) and classes.positions(["banana"]) == (3,)


def test_objectnet_files_that_do_not_fit(mappings):
    with pytest.raises(ValueError, match="do not fit together or with the 2 names of ImageNet"):
        objectnet_classes(mappings, NAMES[:2])
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(LINES[:3]))
    with pytest.raises(ValueError, match="do not fit together"):
        objectnet_classes(mappings, NAMES)
    (mappings / "imagenet_to_label_2012_v2").unlink()
    with pytest.raises(ValueError, match="imagenet_to_label_2012_v2: no such file"):
        objectnet_classes(mappings, NAMES)
    (mappings / "folder_to_objectnet_label.json").write_text('{"banana": "Banana"}')
    with pytest.raises(ValueError, match="no folder is called 'Alarm clock'"):
        objectnet_classes(mappings)
    (mappings / "objectnet_to_imagenet_1k.json").write_text('{"banana": 3}')
    with pytest.raises(ValueError, match="1k.json: expected an object whose values are texts"):
        objectnet_classes(mappings)
