"""The record encoding by hand, and files of records with array_record itself."""

import json
import pickle
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from data.samples import POINTER, example

from siglip2_jax.data.records import Records, decode_example, encode_example


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_a_record_reads_without_this_package():
    record = encode_example({**example(2), "depth": b"\x00\x01", "é": 1.5})
    assert record[:8] == b"SIGLIP2\x01"
    (length,) = struct.unpack("<I", record[8:12])
    header = json.loads(record[12 : 12 + length])
    assert header["fields"]["captions"] == list(example(2)["captions"])
    assert header["fields"]["é"] == 1.5
    assert header["blobs"] == [["image", len(example(2)["image"])], ["depth", 2]]
    assert record[12 + length :] == example(2)["image"] + b"\x00\x01"


def test_round_trip():
    full = {**example(1), "box": np.array([[1.5, 2]]), "n": np.int64(3), "nested": {"a": [None]}}
    expected = {**example(1), "box": [[1.5, 2.0]], "n": 3, "nested": {"a": [None]}}
    assert decode_example(encode_example(full)) == expected
    with pytest.raises(ValueError, match=r"no 1: a field cannot be written as JSON"):
        encode_example({**example(1), "odd": object()})


@pytest.mark.parametrize("damage", [b"", b"\n\x05hello", b"SIGLIP2\x01", b"SIGLIP2\x02" + bytes(9)])
def test_foreign_records_are_refused(damage):
    with pytest.raises(ValueError, match="not a record of this format"):
        decode_example(damage)


def test_cut_record_is_refused():
    with pytest.raises(ValueError, match="but its header describes"):
        decode_example(encode_example(example(1))[:-1])


def test_files(tmp_path):
    write(tmp_path / "a.arrayrecord", [encode_example(example(i)) for i in range(3)])
    write(tmp_path / "b.arrayrecord", [])
    write(tmp_path / "c.arrayrecord", [encode_example(example(i)) for i in range(3, 5)])
    examples = Records(str(tmp_path)).open()
    assert [examples[i] for i in range(len(examples))] == [example(i) for i in range(5)]
    assert pickle.loads(pickle.dumps(examples))[4] == example(4)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="matches no file"):
        Records(str(tmp_path)).open()
    write(tmp_path / "x-00001-of-00003.arrayrecord", [encode_example(example(0))])
    with pytest.raises(ValueError, match="holds 1 of 3 files; finish packing"):
        Records(str(tmp_path)).open()
    assert len(Records(str(tmp_path / "x*")).open()) == 1
    write(tmp_path / "tfds.arrayrecord", [b"\n\x07feature"])
    with pytest.raises(ValueError, match=r"tfds.arrayrecord, record 0: not a record of this form"):
        Records(str(tmp_path / "tfds.arrayrecord")).open()
    write(tmp_path / "none.arrayrecord", [])
    with pytest.raises(ValueError, match="no records in 1 files"):
        Records(str(tmp_path / "none.arrayrecord")).open()
    whole = (tmp_path / "tfds.arrayrecord").read_bytes()
    (tmp_path / "cut.arrayrecord").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.arrayrecord is not a whole ArrayRecord file"):
        Records(str(tmp_path / "cut.arrayrecord")).open()
    (tmp_path / "pointer.arrayrecord").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"pointer.arrayrecord is a Git LFS pointer.*lfs pull"):
        Records(str(tmp_path / "pointer.arrayrecord")).open()


def test_corrupt_record_is_an_error_of_its_example(tmp_path):
    path = tmp_path / "a.arrayrecord"
    noise = np.random.default_rng(0)
    blobs = [{**example(i), "image": noise.bytes(70_000)} for i in range(6)]
    write(path, map(encode_example, blobs))
    data = bytearray(path.read_bytes())
    start = data.find(blobs[3]["image"][1000:1100])
    data[start : start + 50_000] = bytes(50_000)
    path.write_bytes(data)
    examples = Records(str(path)).open()
    good = 0
    for i in range(6):
        try:
            good += examples[i] == blobs[i]
        except ValueError as error:
            assert f"{path}, record {i}: " in str(error)
    assert 1 <= good < 6
    with pytest.raises(ValueError, match="record 3"):
        examples[3]
