"""`siglip2 demo`: the whole path, with nothing but the package."""

import html
import json
import re

import pytest

from siglip2_jax.cli.demo import SHOWN
from siglip2_jax.demo import shipped_examples


@pytest.mark.slow  # and part of CI as the README's own command
def test_trains_measures_and_draws(siglip2, tmp_path):
    out = tmp_path / "new" / "sheet.html"
    result = siglip2("demo", "--steps", 4, "--out", out, "--json", "--workdir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "stage demo: 4/4" in result.err
    summary = json.loads(result.out)
    assert summary["steps"] == 4 and summary["sheet"] == str(out)
    assert summary["loss"]["last"] < summary["loss"]["first"] < 15
    for numbers in (summary["before"], summary["after"]):
        assert len(numbers) == 6 and all(0 <= value <= 1 for value in numbers.values())
    page = out.read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == SHOWN
    assert page.count("class=own") == SHOWN
    for example in shipped_examples()[:SHOWN]:
        assert html.escape(example.captions[0]) in page
        assert html.escape(example.credit) in page
    assert [path.name for path in out.parent.iterdir()] == ["sheet.html"]
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
