"""Code of the docs: every Python block of a page runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("page", ["use_the_parts", "extend"])
def test_blocks_run(page, tmp_path, monkeypatch):
    path = DOCS / f"{page}.md"
    text = path.read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
