"""Jobs go on where they were stopped, with the settings they were begun with."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from etils.epath.gpath import PosixGPath

from siglip2_jax.resumable import Rows, claim, missing, read_errors, write_errors

NOTES = [None, "é \udce9", None, "", None, None, "last"]


def row(i: int) -> np.ndarray | None:
    return None if NOTES[i] is not None else np.full(3, i, np.float32)


def fill(rows: Rows, end: int = len(NOTES)) -> Rows:
    for i in range(len(rows), end):
        rows.add(row(i), NOTES[i])
    return rows


def check(rows: Rows) -> None:
    assert rows.notes == NOTES and rows.texts() == ["é \udce9", "", "last"]
    expected = [np.full(3, np.nan) if row(i) is None else row(i) for i in range(len(NOTES))]
    np.testing.assert_array_equal(rows.rows(), np.array(expected, np.float32))
    np.testing.assert_array_equal(np.concatenate([*rows.blocks()]), rows.rows())


@pytest.mark.parametrize("stop", range(len(NOTES) + 1))
def test_rows_go_on_after_a_stop(tmp_path, stop):
    directory = tmp_path / "parts"
    with Rows(directory, 3, rows_per_part=2) as rows:
        fill(rows, stop)
    with Rows(directory, 3, rows_per_part=2) as rows:
        assert len(rows) == stop and rows.notes == NOTES[:stop]
        fill(rows)
    check(rows)
    check(Rows(directory, 3, rows_per_part=5))  # parts may have any size
    rows.remove()
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_process_that_was_killed(tmp_path):
    fill(Rows(tmp_path, 3, rows_per_part=2), 5)
    assert len(Rows(tmp_path, 3)) == 4


def test_rows_in_memory():
    rows = fill(Rows(None, 3, rows_per_part=2))
    rows.save()
    check(rows)
    assert Rows(None, 3).rows().shape == (0, 3)


def test_a_damaged_part_and_those_after_it_are_made_again(tmp_path):
    """Also where the new parts begin at other rows than the old ones."""
    with Rows(tmp_path, 3, rows_per_part=2) as rows:
        fill(rows)
    first, second, *_ = sorted(tmp_path.iterdir())
    second.write_bytes(second.read_bytes()[:100])
    rows = Rows(tmp_path, 3, rows_per_part=3)
    assert len(rows) == 2 and first.name == f"{0:012d}.npz"
    with rows:
        fill(rows, 5)
    with Rows(tmp_path, 3) as rows:
        assert len(rows) == 5
        fill(rows)
    check(Rows(tmp_path, 3))


def test_a_part_that_the_disk_does_not_give_is_not_made_again(tmp_path):
    with Rows(tmp_path, 3) as rows:
        fill(rows)
    (part,) = tmp_path.iterdir()
    part.unlink()
    part.symlink_to(part.name)  # a circle: opening it is an error of the system
    with pytest.raises(OSError, match="symbolic links"):
        Rows(tmp_path, 3)


def test_prefixes_keep_rows_apart(tmp_path):
    for prefix, value in ("a-", 1), ("b-", 2):
        with Rows(tmp_path, 1, prefix=prefix) as rows:
            rows.add(np.full(1, value, np.float32))
    assert Rows(tmp_path, 1, prefix="a-").rows().tolist() == [[1]]
    assert Rows(tmp_path, 1, prefix="b-").rows().tolist() == [[2]]


def test_a_job_that_made_nothing_binds_nobody(tmp_path):
    claim(tmp_path / "parts" / "settings.json", {"a": 1}, "")
    with pytest.raises(ZeroDivisionError), Rows(tmp_path / "parts", 3):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_settings_bind(tmp_path):
    record = tmp_path / "new" / "settings.json"
    settings = {"weights": "abc", "limits": {"low": 0.1}, "many": "x" * 1000}
    for _ in range(2):
        claim(record, settings, "go away")
    with pytest.raises(ValueError, match=r"json was made with weights 'abc' \(now 'b'\); go away$"):
        claim(record, {**settings, "weights": "b", "limits": None}, "go away")
    with pytest.raises(ValueError, match=r"was made with added None \(now 3\)"):
        claim(record, {**settings, "added": 3}, "go away")
    with pytest.raises(ValueError, match="was made with many") as raised:
        claim(record, {**settings, "many": "y" * 1000}, "go away")
    assert len(str(raised.value)) < 600 + len(str(record))
    record.write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged .*; go away$"):
        claim(record, settings, "go away")


@pytest.mark.parametrize("links", [True, False])
def test_of_jobs_that_begin_at_once_one_writes(tmp_path, monkeypatch, links):
    """All have seen that there is no record; those with other settings are refused."""
    record, begin = tmp_path / "job" / "settings.json", Barrier(8)
    look = PosixGPath.exists

    def exists(path):
        there = look(path)
        if path == record and not there:
            begin.wait()
        return there

    monkeypatch.setattr(PosixGPath, "exists", exists)
    if not links:
        monkeypatch.setattr(os, "link", raising(PermissionError))

    def run(i):
        try:
            claim(record, {"a": i % 2}, "go away")
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(8)))
    assert [path.name for path in record.parent.iterdir()] == ["settings.json"]
    if links:
        (kept,) = json.loads(record.read_text()).values()
        assert [x is None for x in results] == [i % 2 == kept for i in range(8)]


def test_jobs_that_begin_at_once_in_a_store(tmp_path, store):
    settings = {"a": 1}
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: claim("gs://bucket/job/x.json", settings, "go away"), range(8)):
            pass
    (file,) = (tmp_path / "store" / "bucket" / "job").iterdir()
    assert file.name == "x.json" and json.loads(file.read_bytes()) == settings
    with pytest.raises(ValueError, match=r"a 1 \(now 2\); go away"):
        claim("gs://bucket/job/x.json", {"a": 2}, "go away")


def raising(error):
    def function(*_):
        raise error

    return function


def test_parts_that_are_missing(tmp_path):
    (tmp_path / "b").touch()
    (tmp_path / "c.tmp").touch()
    assert missing(tmp_path, iter("abc")) == ["a", "c"]
    assert missing(tmp_path / "absent", "ab") == ["a", "b"]


def test_errors_are_lines_of_json(tmp_path):
    path, errors = tmp_path / "errors.jsonl", [{"item": "a\u2028b", "n": 1}, {"item": "é"}]
    write_errors(path, errors)
    assert read_errors(path) == errors
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == errors
    write_errors(path, [])
    assert read_errors(path) == [] and not path.exists()
