"""Fingerprints differ wherever content does, and nowhere else."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
import pytest

from siglip2_jax import fingerprint as module
from siglip2_jax.fingerprint import (
    fingerprint,
    fingerprint_arrays,
    fingerprint_file,
    fingerprint_files,
    stamp_file,
)


@dataclasses.dataclass
class Setting:
    names: tuple[str, ...]


class Plain:
    pass


def test_plain_data_and_objects():
    value = {"b": (1, 2.5, None), "a": ["\udce9", True], "c": Setting(("x", "y"))}
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))
    for key, other in ("b", (1, 2.25, None)), ("a", ["\udce8", True]), ("c", Setting(("y", "x"))):
        assert fingerprint({**value, key: other}) != fingerprint(value)
    assert fingerprint(Plain()) == fingerprint(Plain())  # of no repr but an address
    assert fingerprint("1") != fingerprint(1)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "t": np.float32(1.5),
        "tower/kernel": rng.normal(size=(7, 5)).astype(np.float32),
        "none": np.zeros((0, 4), np.float32),
    }


def test_arrays_count_to_the_last_element(monkeypatch):
    expected = fingerprint_arrays(arrays())
    assert fingerprint_arrays(dict(reversed(arrays().items()))) == expected
    assert fingerprint_arrays({name: jnp.asarray(x) for name, x in arrays().items()}) == expected
    for row, column in np.ndindex(7, 5):
        changed = arrays()
        kernel = changed["tower/kernel"]
        kernel[row, column] = np.nextafter(kernel[row, column], np.float32(9))
        assert fingerprint_arrays(changed) != expected
    kernel = arrays()["tower/kernel"]
    for other in kernel.reshape(5, 7), kernel.view(np.int32), kernel.T, kernel[:6]:
        assert fingerprint_arrays({**arrays(), "tower/kernel": other}) != expected
    assert fingerprint_arrays({**arrays(), "t": np.float32(-1.5)}) != expected
    renamed = arrays()
    renamed["tower/bias"] = renamed.pop("tower/kernel")
    assert fingerprint_arrays(renamed) != expected
    assert fingerprint_arrays({"x": jnp.zeros(3, jnp.bfloat16)}) != fingerprint_arrays(
        {"x": jnp.zeros(3, jnp.float16)}
    )
    monkeypatch.setattr(module, "_CHUNK", 16)
    assert fingerprint_arrays({"x": np.arange(8.0)}) != fingerprint_arrays(
        {"x": np.arange(8.0)[[2, 3, 0, 1, 4, 5, 6, 7]]}
    )


@pytest.fixture
def root(tmp_path):
    for name in ("names.json", "val/b/1.png", "val/a/1.png", "val/a/2.png", "train/a/1.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3)
    return tmp_path / "data"


def keep_time(path, data: bytes) -> None:
    """Changes a file, but not the time at which it was changed."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_files_count_by_content_or_by_size_and_time(root):
    expected, table, image = fingerprint_files(root), root / "names.json", root / "val/a/1.png"
    before = table.read_bytes()
    keep_time(table, before[::-1])  # as long, and as old
    assert fingerprint_files(root) != expected
    table.write_bytes(before)  # as it was, but younger
    assert fingerprint_files(root) == expected
    before = image.read_bytes()
    keep_time(image, before + b"x")
    assert fingerprint_files(root) != expected
    keep_time(image, before)
    assert fingerprint_files(root) == expected
    os.utime(image, ns=(1, 1))
    assert fingerprint_files(root) != expected


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_listings_count(root, change):
    expected, path = fingerprint_files(root), root / "val/a/1.png"
    if change == "add":
        (root / "val" / "new.png").touch()
    elif change == "remove":
        path.unlink()
    else:
        path.rename(path.with_name("0.png"))
    assert fingerprint_files(root) != expected


def test_only_what_is_read_counts(root):
    whole, part = fingerprint_files(root), fingerprint_files(root, ("val", "*.json"))
    (root / "train/a/2.png").touch()
    assert fingerprint_files(root, ("val", "*.json")) == part != fingerprint_files(root)
    assert fingerprint_files(root, ("val", "val/a", "*.json")) == part  # each file once
    (root / "train/a/2.png").unlink()
    (root / ".cache").mkdir()
    (root / ".cache" / "x.json").touch()
    (root / "val" / ".DS_Store").touch()
    (root / "val" / "0.tar.idx.npz").touch()
    (root / "eval.log").touch()
    (root / "results").mkdir()
    (root / "results" / "r.json").touch()
    assert fingerprint_files(root, skip=root / "results") == whole


def test_a_file_that_the_disk_does_not_give_is_no_absent_one(tmp_path):
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    assert fingerprint_file(str(tmp_path / "absent.jpg")) is None
    assert stamp_file(str(tmp_path / "absent.csv")) is None
    with pytest.raises(OSError, match="symbolic links"):
        fingerprint_file(str(tmp_path / "circle.jpg"))


def test_links_are_followed_once(root, tmp_path):
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (root / "val" / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(root)
    (root / "val" / "gone.json").symlink_to(tmp_path / "absent")
    before = fingerprint_files(root)
    (elsewhere / "1.png").touch()
    assert fingerprint_files(root) != before
