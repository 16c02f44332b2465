"""Compiled programs on disk: read at the next start, and never the end of a run."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from siglip2_jax import compilation_cache
from siglip2_jax.compilation_cache import ProgramFiles

# Compiles a program of a jitted function, and lowers a kernel for TPUs.
SCRIPT = """
import hashlib, json, sys
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from siglip2_jax.compilation_cache import Compilations, keep_programs, place_in_use
keep_programs(sys.argv[1])
count = Compilations()
def double(x, y): y[...] = 2 * x[...]
def kernel(x): return pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
jax.jit(lambda x: jnp.cos(x) @ x.T).lower(x).compile()
text = jax.jit(kernel).trace(x).lower(lowering_platforms=("tpu",)).as_text()
keep_programs(sys.argv[1])  # a second time, as a second command of a process does
print(json.dumps([*count.counts(), place_in_use(), hashlib.sha256(text.encode()).hexdigest()]))
"""


def start(script, directory, devices=1):
    """Counts of compiled and of read programs, the place, the kernel's digest, and the log."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "true"}
    command = [sys.executable, str(script), str(directory)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return *json.loads(ended.stdout), ended.stderr


def test_settings_stay_where_jax_keeps_nothing(tmp_path):
    before = dict(jax.config.values)
    assert not before["jax_enable_compilation_cache"]  # as conftest.py says
    compilation_cache.keep_programs(tmp_path)
    assert dict(jax.config.values) == before


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
def test_keys_know_no_paths_and_no_lines(script, tmp_path):
    moved = tmp_path / "elsewhere" / "moved.py"
    moved.parent.mkdir()
    moved.write_text("# another line\n" + SCRIPT)
    place = str(tmp_path / "cache")
    *first, kernel, _ = start(script, place)
    assert first == [1, 0, place]
    assert start(moved, place)[:4] == (0, 1, place, kernel)


@pytest.mark.slow
def test_programs_of_a_store_are_read_at_the_next_start(script, store):
    place = "gs://bucket/run/programs"
    *first, _, text = start(script, place)
    assert first == [1, 0, place], text
    *second, _, text = start(script, place)
    assert second == [0, 1, place] and "cannot be" not in text, text


@pytest.mark.parametrize(
    "harm", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: x[:-1] + b"!"]
)
def test_a_damaged_program_is_replaced(tmp_path, caplog, harm):
    files, path = ProgramFiles(tmp_path), tmp_path / "a.program"
    files.put("a", b"program")
    path.write_bytes(harm(path.read_bytes()))
    assert files.get("a") is None and f"{path} is damaged" in caplog.text
    files.put("a", b"program")
    assert files.get("a") == b"program"


@pytest.mark.slow
def test_several_devices_of_a_cpu_keep_nothing(script, tmp_path):
    assert start(script, tmp_path / "cache", devices=2)[:3] == (1, 0, None)
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_cannot_be_used_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    files = ProgramFiles(tmp_path / "file" / "cache")
    for _ in range(2):
        files.put("a", b"program")
        assert files.get("a") is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(str(tmp_path / "file") in line for line in said)


def test_a_full_disk_leaves_nothing_and_what_is_there_is_read(tmp_path, caplog, monkeypatch):
    files = ProgramFiles(tmp_path)
    files.put("a", b"program")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compilation_cache, "write_once", full)
    files.put("b", b"other")
    assert "No space left on device" in caplog.text
    assert files.get("a") == b"program" and files.get("b") is None


def test_processes_that_write_the_same(tmp_path):
    value = os.urandom(1 << 16)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ProgramFiles(tmp_path).put("a", value), range(32)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.program"]
    assert ProgramFiles(tmp_path).get("a") == value


def test_a_program_of_a_store(store, caplog):
    ProgramFiles("gs://bucket/run/programs").put("a", b"program")
    assert ProgramFiles("gs://bucket/run/programs").get("a") == b"program"
    assert ProgramFiles("gs://bucket/run/programs").get("b") is None
    assert not [x for x in caplog.records if x.name.startswith("siglip2_jax")]


def test_what_was_read_longest_ago_goes_first(tmp_path):
    before = ProgramFiles(tmp_path)
    for age, key in enumerate("abc"):
        before.put(key, bytes(68))  # 100 bytes with the digest
        os.utime(tmp_path / f"{key}.program", (age, age))
    assert before.get("a") is not None
    ProgramFiles(tmp_path, most_bytes=250).put("d", b"")
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
