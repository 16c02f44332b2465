"""The model card of an export, and what it says of a run, of results and of data."""

import dataclasses
import json
import re

import pytest

from siglip2_jax.checkpoints import write
from siglip2_jax.checkpoints.checkpoint import TrainingRun
from siglip2_jax.checkpoints.model_card import Score, base_model, model_card
from siglip2_jax.models.config import two_towers
from siglip2_jax.testing import TINY, TINY_FIXED, tiny_embedder

SECRET = "/home/alice/secret_project"
FOLDER = {"kind": "Folder", "path": f"{SECRET}/flowers/"}
TARS = {"kind": "Tars", "pattern": f"gs://{SECRET}/web-*.tar"}
TFDS = {"kind": "Tfds", "name": "coco_captions", "split": "train"}
PRETRAINED = {"kind": "Pretrained", "source": "google/siglip2-base-patch16-naflex@main"}
STAGES = [
    {
        "name": "main",
        "steps": 2000,
        "batch_size": 512,
        "data": {"source": {"kind": "Mixture", "parts": [[FOLDER, 1.0], [TARS, 2.0]]}},
        "objectives": {"sigmoid": {}, "caption": {}},
        "start": PRETRAINED,
    },
    {
        "name": "end",
        "steps": None,
        "examples": 10_000,
        "batch_size": 64,
        "data": {"source": {"kind": "Weighted", "source": TFDS, "weights": f"{SECRET}/w.npy"}},
        "objectives": {"sigmoid": {}},
        "start": {"kind": "Continue"},
    },
]
TRAINED = TrainingRun(step=2100, stage="end", config={"stages": STAGES, "tokenizer": SECRET})
SCORE = Score("imagenet", "256 tokens", "top1", "70.31", "70.3", "templates a|b")


def header(card: str) -> list[str]:
    return re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1].splitlines()


def test_sizes_inputs_and_loading(fixed, naflex):
    card = model_card(naflex, tokenizer=True)
    for line in [
        "# SigLIP 2 with sizes of its own",
        "| image | 36 | 2 | 3 | 40 |",
        "| text | 24 | 3 | 2 | 40 |",
        "- embeddings: 36 values",
        "- patches: 4 x 4 pixels",
        "- positions: 5 x 5",
        "- text normalisation: `reference`",
        'model = siglip2_jax.load("owner/name")  # this repository, or a directory',
        'model = AutoModel.from_pretrained("owner/name")',
    ]:
        assert line in card.splitlines()
    assert "token budget" in card and "exactly 64 tokens, padded with id 0" in card
    assert "sentence" not in card and "not in this export" not in card
    assert header(card) == [
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        *("- siglip2_jax", "- siglip2", "- jax", "- naflex"),
    ]
    card = model_card(fixed, tokenizer=True)
    assert "- images: 22 x 22 pixels, 25 patches" in card and "token budget" not in card
    assert "- sentence-transformers" in header(card) and "SentenceTransformer(" in card
    bare = model_card(fixed, tokenizer=False)
    assert "not in this export" in bare and "sentence" not in bare


def test_released_sizes_are_named(make_checkpoint):
    released = make_checkpoint(two_towers("B", patch_size=16, image_size=256))
    assert "# SigLIP 2 B/16 256\n" in model_card(released, tokenizer=False)
    first = make_checkpoint(
        two_towers("B", patch_size=16, image_size=256, vocab_size=32_000, pad_id=1)
    )
    card = model_card(first, tokenizer=False)
    assert "# SigLIP B/16 256\n" in card and "- siglip" in header(card)


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("google/siglip2-base-patch16-naflex", "google/siglip2-base-patch16-naflex"),
        ("gs://big_vision/siglip2/siglip2_b16_naflex.npz", "google/siglip2-base-patch16-naflex"),
        ("webli_en_b16_256_60500360.npz", "google/siglip-base-patch16-256"),
        ("me/flowers@v2", "me/flowers"),
        ("/data/flowers.npz", None),
        ("siglip2_b16_naflex", None),
        ("memory", None),
    ],
)
def test_base_models_that_are_known(fixed, source, base):
    found = dataclasses.replace(fixed, source=source)
    assert base_model(found) == base
    card = model_card(found, tokenizer=False)
    assert (f'base_model: "{base}"' in header(card)) == (base is not None)
    released = base is not None and base.startswith("google/")
    assert ("license: apache-2.0" in header(card)) == released


def test_a_directory_is_no_repository(fixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "flowers").mkdir(parents=True)
    assert base_model(dataclasses.replace(fixed, source="me/flowers")) is None


def test_a_run_tells_its_data_and_no_path(fixed):
    card = model_card(dataclasses.replace(fixed, run=TRAINED, source=SECRET), tokenizer=False)
    for row in [
        "| `main` | 2,000 steps | 512 | Folder `flowers`, Tars `web-*.tar` | sigmoid, caption |",
        "| `end` | 10,000 examples | 64 | Tfds `coco_captions` | sigmoid |",
    ]:
        assert row in card.splitlines()
    assert "This is step 2,100, of stage `end`." in card
    assert 'base_model: "google/siglip2-base-patch16-naflex"' in header(card)
    assert "license" not in card  # of what was trained, its owner alone can tell
    assert "alice" not in card and "secret" not in card


def test_a_run_from_scratch_has_no_base(fixed):
    stage = STAGES[0] | {"start": {"kind": "Scratch"}}
    run = dataclasses.replace(TRAINED, config={"stages": [stage]})
    assert base_model(dataclasses.replace(fixed, run=run, source="me/flowers")) is None


def test_results_are_a_table(fixed):
    card = model_card(fixed, tokenizer=False, scores=[SCORE])
    row = "| imagenet | 256 tokens | top1 | 70.31 | 70.3 | templates a¦b |"
    assert card.splitlines()[-1] == row
    assert "## Results" not in model_card(fixed, tokenizer=False)


def test_exports_are_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        tiny_embedder(TINY_FIXED).save(tmp_path / name, "hf")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b"SentenceTransformer(" in files["README.md"]
    texts = json.loads(files["sentence_bert_config.json"])["processing_kwargs"]["text"]
    assert texts == {"padding": "max_length", "max_length": 64, "truncation": True}


def test_native_resolution_has_no_files_for_sentence_transformers(tmp_path, fixed):
    tiny_embedder(TINY).save(tmp_path / "native", "hf")
    write(fixed, tmp_path / "bare", "hf")  # nor has a model without a tokenizer
    for name in ("native", "bare"):
        assert (tmp_path / name / "README.md").exists()
        assert not (tmp_path / name / "modules.json").exists()
