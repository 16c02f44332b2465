"""`siglip2 embed`: the right rows for the right items, whatever interrupts it."""

import json
import sys

import numpy as np
import pytest

from siglip2_jax import Embedder, load
from siglip2_jax.checkpoints.source import resolve
from siglip2_jax.inference import read_embeddings

SMALL = ("--batch-size", 4, "--max-num-patches", 16)
NAMES = "a.png b.jpg c.JPG d.webp deeper/h.png e.bmp f.tif g.gif".split()


@pytest.fixture
def embed(siglip2, model_dir, photos, tmp_path):
    """Runs the command on the photos, or on what is given instead of them."""

    def run(*args, images=(photos,), out="out.npz", source=model_dir):
        what = ("--images", *images) if images else ()
        return siglip2("embed", source, *what, "--out", tmp_path / out, *SMALL, *args)

    return run


@pytest.fixture
def spy(monkeypatch):
    """Notes which items are embedded; Ctrl-C comes before item number `stop_at`."""

    class Spy:
        items: list[str] = []
        stop_at = None

    original = Embedder.stream_images

    def stream(self, images, *args):
        Spy.items = list(images)
        for i, row in enumerate(original(self, images, *args)):
            if i == Spy.stop_at:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(Embedder, "stream_images", stream)
    return Spy


def read(path) -> dict:
    return read_embeddings(path)._asdict()


def test_rows_are_those_of_the_api(embed, model_dir, photos, tmp_path):
    result = embed("--json", out="new/out.npz")
    assert result.code == 0, result.err
    found = read(tmp_path / "new" / "out.npz")
    items = [str(photos / name) for name in NAMES]
    assert list(found["items"]) == items
    expected = load(model_dir).embed_images(items, max_num_patches=16, batch_size=4)
    np.testing.assert_allclose(found["embeddings"], expected, atol=1e-6)
    settings = found["settings"]
    assert settings["preproc"] == "reference" and settings["max_num_patches"] == 16
    summary = json.loads(result.out)
    assert summary["embedded"] == 8 and summary["width"] == 24 and summary["skipped"] == 0
    assert summary["settings"] == settings and summary["errors"] is None
    assert sorted(x.name for x in (tmp_path / "new").iterdir()) == ["out.npz"]


def test_the_checkpoint_is_opened_once(embed, monkeypatch, model_dir, photos):
    """A second time would query the hub again, and might find another revision."""
    opened = []

    def spy(source):
        opened.append(source)
        return resolve(source)

    monkeypatch.setattr(sys.modules["siglip2_jax.checkpoints.read"], "resolve", spy)
    assert embed(images=(photos / "a.png",)).code == 0
    assert opened == [str(model_dir)]
    refused = embed("--stage", "main", out="other.npz")
    assert refused.code == 2 and "only a run's checkpoints have stages" in refused.err


def test_interruption_costs_nothing(embed, photos, spy, tmp_path):
    """Two interruptions, a change of settings, and the end: the file of an undisturbed run."""
    spy.stop_at = 3
    result = embed()
    assert result.code == 130 and result.err.splitlines()[-1] == "siglip2: stopped by Ctrl-C"
    assert not (tmp_path / "out.npz").exists() and (tmp_path / "out.npz.partial").is_dir()
    assert embed().code == 130
    assert spy.items == [str(photos / name) for name in NAMES[3:]]

    changed = embed("--no-exif")
    assert changed.code == 2 and len(changed.err.splitlines()) == 1
    assert "exif True (now False)" in changed.err and "--overwrite" in changed.err
    (photos / "z.png").write_bytes((photos / "a.png").read_bytes())
    assert "items 8 (now 9)" in embed().err
    (photos / "z.png").unlink()

    spy.stop_at = None
    assert embed().code == 0
    assert spy.items == [str(photos / name) for name in NAMES[6:]]  # none again
    assert not (tmp_path / "out.npz.partial").exists()
    spy.items = []
    assert embed().code == 0 and spy.items == []  # finished: nothing to do
    assert embed("--dtype", "bfloat16").code == 2

    assert embed(out="undisturbed.npz").code == 0
    found, expected = read(tmp_path / "out.npz"), read(tmp_path / "undisturbed.npz")
    np.testing.assert_allclose(found["embeddings"], expected["embeddings"], atol=1e-6)
    assert list(found["items"]) == list(expected["items"])
    assert found["settings"] == expected["settings"]


def test_a_file_is_bound_to_content_and_not_to_paths(
    embed, model_dir, photos, spy, tmp_path, monkeypatch
):
    model = load(model_dir)
    assert embed().code == 0
    model.save(tmp_path / "moved.npz", "npz")
    words = str(model_dir / "tokenizer.model")
    spy.items = []
    assert embed("--tokenizer", words, source=tmp_path / "moved.npz").code == 0 and not spy.items

    image = photos / "e.bmp"  # of the same size, with other pixels
    before = image.read_bytes()
    image.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    result = embed()
    assert (
        result.code == 2 and "out.npz was made with files '" in result.err and "now '" in result.err
    )

    kernel = np.array(model.params["text"]["head"]["bias"])
    kernel[-1] = np.nextafter(kernel[-1], np.float32(9))
    model.params["text"]["head"]["bias"] = kernel
    model.save(tmp_path / "moved.npz", "npz", overwrite=True)
    result = embed("--tokenizer", words, source=tmp_path / "moved.npz")
    assert result.code == 2 and "out.npz was made with weights '" in result.err
    monkeypatch.setattr("siglip2_jax.inference.embedder.__version__", "9.9.9")
    assert "(now '9.9.9')" in embed().err


def test_broken_images_are_left_out_and_reported(embed, photos, tmp_path):
    broken = photos / "broken.jpg"
    broken.write_bytes(b"not a photo at all")
    images = (photos / "*.png", broken, photos / "deeper")
    result = embed("--json", images=images)
    assert result.code == 0, result.err
    assert "siglip2: skipped: " in result.err and "not an image" in result.err
    assert json.loads(result.out)["skipped"] == 1
    found = read(tmp_path / "out.npz")
    assert list(found["items"]) == [str(photos / "a.png"), str(photos / "deeper/h.png")]
    assert found["embeddings"].shape == (2, 24) and np.isfinite(found["embeddings"]).all()
    report = (tmp_path / "out.npz.errors.jsonl").read_text("utf-8")
    (line,) = map(json.loads, report.splitlines())
    assert line["item"] == str(broken) and "not an image" in line["error"]

    strict = embed("--strict", images=images, out="strict.npz")
    assert strict.code == 2 and "not an image" in strict.err.splitlines()[-1]
    assert not (tmp_path / "strict.npz").exists()

    # Starting anew replaces everything, the report included.
    assert embed("--overwrite", images=(photos / "a.png",)).code == 0
    assert list(read(tmp_path / "out.npz")["items"]) == [str(photos / "a.png")]
    assert not (tmp_path / "out.npz.errors.jsonl").exists()


def test_files_that_are_passed_over_are_counted(embed, photos, tmp_path, caplog):
    for name in ("a.mov", "notes.txt", "b.MOV", ".ipynb_checkpoints/a.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "set" / "a.png").write_bytes((photos / "a.png").read_bytes())
    result = embed("--json", images=(tmp_path / "set",))
    assert json.loads(result.out)["embedded"] == 1
    sentence = f"{tmp_path / 'set'}: 3 other files are passed over (2 .mov, 1 .txt)"
    assert sentence in caplog.messages


def test_no_readable_image_is_a_failure(embed, photos):
    (photos / "broken.png").write_bytes(b"")
    assert embed(images=(photos / "broken.png",)).code == 1


def test_texts(embed, model_dir, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\ufeffa dog\n\nTwo cats\r\na dog \n", encoding="utf-8")
    assert embed("--texts", texts, images=()).code == 0
    found = read(tmp_path / "out.npz")
    assert list(found["items"]) == ["a dog", "Two cats", "a dog "]
    expected = load(model_dir).embed_texts(["a dog", "Two cats", "a dog "], batch_size=4)
    np.testing.assert_allclose(found["embeddings"], expected, atol=1e-6)
    assert found["settings"]["text_norm"] == "reference"
    again = embed("--texts", texts, "--text-norm", "none", images=())
    assert again.code == 2 and "text_norm 'reference' (now 'none')" in again.err


def test_a_model_that_cannot_be_loaded_leaves_nothing(embed, bare_npz, tmp_path):
    """Or the corrected command would be refused, for settings that never made a row."""
    (tmp_path / "texts.txt").write_text("a dog\n")
    result = embed("--texts", tmp_path / "texts.txt", source=bare_npz, images=())
    assert result.code == 2 and "without a tokenizer" in result.err
    assert not list(tmp_path.glob("out*"))


def test_a_foreign_output_is_not_replaced(embed, tmp_path):
    assert "ends in .npz" in embed(out="out.csv").err
    for name, write in {
        "arrays": lambda path: np.savez(path, x=np.zeros(3)),
        "text": lambda path: path.write_text("hello"),
        "cut": lambda path: path.write_bytes(b"PK\x03\x04 cut short"),
    }.items():
        path = tmp_path / f"{name}.npz"
        write(path)
        before = path.read_bytes()
        result = embed(out=path.name)
        assert result.code == 2 and "was not written by `siglip2 embed`" in result.err, name
        assert path.read_bytes() == before
