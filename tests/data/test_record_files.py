"""Many files of records: few open at a time, read in blocks, and what is no bad record."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from data.samples import example

from siglip2_jax.data import record_files, records
from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.data.record_files import count_records
from siglip2_jax.data.records import Records, encode_example, write_counts
from siglip2_jax.data.sources import Blocked


def write_pack(path, counts, name="x", make=example):
    """Shards of so many examples, numbered through; gives their paths."""
    path.mkdir(exist_ok=True)
    paths, start = [], 0
    for i, count in enumerate(counts):
        paths.append(str(path / f"{name}-{i:05d}-of-{len(counts):05d}.arrayrecord"))
        writer = ArrayRecordWriter(paths[-1], "group_size:1")
        for j in range(start, start + count):
            writer.write(encode_example(make(j)))
        writer.close()
        start += count
    return paths


def test_blocks_cross_files(tmp_path):
    write_pack(tmp_path, [100, 0, 3, 60, 137])
    examples = pickle.loads(pickle.dumps(Records(str(tmp_path)).open()))
    assert isinstance(examples, Blocked) and not examples.remote and examples.block_size == 128
    blocks = [examples.read_block(b) for b in range(3)]
    assert [len(block) for block in blocks] == [128, 128, 44]
    assert [item for block in blocks for item in block] == [example(i) for i in range(300)]


LIMITED = """
import os, random, resource, sys
from concurrent.futures import ThreadPoolExecutor
from siglip2_jax.data.records import Records

hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
examples = Records(sys.argv[1]).open()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
others = [open(os.devnull) for _ in range(int(sys.argv[3]))]
order = random.Random(0).sample(range(len(examples)), len(examples))
with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda i: examples[i]["id"], order)) == order
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("others", [0, 80])
def test_more_files_than_may_be_open(tmp_path, others):
    """Half of the limit is for records; where others take more, records make do with less."""
    write_pack(tmp_path, [2] * 150, make=lambda i: {**example(0), "id": i})
    code = [sys.executable, "-c", LIMITED, str(tmp_path), "120", str(others)]
    result = subprocess.run(code, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert others + 5 < int(result.stdout) < 120


def test_a_reader_holds_an_index(tmp_path, monkeypatch):
    """So the records of all open files are bounded, too; the least used file is closed."""
    monkeypatch.setattr(record_files, "_READERS", readers := record_files._Readers())
    monkeypatch.setattr(record_files, "_INDEXED_RECORDS", 10)
    paths = write_pack(tmp_path, [4, 4, 4])
    examples = Records(str(tmp_path)).open()
    for i in (0, 4, 1, 8):
        assert examples[i] == example(i)
    assert [path for _, path in readers._open] == [paths[0], paths[2]]


def test_counts_of_a_pack_save_opening_its_files(tmp_path, monkeypatch):
    write_counts(write_pack(tmp_path, [2, 0, 3]), tmp_path / "x.counts.json")
    assert json.loads((tmp_path / "x.counts.json").read_text()) == {"records": [2, 0, 3]}
    counted = []
    monkeypatch.setattr(
        records, "count_records", lambda paths: counted.extend(paths) or count_records(paths)
    )
    assert len(Records(str(tmp_path)).open()) == 5 and counted == []
    some = Records(str(tmp_path / "x-0000[02]*")).open()
    assert [some[i] for i in range(5)] == [example(i) for i in range(5)] and counted == []
    for text in ('{"records": [2, 3]}', "[]", '{"records": [2, null, 3]}'):
        (tmp_path / "x.counts.json").write_text(text)
        counted.clear()
        assert len(Records(str(tmp_path)).open()) == 5 and len(counted) == 3


def test_other_records_than_were_counted(tmp_path):
    write_counts(paths := write_pack(tmp_path, [2, 3]), tmp_path / "x.counts.json")
    write_pack(tmp_path, [2, 4])
    examples = Records(str(tmp_path)).open()
    assert examples[0] == example(0)
    with pytest.raises(SourceError, match=r"has 4 records and had 3 when they were counted; put"):
        examples[3]
    os.unlink(paths[1])
    os.rename(write_pack(tmp_path / "other", [100])[0], paths[1])
    os.truncate(paths[1], 1000)
    with pytest.raises(SourceError, match=r"00001-of-00002.arrayrecord is not a whole ArrayRecord"):
        Records(str(tmp_path)).open()[3]


def test_files_that_are_written_anew_are_read_anew(tmp_path):
    write_pack(tmp_path, [3])
    assert Records(str(tmp_path)).open()[2] == example(2)
    write_pack(tmp_path, [3], make=lambda i: example(7 + i))
    assert Records(str(tmp_path)).open()[2] == example(9)


def test_every_pack_of_a_directory_is_whole(tmp_path):
    write_pack(tmp_path, [1, 1], "train")
    write_pack(tmp_path, [1, 1, 1], "val")
    assert len(Records(str(tmp_path)).open()) == 5
    (tmp_path / "val-00001-of-00003.arrayrecord").unlink()
    with pytest.raises(ValueError, match="holds 2 of 3 files; finish packing it"):
        Records(str(tmp_path)).open()


def test_a_file_that_vanishes_is_no_bad_record(tmp_path):
    paths = write_pack(tmp_path, [2, 2])
    examples = Records(str(tmp_path)).open()
    os.unlink(paths[1])
    with pytest.raises(FileNotFoundError) as error:
        examples.read_block(0)
    assert error.value.filename == paths[1]


def test_errors_of_the_system_are_told_from_damage(tmp_path):
    """A directory is the error that any user can have, root too."""
    with pytest.raises(IsADirectoryError) as error:
        count_records([str(tmp_path)])
    assert error.value.filename == str(tmp_path)


def large(i):
    return {**example(i), "image": np.random.default_rng(i).bytes(70_000)}


def test_damage_in_a_block_is_of_its_records(tmp_path):
    (path,) = write_pack(tmp_path, [6], make=large)
    with open(path, "r+b") as file:
        start = file.read().find(large(3)["image"][1000:1100])
        file.seek(start)
        file.write(bytes(20_000))
    block = Records(path).open().read_block(0)
    with pytest.raises(ExampleError, match=r"arrayrecord, record 3: the record is damaged"):
        block[3]
    assert [block[i] for i in (0, 1, 2, 5)] == [large(i) for i in (0, 1, 2, 5)]


def test_a_file_that_was_cut_while_open(tmp_path):
    (path,) = write_pack(tmp_path, [6], make=large)
    examples = Records(path).open()
    os.truncate(path, 100_000)
    with pytest.raises(SourceError, match="has become shorter since it was opened; put it back"):
        examples[5]
