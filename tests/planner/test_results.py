"""Results of compilations in files, and what their keys depend on."""

import importlib
import sys
from pathlib import Path

import pytest

from siglip2_jax.cli import parser
from siglip2_jax.cli.plan import _results
from siglip2_jax.planner import results as module
from siglip2_jax.planner.hlo import kernel_time
from siglip2_jax.planner.hlo.kernels import Kernel
from siglip2_jax.planner.results import (
    NO_RESULTS,
    Results,
    digest_code,
    digest_user_code,
    key_of,
    user_results,
)
from siglip2_jax.train.chips import V5E


def test_what_is_put_is_there_later(tmp_path):
    Results(tmp_path / "new").put("key", (1, "two"))
    assert Results(tmp_path / "new").get("key") == (1, "two")
    assert Results(tmp_path / "new").get("other") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key"]


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: b"", lambda x: x[:40] + b"?"])
def test_a_damaged_file_is_no_result(tmp_path, damage):
    results = Results(tmp_path)
    results.put("key", list(range(100)))
    (tmp_path / "key").write_bytes(damage((tmp_path / "key").read_bytes()))
    assert results.get("key") is None
    results.put("key", 5)
    assert results.get("key") == 5


def test_without_a_directory_work_goes_on(tmp_path, caplog):
    (tmp_path / "file").touch()
    results = Results(tmp_path / "file" / "plans")
    results.put("key", 1)
    assert results.get("key") is None and "cannot be kept" in caplog.text
    NO_RESULTS.put("key", 1)
    assert NO_RESULTS.get("key") is None


def test_the_directory_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user_results().put("key", 1)
    assert (tmp_path / "siglip2_jax" / "plans" / "key").is_file()
    results = _results(parser().parse_args(["plan", "tiny"]))
    assert results.get("key") == 1
    assert _results(parser().parse_args(["plan", "tiny", "--fresh"])) is NO_RESULTS


def test_keys_differ_in_everything(monkeypatch):
    keys = [key_of("a", "b", "c"), key_of("b", "b", "c"), key_of("a", "bc"), key_of("a", "c", "b")]
    assert key_of("a", b"b", "c") == keys[0]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    keys.append(key_of("a", "b", "c"))
    monkeypatch.setattr(module, "_versions", lambda: [("libtpu", "9.9")])
    keys.append(key_of("a", "b", "c"))
    assert len(set(keys)) == 6


def test_the_package_s_code_counts(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("x = 1")
    (tmp_path / "b.py").write_text("y = 1")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    digest = digest_code.__wrapped__  # of the files as they are now
    whole, inner = digest(), digest("inner")
    (tmp_path / "b.py").write_text("y = 2")
    assert digest() != whole and digest("inner") == inner
    (tmp_path / "inner" / "a.py").write_text("x = 2")
    assert digest("inner") != inner


def test_the_user_s_code_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = digest_user_code()
    helper = tmp_path / "a_helper_of_a_config.py"
    helper.write_text("x = 1")
    importlib.import_module("a_helper_of_a_config")
    try:
        digests = [before, digest_user_code()]
        helper.write_text("x = 2")
        digests.append(digest_user_code())
    finally:
        del sys.modules["a_helper_of_a_config"]
    assert len(set(digests)) == 3 and digest_user_code() == before


def test_libraries_and_the_package_are_no_user_code():
    assert Path(pytest.__file__).is_file()  # a library that is imported
    files = [module.__file__, pytest.__file__, importlib.__file__]
    assert [bool(module._LIBRARY.search(file or "")) for file in files] == [False, True, True]


def test_a_kernel_is_compiled_alone_once(tmp_path, monkeypatch):
    compiled = []

    def compile_alone(work, jobs):
        compiled.append([kernel["config"] for kernel in jobs["kernels"]])
        return [None if kernel["config"] == "odd" else 7 for kernel in jobs["kernels"]]

    monkeypatch.setattr(kernel_time, "_in_a_process", compile_alone)
    arrays = (("f32", (8, 128)),)
    first, second, odd = (Kernel(name, arrays, arrays) for name in ("first", "second", "odd"))
    results = Results(tmp_path)
    assert kernel_time.cycles_of((first,), V5E, results) == (7,)
    assert kernel_time.cycles_of((odd, first, second), V5E, results) == (None, 7, 7)
    assert kernel_time.cycles_of((second, first), V5E, results) == (7, 7)
    assert kernel_time.cycles_of((odd,), V5E, results) == (None,)  # it may go well next time
    assert compiled == [["first"], ["odd", "second"], ["odd"]]
