"""RefCOCO's published files: what is in them, what is held out, and pickles that run programs."""

import json
import os
import pickle

import pytest
from PIL import Image

from siglip2_jax.benchmarks.decoder.expressions import held_out_images
from siglip2_jax.benchmarks.decoder.refer_files import Refer, published_splits, read_plain_pickle

FILE = "COCO_train2014_{:012d}.jpg"
SPLITS = {1: "train", 2: "val", 3: "testA", 4: "testB"}


def ref(photo, split, *texts):
    sentences = [{"sent": text, "raw": text.upper(), "sent_id": i} for i, text in enumerate(texts)]
    return {"image_id": photo, "ann_id": 10 * photo, "split": split, "sentences": sentences}


def write_set(folder, refs, split_by="unc"):
    folder.mkdir(parents=True)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    photos = [{"id": i, "file_name": FILE.format(i), "width": 40, "height": 20} for i in SPLITS]
    annotations = [{"id": 10 * i, "image_id": i, "bbox": [8, 2, 20 + i, 8]} for i in SPLITS]
    instances = {"images": photos, "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(instances))


@pytest.fixture
def refcoco(tmp_path):
    refs = [ref(i, split, "a dog", f"number {i}") for i, split in SPLITS.items()]
    write_set(tmp_path / "refcoco", refs)
    (tmp_path / "photos").mkdir()
    for i in SPLITS:
        Image.new("RGB", (40, 20)).save(tmp_path / "photos" / FILE.format(i))
    return tmp_path


def test_published_files(refcoco):
    photos = str(refcoco / "photos")
    columns = published_splits(str(refcoco), photos)
    assert " ".join(columns) == (
        "refcoco_val refcoco_testA refcoco_testB refcoco+_val refcoco+_testA refcoco+_testB "
        "refcocog_val refcocog_test"
    )
    assert columns["refcocog_test"] == Refer(str(refcoco / "refcocog"), photos, "umd", "test")
    source = columns["refcoco_testA"]
    first, second = source.open()
    assert (first.text, second.text) == ("a dog", "number 3")
    assert first.image == second.image == os.path.join(photos, FILE.format(3))
    assert first.image_id == 3 and first.box == pytest.approx((0.1, 0.2, 0.5, 0.775), abs=1e-15)


def test_photos_of_2017_have_other_names(refcoco):
    source = Refer(str(refcoco / "refcoco"), str(refcoco / "photos"))
    for i in SPLITS:
        old = refcoco / "photos" / FILE.format(i)
        old.rename(old.with_name(f"{i:012d}.jpg"))
    assert source.open()[0].image == str(refcoco / "photos" / "000000000002.jpg")
    (refcoco / "photos" / "000000000002.jpg").unlink()
    with pytest.raises(ValueError, match="neither COCO_train2014_0*2.jpg nor 0*2.jpg is there"):
        source.open()


def test_what_any_set_holds_out_is_held_out(refcoco):
    write_set(refcoco / "refcocog", [ref(1, "test", "x"), ref(2, "train", "x")], "umd")
    sources = [
        Refer(str(refcoco / name), "photos", by)
        for name, by in (("refcoco", "unc"), ("refcocog", "umd"))
    ]
    assert [source.held_out() for source in sources] == [{2, 3, 4}, {1}]
    assert held_out_images(sources) == {1, 2, 3, 4}


def test_pickles_run_nothing(tmp_path):
    path, mark = tmp_path / "refs(unc).p", tmp_path / "mark"

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    programs = [pickle.dumps(x, protocol) for x in ([Bad()], {1}, range(3)) for protocol in (0, 2)]
    for program in (*programs, b"cos\nsystem\n."):
        path.write_bytes(program)
        with pytest.raises(ValueError, match=r"refs\(unc\).p: not a pickle of plain .*it names"):
            read_plain_pickle(str(path))
    assert not mark.exists()


def test_pickles_of_python_2(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9 \\xff'\np3\nsS'id'\np4\nL7L\nsa.")
    assert read_plain_pickle(str(path)) == [{"sent": "café \ufffd", "id": 7}]
    for damaged in (b"", b"(lp0\n(d", b"no pickle", b"\x80\x05."):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a pickle of plain lists"):
            read_plain_pickle(str(path))
    with pytest.raises(ValueError, match="absent: no such file"):
        read_plain_pickle(str(tmp_path / "absent"))


def test_files_that_do_not_fit(refcoco):
    folder = refcoco / "refcoco"
    source = Refer(str(folder), str(refcoco / "photos"))
    with pytest.raises(ValueError, match=r"no split 'test'; it has 'testA', 'testB', 'train', 'v"):
        Refer(str(folder), "photos", split="test").open()
    (folder / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"do not fit the published layout.*KeyError: 2"):
        source.open()
    for strange in ([1], {"a": 1}, [{"image_id": 1}]):
        (folder / "refs(unc).p").write_bytes(pickle.dumps(strange))
        with pytest.raises(ValueError, match="expected a list of dicts with ann_id, image_id, sen"):
            source.held_out()
