"""`/v1/search` over a database that `siglip2 index` has made."""

from __future__ import annotations

import numpy as np
import pytest
from serve.running import base64_of, encoded, running

pytest.importorskip("lancedb")

from siglip2_jax.cli import main, parser  # noqa: E402
from siglip2_jax.cli.serve import _open_database, _settings  # noqa: E402
from siglip2_jax.inference import load  # noqa: E402
from siglip2_jax.search import Index  # noqa: E402
from siglip2_jax.serve.app import create_app  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = [pytest.mark.serve, pytest.mark.search]

FILES = [encoded(12 + 5 * i, 40 - 5 * i, i) for i in range(5)]


def test_hits_are_those_of_the_python_api(tmp_path, capsys):
    model, photos, db = tmp_path / "tiny", tmp_path / "photos", tmp_path / "photos.db"
    tiny_embedder().save(model, "hf")
    photos.mkdir()
    for i, file in enumerate(FILES):
        (photos / f"{i}.png").write_bytes(file)
    assert main(["index", str(db), str(model), str(photos), "--max-num-patches", "16"]) == 0
    options = ["serve", str(model), "--batch-sizes", "1", "4", "--grace", "0", "--db", str(db)]
    embedder = load(model)

    wrong = _settings(parser().parse_args(options))
    with pytest.raises(ValueError, match="was made at 16 patches, which is none of --max-num"):
        _open_database(str(db), embedder, wrong)
    settings = _settings(parser().parse_args([*options, "--max-num-patches", "64", "16"]))
    index = _open_database(str(db), embedder, settings)
    with running(create_app(embedder, settings, index)) as client:

        def search(**body):
            answer = client.post("/v1/search", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["results"]

        ((_, expected),) = Index.open(db, embedder).search("a dog", k=3)
        hits = search(query="a dog", k=3)
        assert [x["id"] for x in hits] == [x.id for x in expected]
        np.testing.assert_allclose(
            [x["score"] for x in hits], [x.score for x in expected], atol=1e-6
        )
        best, *_ = search(image=base64_of(FILES[2]))
        assert best["id"].endswith("2.png") and best["score"] > 0.999
        assert (best["width"], best["height"]) == (30, 22)
        assert len(search(query="a dog", where="width > 30")) == 2
        answer = client.post("/v1/search", json={"query": "x", "where": "no such"})
        assert answer.status_code == 400
        assert "columns id" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
        for where in ("length(id) > 0", '"length"(id) > 0', "length --\n(id) > 0"):
            assert len(index.database.select(where)) == len(FILES)
            answer = client.post("/v1/search", json={"query": "x", "where": where})
            assert answer.status_code == 400 and "without functions" in answer.text
        where = "caption IS NULL AND NOT(id LIKE '%2.png') AND width + 1 IN (31, 41) OR width = 25"
        assert {x["width"] for x in search(query="x", where=where)} == {40, 25}
