"""`siglip2 caption`: what the Python API writes, printed or drawn."""

import json

import numpy as np
import pytest
from inference.captioners import looks, save_workdir, saying, training_ids, writes_caption
from PIL import Image

from siglip2_jax import inference as captioning
from siglip2_jax.inference import GenerationConfig

SMALL = ("--batch-size", 4, "--max-num-patches", 16)
PLAIN = {
    "stage": None,
    "head": None,
    "dtype": "float32",
    "weights": "float32",
    "preproc": None,
    "text_norm": None,
    "exif": True,
}


@pytest.fixture
def loads(monkeypatch):
    """Makes the command load a captioner that is there already; gives how it was asked to."""

    def use(captioner) -> list:
        calls = []
        monkeypatch.setattr(
            captioning, "load_captioner", lambda *a, **b: calls.append((a, b)) or captioner
        )
        return calls

    return use


def test_a_line_for_each_image(siglip2, photos, loads):
    calls = loads(writes_caption())
    (photos / "b.jpg").write_bytes(b"")
    images = [photos / name for name in ("a.png", "b.jpg", "deeper")]
    result = siglip2("caption", "RUN", *images, *SMALL)
    lines = [f"{photos / name}: a dog by a tree" for name in ("a.png", "deeper/h.png")]
    assert result.code == 0 and result.out.splitlines() == lines
    assert result.err.startswith("siglip2: skipped: ") and "zero bytes" in result.err
    assert result.err.count("\n") == 1
    options = ("--head", "second", "--dtype", "bfloat16", "--weights", "int8")
    options += ("--tokenizer", "words", "--no-exif")
    assert siglip2("caption", "RUN", photos / "a.png", *SMALL, *options).code == 0
    changed = PLAIN | {"head": "second", "dtype": "bfloat16", "weights": "int8", "exif": False}
    assert calls == [(("RUN", None), PLAIN), (("RUN", "words"), changed)]
    (photos / "a.png").write_bytes(b"")
    result = siglip2("caption", "RUN", photos / "a.png", *SMALL)
    assert result.code == 1 and result.out == ""


@pytest.mark.parametrize(
    "options, generation",
    [
        ((), GenerationConfig()),
        (("--method", "beam", "--beams", 2), GenerationConfig("beam", beams=2)),
        (
            ("--method", "sample", "--temperature", 0.5, "--seed", 7),
            GenerationConfig("sample", temperature=0.5, seed=7),
        ),
    ],
)
def test_json_holds_what_the_api_gives(siglip2, photos, loads, options, generation):
    loads(looks())
    (photos / "b.jpg").write_bytes(b"")
    images = [str(photos / name) for name in ("a.png", "b.jpg", "d.webp")]
    result = siglip2("caption", "RUN", *images, *SMALL, *options, "--json")
    answer = json.loads(result.out)
    assert answer["preproc"] == "reference" and answer["method"] == generation.method
    first, broken, last = answer["results"]
    queries = map(captioning.Query, images)
    expected = list(looks().stream(queries, generation, max_num_patches=16, batch_size=4))
    for found, wanted, image in ((first, expected[0], images[0]), (last, expected[2], images[2])):
        assert found == {"image": image, "caption": wanted.text, "score": wanted.score}
    assert broken == {"image": images[1], "error": str(expected[1])}


def boxed(ids: list[int], photos) -> tuple:
    """A captioner that writes these ids, and an image of 40 x 20 (width x height)."""
    image = photos / "white.png"
    Image.new("RGB", (40, 20), "white").save(image)
    return saying(writes_caption(), ids), image


def test_locate(siglip2, photos, loads, tmp_path):
    captioner, image = boxed(training_ids("refer"), photos)
    loads(captioner)
    options = ("--locate", "a red dog", *SMALL)
    result = siglip2("caption", "RUN", image, *options, "--draw", tmp_path / "out.png")
    assert result.code == 0 and result.out == f"{image}: 8,2,30,10\n"
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    red = (drawn == (255, 45, 85)).all(axis=-1)
    assert drawn.shape == (20, 40, 3) and red[2, 8:30].all() and red[9, 8:30].all()
    assert red[2:10, 8].all() and red[2:10, 29].all()
    assert not red[:, :8].any() and not red[:2].any()

    (found,) = json.loads(siglip2("caption", "RUN", image, *options, "--json").out)["results"]
    assert found.pop("score") <= 0
    assert found == {"image": str(image), "phrase": "a red dog", "box": [8, 2, 30, 10]}
    loads(saying(captioner, [*training_ids("refer")[:-3], 1]))
    assert siglip2("caption", "RUN", image, *options).out == f"{image}: no box\n"


def test_describe(siglip2, photos, loads, tmp_path):
    captioner, image = boxed(training_ids("ground"), photos)
    loads(captioner)
    options = ("--describe", "8,2,30,10", *SMALL)
    result = siglip2("caption", "RUN", image, *options, "--draw", tmp_path / "out.PNG")
    assert result.code == 0 and result.out == f"{image}: a red dog\n"
    assert (np.asarray(Image.open(tmp_path / "out.PNG"))[2:10, 8] == (255, 45, 85)).all()
    (found,) = json.loads(siglip2("caption", "RUN", image, *options, "--json").out)["results"]
    assert found["phrase"] == "a red dog" and found["box"] == [8, 2, 30, 10]


@pytest.mark.parametrize(
    "options, words",
    [
        ("--beams 2", "--beams has no effect without --method beam"),
        ("--method beam --seed 2", "--seed has no effect without --method sample"),
        ("--temperature 2", "--temperature has no effect without --method sample"),
        ("--method sample --temperature -1", "temperature is -1.0; it must be at least 0"),
        ("--draw out.png", "--draw draws a box; ask for one with --locate"),
        ("--locate x --draw out.jpg", "got out.jpg; name one that ends in .png"),
        ("{photos} --locate x --draw out.png", "--draw takes one image, got 9"),
        ("--describe 0,0,99,9", "a.png: a box must be left < right and top < bottom in pixels"),
        ("--locate=", "a.png: a phrase to locate is blank"),
        ("{photos}/absent", "matches no image"),
    ],
)
def test_bad_options_are_one_sentence(siglip2, photos, loads, tmp_path, options, words):
    loads(writes_caption())
    (photos / "more.png").write_bytes((photos / "a.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    args = options.format(photos=photos).split()
    result = siglip2("caption", "RUN", photos / "a.png", *args, *SMALL)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("siglip2: error: ") and result.err.count("\n") == 1
    assert words in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", ""])
def test_a_box_is_four_numbers(capsys, siglip2, text):
    with pytest.raises(SystemExit) as stop:
        siglip2("caption", "RUN", "a.png", f"--describe={text}")
    assert stop.value.code == 2
    assert f"--describe: {text!r} is not LEFT,TOP,RIGHT,BOTTOM" in capsys.readouterr().err


def test_a_released_checkpoint_has_no_decoder(siglip2, model_dir, photos):
    result = siglip2("caption", model_dir, photos / "a.png")
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1
    assert "siglip2 train decoder_on_frozen" in result.err


@pytest.mark.slow
def test_a_workdir(siglip2, photos, tmp_path):
    save_workdir(tmp_path / "run", caption="two cats")
    result = siglip2("caption", tmp_path / "run", photos / "a.png", *SMALL)
    assert result.code == 0 and result.out == f"{photos / 'a.png'}: two cats\n"
