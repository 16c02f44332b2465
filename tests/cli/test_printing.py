"""Printing: no terminal's encoding and no name of a file stops a command."""

import io
import json
import os
import sys

import pytest

from siglip2_jax.cli import main

SMALL = ("--batch-size", 4, "--max-num-patches", 16)
LABELS = "ein Hündchen,小狗,🐶"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_labels_print_on_every_terminal(model_dir, photos, monkeypatch, encoding):
    command = ["classify", str(model_dir), str(photos / "a.png"), "--labels", LABELS]
    printed = {}
    for extra in ((), ("--json",)):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, "strict"))
        assert main([*command, *map(str, SMALL), *extra]) == 0
        printed[extra] = raw.getvalue().decode(encoding)
    assert set(json.loads(printed["--json",])["results"][0]["scores"]) == set(LABELS.split(","))
    for word in LABELS.split(","):
        assert word.encode(encoding, "backslashreplace").decode(encoding) in printed[()]


def test_file_names_that_are_not_utf8_print(siglip2, model_dir, odd_names):
    command = [
        "classify",
        model_dir,
        odd_names / "caltech101_20" / "images",
        "--labels",
        "x",
        *SMALL,
    ]
    result = siglip2(*command)
    assert result.code == 0 and r"caf\udce9.png: x " in result.out
    assert r"\udcff.png: not an image" in result.err
    found = [row["image"] for row in json.loads(siglip2(*command, "--json").out)["results"]]
    assert [os.fsencode(name).rpartition(b"/")[2] for name in found] == [
        b"caf\xe9.png",
        b"\xff.png",
    ]


def test_errors_of_embed_are_utf8(siglip2, model_dir, odd_names, tmp_path):
    images = odd_names / "caltech101_20" / "images"
    result = siglip2("embed", model_dir, "--images", images, "--out", tmp_path / "e.npz", *SMALL)
    assert result.code == 0
    line = (tmp_path / "e.npz.errors.jsonl").read_bytes().decode("utf-8")
    assert os.fsencode(json.loads(line)["item"]).endswith(b"/\xff.png")
