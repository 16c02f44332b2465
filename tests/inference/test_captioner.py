"""A captioner: what decoders write that were never trained but do as they are told."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from inference.captioners import (
    DECODER,
    MODEL,
    PHOTOS,
    SMALL,
    TARGETS,
    embedder,
    looks,
    parrot,
    save_heads,
    save_workdir,
    saying,
    training_ids,
    writes_caption,
)
from inference.samples import counted_compilations, png
from PIL import Image
from train.runs import run, save_run, stage

from siglip2_jax import Captioner, load_captioner
from siglip2_jax.checkpoints import ConversionError, SourceError
from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.demo import TOKENIZER, shipped_examples
from siglip2_jax.inference import GenerationConfig, Query, loading
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.queries import first_ids
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import random_params


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions(method):
    options = {"method": method, "beams": 2, "temperature": 0.5, **SMALL}
    found = writes_caption().caption(PHOTOS, **options)
    assert found == ["a dog by a tree"] * 5
    assert writes_caption().caption([], **options) == []
    assert writes_caption().caption(PHOTOS[0], **options) == found[:1]


def test_boxes_of_phrases_are_pixels():
    captioner = saying(writes_caption(), training_ids("refer"))
    found = captioner.locate(PHOTOS[:2], ["a Red dog", "a red dog"], **SMALL)
    np.testing.assert_allclose(found, [(8, 2, 30, 10), (3.2, 1.6, 12, 8)], atol=1e-9)
    turned = Image.Exif()
    turned[0x0112] = 6  # 20 x 40 becomes 40 x 20 (height x width)
    (found,) = captioner.locate(png(PHOTOS[0], exif=turned), "a red dog", **SMALL)
    np.testing.assert_allclose(found, (4, 4, 15, 20), atol=1e-9)

    ids = [*training_ids("refer")[:-3], 1]
    assert saying(captioner, ids).locate(PHOTOS[:1], ["a red dog"], **SMALL) == [None]


def test_boxes_in_another_notation():
    boxes = BoxText(100, ("xmin", "ymin", "xmax", "ymax"))
    targets = dataclasses.replace(TARGETS, boxes=boxes)
    captioner = saying(writes_caption(), training_ids("refer", targets))
    captioner.boxes = boxes
    (found,) = captioner.locate(PHOTOS[0], "a red dog", **SMALL)
    np.testing.assert_allclose(found, (8, 2, 30, 10), atol=1e-9)


def test_phrases_for_boxes():
    captioner = saying(writes_caption(), training_ids("ground"))
    found = captioner.describe(PHOTOS[:2], [(8.0, 2.0, 30.0, 10.0), (3.2, 1.6, 12.0, 8.0)], **SMALL)
    assert found == ["a red dog"] * 2
    (answer,) = captioner.stream(
        [Query(PHOTOS[0], box=(8.0, 2.0, 30.0, 10.0))], GenerationConfig(), **SMALL
    )
    assert answer.text == "a red dog" and answer.box == (8, 2, 30, 10)
    assert -1e-3 < answer.score <= 0


PHRASES = ("a red dog", "THE two  cats", "dog: brown", "école", " x ", "犬", "a 5 : 6")


def check_first_ids(tokenizer: Tokenizer, targets: DecoderTargets) -> None:
    """They begin all that is learned with the same start, and hold all of it."""
    captions = [example.captions[0] for example in shipped_examples()][:20]
    rng = np.random.default_rng(0)
    for phrase in (*PHRASES, *captions):
        box = np.sort(rng.random((2, 2)), axis=0).reshape(4).tolist()
        ymin, xmin, ymax, xmax = box
        pixels = (xmin * 640, ymin * 480, xmax * 640, ymax * 480)
        queries = {
            "caption": (Query(b""), "cap:"),
            "refer": (Query(b"", phrase=phrase), f"aref: {phrase} :"),
            "ground": (Query(b"", box=pixels), f"gcap: {targets.boxes.write(tuple(box))} :"),
        }
        for task, (query, text) in queries.items():
            ids = first_ids(query, (640, 480), tokenizer, targets.boxes, targets.length)
            learned = training_ids(task, targets, text=phrase, box=box, phrase=phrase)
            assert learned[: len(ids)] == ids and len(ids) < len(learned)
            (begun,) = targets.tokenizer.decode([ids])
            expected = text.encode().lower().decode().split()
            assert begun.split() == expected, "nothing is left to the decoder"


def test_what_is_given_is_what_training_begins_with():
    targets = dataclasses.replace(TARGETS, length=200)
    check_first_ids(Tokenizer.load(TOKENIZER), targets)


@pytest.mark.parametrize("model", ["small_8k.model", "gemma_256k.model"])
def test_what_is_given_with_other_tokenizers(shared, model):
    path = str(shared / "data/tokenizer" / model)
    targets = DecoderTargets(path, length=200)
    check_first_ids(Tokenizer.load(path), targets)


class Joining(Tokenizer):
    """Makes a colon one token with the character that follows it after a space."""

    def encode(self, text: str) -> list[int]:
        return [hash(part) for part in re.findall(r": \w|.", text)]


def test_what_a_tokenizer_joins_is_left_to_the_decoder():
    joining = Joining.load(TOKENIZER)
    ids = first_ids(Query(b"", phrase="a: dog"), (9, 9), joining, BoxText(), 64)
    learned = [*map(joining.encode, ("aref:", " a: dog", " : 5 0 9 9"))]
    assert ids == [*learned[0], *learned[1], learned[2][0]] and learned[2][0] == hash(" ")


@pytest.mark.slow
def test_neither_the_batch_nor_the_call_matters():
    for method in ("greedy", "sample"):
        options = {"method": method, "max_num_patches": 16}
        found = looks().caption(PHOTOS, batch_size=4, **options)
        assert found == looks().caption(PHOTOS, batch_size=1, **options)
        assert len(set(found)) == 5
        assert looks().caption(PHOTOS[0], batch_size=4, **options) == found[:1]
    # What is drawn follows from the seed and the image's place.
    assert looks().caption(PHOTOS, seed=1, batch_size=4, **options) != found
    assert looks().caption(PHOTOS[1:], batch_size=4, **options) != found[1:]
    broken = looks().stream(map(Query, [b"", *PHOTOS[1:]]), GenerationConfig("sample"), 16, 4)
    assert [answer.text for answer in list(broken)[1:]] == found[1:]


@pytest.mark.slow
def test_a_handful_of_programs():
    fresh = Captioner(embedder(), DECODER, looks().params)
    with counted_compilations() as count:
        for n in (1, 2, 3, 4, 5):
            queries = [
                Query(x, phrase="a dog" if i % 2 else None) for i, x in enumerate(PHOTOS[:n])
            ]
            for temperature in (0.5, 0.9):
                list(
                    fresh.stream(
                        queries, GenerationConfig("sample", temperature=temperature), 16, 4
                    )
                )
    assert 1 <= count.total() <= 8  # batches of 1, 2 and 4, the image tower's, keys


@pytest.mark.slow
def test_an_image_is_encoded_once_for_all_its_asks(monkeypatch):
    queries = [
        Query(PHOTOS[i], phrase=x) for i in (0, 1, 2) for x in (None, "a dog", "cat")[: 3 - i]
    ]
    queries.insert(3, Query(b""))
    numbered = list(enumerate(queries))
    groups = [numbered[:3], numbered[3:4], numbered[4:6], numbered[6:]]
    encoded, encode = [], Embedder.image_features

    def noted(self, patches, **options):
        encoded.append(len(patches.pixels))
        return encode(self, patches, **options)

    monkeypatch.setattr(Embedder, "image_features", noted)
    # Scores are rounded as the batches have it.
    plain = [
        getattr(x, "text", "unreadable")
        for x in looks().stream(queries, GenerationConfig("sample"), 16, 4)
    ]
    encoded.clear()
    found = list(looks().stream_groups(groups, GenerationConfig("sample"), 16, 4))
    assert encoded == [3]
    assert isinstance(found.pop(1), ImageError) and plain.pop(3) == "unreadable"
    assert [answer.text for own in found for answer in own] == plain
    assert [own[0].size for own in found] == [(40, 20), (16, 16), (30, 9)]
    with pytest.warns(UserWarning, match="zero bytes.*nothing is written about it"):
        again = looks().answer(groups, GenerationConfig("sample"), 16)
    assert again[1] is None and [len(own or []) for own in again] == [3, 0, 2, 1]


def test_a_broken_image_costs_its_own_text_only(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    images = [PHOTOS[0], tmp_path / "broken.jpg", b"", PHOTOS[1]]
    with pytest.warns(UserWarning) as caught:
        found = looks().caption(images, **SMALL)
    assert [bool(text) for text in found] == [True, False, False, True]
    assert len(caught) == 2 and "broken.jpg" in str(caught[0].message)
    boxes = [(0.0, 0.0, 1.0, 1.0)] * 4
    with pytest.warns(UserWarning, match="broken.jpg.*nothing is written about it"):
        assert looks().describe(images[:2], boxes[:2], **SMALL)[1] == ""
    with pytest.warns(UserWarning, match="zero bytes"):
        assert looks().locate(images[2:], ["dog"] * 2, **SMALL)[0] is None
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        looks().caption(images, on_error="raise", **SMALL)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: x.locate(PHOTOS, ["dog"]), "there are 5 images and 1 phrases; give one for"),
        (lambda x: x.describe(PHOTOS[0], []), "there are 1 images and 0 boxes"),
        (lambda x: x.locate(PHOTOS[0], " "), "a phrase to locate is blank"),
        (lambda x: x.locate(PHOTOS[0], "dog " * 40), "'dog dog .* tokens, which leaves no room"),
        (
            lambda x: x.describe(PHOTOS[0], [(8.0, 2.0, 41.0, 10.0)]),
            "image 0: .* is 40 wide and 20 high, got .*41",
        ),
        (lambda x: x.describe(PHOTOS[0], [(8.0, 2.0, 8.0, 10.0)]), "left < right and top < bottom"),
        (lambda x: x.caption(PHOTOS, batch_size=0), "batch_size is 0"),
        (lambda x: x.caption(PHOTOS, max_num_patches=0), "max_num_patches must be at least 1"),
        (lambda x: x.caption(PHOTOS, beams=0), "beams is 0"),
        (lambda x: x.caption(PHOTOS, temperature=-1.0), "temperature is -1.0"),
        (lambda x: x.caption(PHOTOS, temperature=float("nan")), "temperature is nan"),
        (lambda x: x.caption(PHOTOS, top_p=1.5), "top_p is 1.5; it must be from 0 to 1"),
    ],
)
def test_what_cannot_be_asked(call, message):
    with pytest.raises(ValueError, match=message):
        call(writes_caption())


def test_texts_keep_their_colons():
    """Whatever the text tower reads: decoders know no "canonicalize"."""
    words = Tokenizer.load(TOKENIZER, text_norm="canonicalize")
    model = Embedder(MODEL, embedder().params, embedder().preprocess, words)
    assert Captioner(model, DECODER, {}).tokenizer.text_norm == "reference"
    words = Tokenizer.load(TOKENIZER, text_norm="none")
    model = Embedder(MODEL, embedder().params, embedder().preprocess, words)
    assert Captioner(model, DECODER, {}).tokenizer.text_norm == "none"


def test_without_a_fitting_tokenizer():
    with pytest.raises(TokenizerError, match="loaded without a tokenizer"):
        Captioner(embedder(tokenizer=False), DECODER, {})
    config = dataclasses.replace(DECODER, vocab_size=100)
    with pytest.raises(TokenizerError, match="1024 ids, the checkpoint's token table has 100"):
        Captioner(embedder(), config, {})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    save_workdir(path, caption="a dog by a tree", other="two cats")
    return path


def test_a_decoder_of_a_run_that_diverged_is_refused(tmp_path, monkeypatch):
    head = parrot(training_ids("caption", text="a dog"))
    head["out"]["kernel"] = head["out"]["kernel"] * np.float32(np.nan)
    save_heads(tmp_path, {"caption": head}, {"caption": head})
    monkeypatch.setattr(loading, "load", lambda *a, **b: embedder())
    with pytest.raises(ConversionError, match="values of heads/caption/out/kernel are NaN"):
        load_captioner(tmp_path)


def test_a_decoder_is_found_by_its_tensors(workdir, monkeypatch):
    """The model comes from `load`, whose many small reads another test waits for."""
    calls = []
    monkeypatch.setattr(loading, "load", lambda *a, **b: calls.append((a, b)) or embedder())
    options = {"dtype": "bfloat16", "weights": "int8", "preproc": "hf", "text_norm": "none"}
    options["exif"] = False
    found = load_captioner(workdir, TOKENIZER, head="caption", boxes=BoxText(9), **options)
    assert calls == [((epath.Path(workdir / "checkpoints" / "3" / "params"), TOKENIZER), options)]
    assert found.config == DECODER and found.boxes.bins == 9 and found.embedder is embedder()
    expected = flatten(parrot(training_ids("caption", text="a dog by a tree")))
    for path, x in flatten(found.params).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)
        assert x.dtype == jnp.float32
    assert found.caption(PHOTOS[0], **SMALL) == ["a dog by a tree"]


@pytest.mark.slow
def test_the_last_checkpoint_with_the_decoder(workdir, tmp_path, monkeypatch):
    """Later stages may have trained none, or another."""
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    config = run(stage("later", steps=5), model=MODEL)
    save_run(tmp_path, config, [5], make_mesh(1, jax.devices()[:1]), keep_last=2)
    loaded = []
    monkeypatch.setattr(loading, "load", lambda x, *a, **b: loaded.append(x) or embedder())
    found = load_captioner(tmp_path, head="other")
    assert found.caption(PHOTOS[0], **SMALL) == ["two cats"]
    assert loaded == [epath.Path(tmp_path / "checkpoints" / "3" / "params")]
    with pytest.raises(ConversionError, match="several decoders; name one of caption, other"):
        load_captioner(tmp_path)
    with pytest.raises(ConversionError, match="its stage 'later' holds no decoder, as no"):
        load_captioner(tmp_path, stage="later")
    with pytest.raises(ConversionError, match="of stage 'first'; it holds some of main, later"):
        load_captioner(tmp_path, stage="first")


@pytest.mark.slow
def test_an_average_with_another_tokenizer(workdir, tmp_path):
    Tokenizer.load(TOKENIZER).save(tmp_path)
    source = workdir / "checkpoints" / "3" / "average"
    found = load_captioner(source, tmp_path, head="other", dtype="bfloat16")
    assert found.caption(PHOTOS[0], **SMALL) == ["averaged"]
    assert found.embedder.dtype == "bfloat16"
    expected = random_params(MODEL)["text"]["head"]["kernel"]
    np.testing.assert_array_equal(found.embedder.params["text"]["head"]["kernel"], expected)


def test_sources_without_the_decoder(workdir, tmp_path):
    with pytest.raises(ConversionError, match="several decoders; name one of caption, other"):
        load_captioner(workdir)
    with pytest.raises(ConversionError, match="holds no decoder 'third', but caption, other"):
        load_captioner(workdir, head="third")
    none = "holds no decoder, as no released .* train decoder_on_frozen"
    embedder().save(tmp_path / "release.npz", "npz")
    with pytest.raises(ConversionError, match=f"release.npz: it {none}"):
        load_captioner(tmp_path / "release.npz")
    save_run(tmp_path / "run", run(stage()), [3], make_mesh(1, jax.devices()[:1]))
    with pytest.raises(ConversionError, match=none):
        load_captioner(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("some words")
    with pytest.raises(ConversionError, match="is text"):
        load_captioner(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match="there is no file or directory"):
        load_captioner(tmp_path / "absent")
