"""`siglip2 demo`: the whole path, with nothing but the package."""

import html
import json
import re

from siglip2_jax.demo import shipped_examples


def test_a_sheet_with_every_photo(siglip2, tmp_path):
    out = tmp_path / "new" / "sheet.html"
    result = siglip2("demo", "--photos", 3, "--out", out, "--json")
    assert result.code == 0, result.err
    assert "photos: 3/3" in result.err
    summary = json.loads(result.out)
    assert summary["photos"] == 3 and summary["sheet"] == str(out)
    assert 0 <= summary["recall_at_1"] <= 1
    page = out.read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 3
    assert len(re.findall(r"<td", page)) == 9 and page.count("class=own") == 3
    for example in shipped_examples()[:3]:
        assert html.escape(example.captions[0]) in page
        assert html.escape(example.credit) in page
    assert [path.name for path in out.parent.iterdir()] == ["sheet.html"]
