import json
import shutil

import pytest

from siglip2_jax.checkpoints import ConversionError, orbax, read, write


@pytest.fixture
def directory(tmp_path, checkpoint):
    write(checkpoint, tmp_path / "ours", "orbax")
    return tmp_path / "ours"


def test_round_trip(directory, checkpoint, assert_equal):
    found = read(directory)
    assert found.format == "orbax" and found.config == checkpoint.config
    assert found.preprocessing == checkpoint.preprocessing
    assert_equal(found, checkpoint)


@pytest.mark.slow
def test_many_parts_make_one_tree(tmp_path, fixed, assert_equal, monkeypatch):
    monkeypatch.setattr(orbax, "PART", 20_000)
    write(fixed, tmp_path / "ours", "orbax")
    assert_equal(read(tmp_path / "ours"), fixed)


def test_damage_is_named(directory):
    model = directory / "model.json"
    data = json.loads(model.read_text())
    for change, message in (
        ({"version": 2}, "has version 2, this release reads 1"),
        ({"model": {}}, "model.json is damaged"),
        ({"preprocessing": {"colour": 1}}, "model.json is damaged"),
    ):
        model.write_text(json.dumps(data | change))
        with pytest.raises(ConversionError, match=message):
            read(directory)
    data["model"]["text"]["length"] = 32
    model.write_text(json.dumps(data))
    with pytest.raises(ConversionError, match=r"text/pos/table has shape \(64, 24\)"):
        read(directory)
    shutil.rmtree(directory / "params")
    with pytest.raises(ConversionError, match="params/ is missing or damaged"):
        read(directory)
