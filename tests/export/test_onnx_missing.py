"""Sentences of `siglip2 export --to onnx` where it cannot run; needs neither package."""

from __future__ import annotations

import sys

import pytest

from siglip2_jax.cli import main
from siglip2_jax.testing import tiny_embedder


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_missing_packages_are_named_with_the_way_out(package, tmp_path, capsys, monkeypatch):
    for name in ("jax2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out"), "--to", "onnx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"needs {package}" in line and "--override" in line and "jax2onnx==" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", [["--int8"], ["--labels", "a dog"], ["--check", "data"], ["--labels-file", "labels"]]
)
def test_options_of_onnx_are_refused_elsewhere(option, tmp_path, capsys):
    tiny_embedder().save(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "stablehlo"]
    assert main([*command, *option]) == 2
    assert "are options of --to onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
