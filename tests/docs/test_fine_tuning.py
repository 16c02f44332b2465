"""The tutorial of docs/fine_tuning.md, walked from top to bottom with few steps."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import siglip2_jax
from siglip2_jax.cli import main
from siglip2_jax.testing import tiny_embedder

PAGE = Path(__file__).parents[2] / "docs" / "fine_tuning.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)


def walk(text: str) -> list[str]:
    """Runs the blocks; a model that was never trained stands where `siglip2 demo` leaves one."""
    commands = []
    for language, block in BLOCK.findall(text):
        if language == "python":
            exec(block, {"__name__": "__docs__"})
            continue
        for line in block.replace("\\\n", "").splitlines():
            program, command, *args = shlex.split(line, comments=True)
            assert program == "siglip2"
            commands.append(command)
            if command == "demo":
                assert args == ["--workdir", "base"]
                tiny_embedder().save("base", "orbax")
                continue
            few = ["--no-distributed", "--set", "steps=2"] if command == "train" else []
            assert main([command, *args, *few]) == 0, line
    return commands


@pytest.mark.slow
@pytest.mark.search
def test_every_command_up_to_the_choices_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lancedb")
    pytest.importorskip("flatbuffers")  # of jax.export
    monkeypatch.chdir(tmp_path)
    offline, title, _ = PAGE.read_text().partition("\n## The choices that matter\n")
    assert title
    commands = walk(offline)
    assert commands == "demo train eval eval convert export index search".split()
    rows = [json.loads(line) for line in Path("tuned/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2]
    out = capsys.readouterr().out
    for row in rows:  # what eval says of base and tuned is what the log has of before and after
        assert f"text_to_image@1 {100 * row['eval/held_out/text_to_image@1']:.2f}," in out
    tuned, exported = (siglip2_jax.load(name) for name in ("tuned", "tuned_hf"))
    texts = ["a dog", "a boat"]
    np.testing.assert_allclose(exported.embed_texts(texts), tuned.embed_texts(texts), atol=1e-6)
    assert {"export.json", "siglip2_exported.py"} <= {
        x.name for x in Path("tuned_programs").iterdir()
    }
