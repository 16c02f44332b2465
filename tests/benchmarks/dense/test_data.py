"""Lists of photos with maps, and what the maps hold."""

import json

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.benchmarks.dense.data import (
    DenseData,
    read_class_map,
    read_depth,
    read_index,
    read_legend,
    read_normals,
    relative_depth,
)


def test_an_index_names_pairs(tmp_path):
    rows = [{"image": f"{i}.png", "depth": f"d/{i}.png", "split": s} for i, s in enumerate("abac")]
    index = tmp_path / "index.jsonl"
    index.write_text("\n".join(map(json.dumps, rows)))
    found = read_index(index, label="depth", train="a", test="b")
    pair = [(str(tmp_path / f"{i}.png"), str(tmp_path / f"d/{i}.png")) for i in range(3)]
    assert found == DenseData(train=(pair[0], pair[2]), test=(pair[1],))
    with pytest.raises(ValueError, match="line 1: .* with the keys image, label and split"):
        read_index(index)
    with pytest.raises(ValueError, match="no row has split='test'"):
        read_index(index, label="depth", train="a")
    index.write_text('["no object"]')
    with pytest.raises(ValueError, match="line 1: expected"):
        read_index(index)
    with pytest.raises(ValueError, match="0 training and 1 test pairs"):
        DenseData(train=(), test=(("a", "b"),))


def test_a_legend_names_classes(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('{"names": ["sky", "road", "void"], "void": 2}')
    assert read_legend(path) == (("sky", "road"), 2)
    path.write_text('{"names": ["sky", "road"], "void": 255}')
    assert read_legend(path) == (("sky", "road"), 255)
    path.write_text('{"names": ["void", "sky", "road"], "void": 0}')
    with pytest.raises(ValueError, match="void is 0, between the 3 classes"):
        read_legend(path)
    path.write_text('{"names": ["sky"]}')
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_legend(path)


def test_labels_are_read(tmp_path):
    path = str(tmp_path / "x.png")
    Image.fromarray(np.array([[0, 2], [11, 1]], np.uint8)).save(path)
    np.testing.assert_array_equal(read_class_map(path, 3, void=11), [[0, 2], [-1, 1]])
    with pytest.raises(ValueError, match="values from 0 to 11; expected 0 to 2, and 255 where"):
        read_class_map(path, 3)
    palette = Image.fromarray(np.array([[1, 0]], np.uint8))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(path)
    np.testing.assert_array_equal(read_class_map(path, 2), [[1, 0]])
    Image.fromarray(np.array([[0, 65535], [1500, 1]], np.uint16)).save(path)
    expected = np.array([[0, 0], [1.5, 0.001]], np.float32)
    np.testing.assert_array_equal(read_depth(path), expected)
    np.testing.assert_allclose(read_depth(path, unit=0.01), 10 * expected, rtol=1e-6)
    Image.fromarray(np.array([[[0, 0, 0], [128, 127, 255], [127, 127, 128]]], np.uint8)).save(path)
    found = read_normals(path)
    np.testing.assert_array_equal(found[0, [0, 2]], 0)
    np.testing.assert_allclose(found[0, 1], [0, 0, 1], atol=0.005)
    assert np.linalg.norm(found[0, 1]) == pytest.approx(1, abs=1e-6)
    for read in (read_depth, lambda x: read_class_map(x, 3)):
        with pytest.raises(ValueError, match="x.png has"):
            read(path)


def test_damaged_labels_are_named(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(OSError, match=r"x\.png"):
        read_class_map(str(path), 3)
    path.write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"x\.png: the label is no image"):
        read_depth(str(path))


def test_arrays_are_read(tmp_path):
    path = str(tmp_path / "x.npy")
    np.save(path, np.array([[1.5, np.nan, -1, np.inf]]))
    np.testing.assert_array_equal(read_depth(path), [[1.5, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"the shape \(1, 4\); expected \[H, W, 3\]"):
        read_normals(path)
    np.save(path, np.array([[[0, 0, 1.1], [np.nan, 0, 1], [0, 0, 0]]]))
    np.testing.assert_array_equal(read_normals(path), [[[0, 0, 1], [0, 0, 0], [0, 0, 0]]])


def test_depth_within_a_photo():
    depth = np.array([[0, 2.0], [2.5, 4]], np.float32)
    expected = [[0, 0.01], [0.01 + 0.99 * 0.25, 1]]
    np.testing.assert_allclose(relative_depth(depth), expected, rtol=1e-6)
    flat = np.array([[0, 2.0, 2.001]], np.float32)
    np.testing.assert_allclose(relative_depth(flat), [[0, 0.01, 0.109]], atol=1e-4)
    np.testing.assert_array_equal(relative_depth(0 * depth), 0 * depth)
