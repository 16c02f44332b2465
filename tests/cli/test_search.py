"""`siglip2 index` and `siglip2 search`: from images to what is found."""

import json

import numpy as np
import pytest

pytest.importorskip("lancedb")

from siglip2_jax import load  # noqa: E402
from siglip2_jax.cli import parser  # noqa: E402
from siglip2_jax.search.database import Database  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = pytest.mark.search
SMALL = ("--max-num-patches", 16, "--batch-size", 4, "--workers", 0)


@pytest.fixture
def index(siglip2, model_dir, tmp_path):
    """Runs `siglip2 index` on a database in the test's directory."""

    def run(*args, source=model_dir):
        return siglip2("index", tmp_path / "db", source, *args, *SMALL)

    return run


@pytest.fixture
def search(siglip2, index, photos, tmp_path):
    """Runs `siglip2 search` on a database of the photos."""
    assert index(photos).code == 0
    return lambda *args: siglip2("search", tmp_path / "db", *args)


def hits(result) -> list[list[dict]]:
    assert result.code == 0, result.err
    return [query["hits"] for query in json.loads(result.out)["results"]]


def test_what_is_indexed_is_reported(index, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    result = index(photos, "--json")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert figures == {
        "database": str(tmp_path / "db"),
        "images": 8,
        "read": 10,
        "added": 8,
        "known": 1,
        "errors": 1,
        "removed": 0,
        "renamed": 0,
        "recall_at_10": None,
    }
    assert f"siglip2: skipped: {photos / 'broken.png'}: " in result.err
    for name in ("b.jpg", "broken.png"):
        (photos / name).unlink()
    again = index(photos, "--prune")
    assert again.out == f"{tmp_path / 'db'} holds 7 images: 0 added, 8 were there, 1 removed\n"


def test_nothing_but_broken_images_is_a_failure(index, photos):
    (photos / "broken.png").write_bytes(b"no image")
    result = index(photos / "broken.png")
    assert result.code == 1 and "0 added, 0 were there, 1 cannot be embedded" in result.out


def test_search_in_json(search, model_dir, photos, tmp_path):
    result = search("a red boat", "a dog", "--image", photos / "e.bmp", "-k", 3, "--json")
    found = hits(result)
    facts = json.loads(result.out)
    assert facts["images"] == 8 and facts["exact"] is True
    names = [query["query"] for query in facts["results"]]
    assert names == ["a red boat", "a dog", str(photos / "e.bmp")]
    model = load(model_dir)  # the command has found it by itself
    ids = [str(path) for path in sorted(photos.rglob("*.*")) if path.suffix != ".txt"]
    images = model.embed_images(ids, max_num_patches=16, batch_size=4).astype(np.float16)
    queries = [*model.embed_texts(["a red boat", "a dog"]), images[ids.index(names[2])]]
    for query, some in zip(queries, found, strict=True):
        scores = images.astype(np.float64) @ query.astype(np.float64)
        order = np.argsort(-scores)[:3]
        assert [hit["id"] for hit in some] == [ids[i] for i in order]
        np.testing.assert_allclose([hit["score"] for hit in some], scores[order], atol=2e-3)
        assert all(hit["width"] > 0 and hit["caption"] is None for hit in some)
    assert found[2][0]["id"] == names[2]


def test_thresholds_conditions_and_what_is_taken_away(search):
    every = hits(search("a dog", "--threshold", -1, "--json"))[0]
    assert len(every) == 8
    score = every[2]["score"]
    assert hits(search("a dog", "--threshold", score, "--json"))[0] == every[:3]
    wide = hits(search("a dog", "--where", "width > 30", "--json"))[0]
    assert wide == [hit for hit in every if hit["width"] > 30] and 0 < len(wide) < 8
    less = hits(search("a dog", "--minus", "people", "--json"))[0]
    assert [hit["score"] for hit in less] != [hit["score"] for hit in every]
    with pytest.raises(SystemExit, match="2"):
        search("a dog", "--threshold", 0.1, "-k", 3)


def test_a_table_is_shown(search, photos):
    result = search("a dog", "-k", 2)
    lines = result.out.splitlines()
    assert lines[0].strip() == "a dog" and lines[1].split() == ["score", "image", "size"]
    assert len(lines) == 4 and str(photos) in lines[2]
    nothing = search("a dog", "--where", "width > 4000")
    assert nothing.code == 0 and nothing.out.strip() == "a dog: nothing is found"


def test_a_page_is_written(search, photos, tmp_path):
    result = search("a <b>dog", "--html", tmp_path / "page.html")
    assert result.code == 0, result.err
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "a &lt;b&gt;dog" in page and page.count("data:image/") == 8
    assert result.out == f"wrote {tmp_path / 'page.html'}: 8 images\n"


def test_duplicates(search, index, photos):
    from PIL import Image

    assert search("--duplicates", 1).out == "none among 8 images\n"
    image = Image.open(photos / "e.bmp")
    image.save(photos / "same.png")  # other bytes, the same pixels
    assert index(photos).code == 0
    (group,) = hits(search("--duplicates", 0.9999, "--json"))
    assert [hit["id"] for hit in group] == [str(photos / "e.bmp"), str(photos / "same.png")]
    assert "group 1 of 2 images" in search("--duplicates", 0.9999).out
    refused = search("a dog", "--duplicates", 0.9)
    assert refused.code == 2 and "takes no queries" in refused.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "there is nothing to search for"),
        ((" ",), "a query is empty"),
        (("a dog", "--where", "nothing > 3"), "the condition 'nothing > 3' cannot be read"),
        (("a dog", "--approximate"), "has no approximate index"),
        (("--image", "none.jpg"), "none.jpg: no such file"),
        (("a dog", "--model", "none"), "none"),
        (("a dog", "--threshold", "x"), "x: no such file; expected JSON"),
    ],
)
def test_what_cannot_be_searched(search, args, words):
    result = search(*args)
    assert result.code == 2 and words in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


@pytest.mark.parametrize("value", ["2", "-1.01", "nan"])
def test_what_is_no_cosine(capsys, value):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["search", "db", "a dog", "--threshold", value])
    assert f"{value!r} is not a cosine, a number from -1 to 1" in capsys.readouterr().err


def test_other_models_and_settings_are_refused(siglip2, index, search, photos, tmp_path):
    tiny_embedder(seed=1).save(tmp_path / "other", "hf")
    for result in (
        index(photos, source=tmp_path / "other"),
        search("a dog", "--model", tmp_path / "other"),
    ):
        assert result.code == 2 and "was made with weights '" in result.err.splitlines()[-1]
    result = index(photos, "--text-norm", "none")
    assert result.code == 2 and "text_norm 'reference' (now 'none')" in result.err
    result = siglip2("search", tmp_path / "nothing", "a dog")
    assert result.code == 2 and "nothing is no database; make one with" in result.err


def test_a_model_that_has_moved(siglip2, search, model_dir, tmp_path):
    settings = tmp_path / "db" / "siglip2.json"
    before = json.loads(settings.read_bytes())
    settings.write_text(json.dumps(before | {"loaded_from": {"source": str(tmp_path / "gone")}}))
    result = search("a dog")
    assert result.code == 2 and "cannot be loaded from where it was" in result.err
    assert search("a dog", "--model", model_dir).code == 0


def test_shards_need_no_model(siglip2, model_dir, photos, tmp_path):
    small = ("--max-num-patches", 16, "--batch-size", 4, "--workers", 0)
    out, db = tmp_path / "out", tmp_path / "db"
    assert siglip2("embed", model_dir, "--images", photos, "--out", out, *small).code == 0
    unmerged = siglip2("index", db, "--shards", out)
    assert unmerged.code == 2 and "siglip2 embed --merge" in unmerged.err and not db.exists()
    assert siglip2("embed", "--merge", "--out", out).code == 0
    result = siglip2("index", db, "--shards", out)
    assert result.code == 0 and "8 added" in result.out, result.err
    unknown = siglip2("search", db, "a dog")
    assert unknown.code == 2 and "does not say where its model is" in unknown.err
    tiny_embedder(seed=1).save(tmp_path / "other", "hf")
    other = siglip2("index", db, tmp_path / "other", "--shards", out)
    assert other.code == 2 and "weights" in other.err
    assert siglip2("index", db, model_dir, "--shards", out).code == 0
    assert siglip2("search", db, "a dog").code == 0
    assert Database.open(db).table.count_rows() == 8


def test_what_cannot_be_indexed(siglip2, model_dir, photos, tmp_path):
    db = tmp_path / "db"
    for args, words in (
        ((model_dir,), "there is nothing to index"),
        ((), "there is nothing to do"),
        ((model_dir, photos, "--shards", "x"), "both images and --shards"),
        (("--approximate",), "is no database"),
        ((model_dir, tmp_path / "none"), "matches no image"),
    ):
        result = siglip2("index", db, *args)
        assert result.code == 2 and words in result.err.splitlines()[-1], result.err
    assert not db.exists()


def test_options_may_come_anywhere():
    for line in ("db M a b --prune", "--prune db M a b", "db M --prune a b", "db --prune M a b"):
        args = parser().parse_args(["index", *line.split()])
        assert (args.db, args.source, args.images, args.prune) == ("db", "M", ["a", "b"], True)
    args = parser().parse_args(["index", "db", "--shards", "x"])
    assert (args.source, args.images, args.shards) == (None, [], ["x"])
    for line in ("db a b -k 3", "db -k 3 a b", "-k 3 db a b"):
        args = parser().parse_args(["search", *line.split()])
        assert (args.db, args.queries, args.k) == ("db", ["a", "b"], 3)


def test_help_has_examples(capsys):
    for command in ("index", "search"):
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
        assert f"siglip2 {command} photos.db" in " ".join(capsys.readouterr().out.split())


def test_the_threshold_of_a_calibration(siglip2, search, model_dir, photos, tmp_path):
    every = hits(search("a dog", "--threshold", -1, "--json"))[0]
    lines = ["image,text,match"]
    lines += [f"{hit['id']},a dog,{int(i < 4)}" for i, hit in enumerate(every)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    out = tmp_path / "calibration.json"
    options = ("--examples", tmp_path / "pairs.csv", "--precision", 0.99, "--out", out)
    assert siglip2("calibrate", model_dir, *options, *SMALL[:4]).code == 0
    assert hits(search("a dog", "--threshold", out, "--json"))[0] == every[:4]
    other = tmp_path / "other.json"
    content = json.loads(out.read_text())
    other.write_text(json.dumps(content | {"max_num_patches": 9}))
    result = search("a dog", "--threshold", other)
    assert result.code == 2 and "was fitted to images of 9 patches, and those of" in result.err
