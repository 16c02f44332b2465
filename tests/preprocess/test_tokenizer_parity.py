"""Ids against the real Gemma model's golden ids, and against `tokenizers` and transformers."""

import io
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import siglip2_jax
from siglip2_jax.preprocess.text_norm import normalize
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.preprocess.tokenizer_json import (
    from_sentencepiece,
    huggingface_files,
    to_sentencepiece,
)

DEMO = Path(siglip2_jax.__path__[0]) / "demo" / "tokenizer.model"
ESCAPES = (("\\n", "\n"), ("\\s", " "), ("\\x", ""))
PROCESSORS = {
    "siglip": ("SiglipImageProcessor", "SiglipProcessor"),
    "siglip2": ("Siglip2ImageProcessor", "Siglip2Processor"),
}
TEXTS = [
    "",
    "a dog on the grass",
    "two  spaces,\n\n\tthree   more    ",
    " leading and trailing ",
    "草地上的狗 собака ένας σκύλος ज़\u093c",
    "🏃‍♂️ e\u0301 \x07 ▁ <b>bold</b> <mask>",
    "long " * 200,
    "x" * 63,
    "0" * 64,
]


def golden_cases(folder: Path) -> list[tuple[str, list[int]]]:
    """Texts and the ids of the real Gemma model, without marks."""

    def ids(line: str) -> list[int]:
        return [int(number) for number in line.split(",")]

    def read(name: str) -> str:
        return (folder / name).read_bytes().decode()

    cases = [(read("utf8_input.txt"), ids(read("utf8_tokens_gemma.txt")))]
    for kind in ("small", "mixed"):
        lines = filter(None, read(f"{kind}_input.txt").split("\n"))
        answers = filter(None, read(f"{kind}_tokens_gemma.txt").split("\n"))
        for text, answer in zip(lines, answers, strict=True):
            for escape, character in ESCAPES:
                text = text.replace(escape, character)
            cases.append((text, ids(answer)))
    return cases


@pytest.fixture(scope="module")
def golden(shared: Path) -> list[tuple[str, list[int]]]:
    cases = golden_cases(shared / "data" / "tokenizer" / "golden_gemma")
    assert len(cases) == 141
    return cases


@pytest.fixture(scope="module")
def gemma(shared: Path) -> Tokenizer:
    return Tokenizer.load(shared / "data" / "tokenizer" / "gemma_256k.model", text_norm="none")


@pytest.fixture(scope="module")
def gemma_json(gemma: Tokenizer) -> str:
    return json.dumps(from_sentencepiece(gemma.model_proto, lowercase=False))


def test_golden_ids_of_the_model(gemma, golden):
    assert gemma.vocab_size == 256_000
    for text, ids in golden:
        assert gemma.encode(text) == ids, repr(text)


def test_golden_ids_after_the_round_trip(gemma, gemma_json, golden):
    back = Tokenizer(to_sentencepiece(gemma_json), text_norm="none")
    assert back.name == gemma.name
    for text, ids in golden:
        assert back.encode(text) == ids, repr(text)


@pytest.mark.parity
def test_golden_ids_of_the_tokenizers_library(gemma_json, golden):
    oracle = pytest.importorskip("tokenizers").Tokenizer.from_str(gemma_json)
    oracle.no_truncation()
    oracle.no_padding()
    for text, ids in golden:
        assert oracle.encode(text, add_special_tokens=False).ids == ids, repr(text)


def test_golden_texts_lower_cased_by_the_reference_rule(gemma, golden):
    reference = Tokenizer(gemma.model_proto)
    for text, _ in golden:
        expected = gemma.encode(normalize(text, "reference"))
        assert reference.encode(text) == expected
        assert reference(text).ids[0].tolist() == ([*expected[:63], 1] + [0] * 63)[:64]


@pytest.mark.parity
def test_random_texts_match_the_tokenizers_library():
    tokenizer = Tokenizer.load(DEMO, text_norm="none")
    content = json.dumps(from_sentencepiece(tokenizer.model_proto, lowercase=False))
    oracle = pytest.importorskip("tokenizers").Tokenizer.from_str(content)
    rng = random.Random(0)
    alphabet = "aabdeghinorst    \n\n\t.,-=0日本МОСÉ🏃‍♂️▁\x00"
    for _ in range(5000):
        text = "".join(rng.choice(alphabet) * rng.randrange(1, 6) for _ in range(rng.randrange(20)))
        assert oracle.encode(text).ids == tokenizer(text).ids[0].tolist(), repr(text)


def save_for_transformers(tokenizer: Tokenizer, model_type: str, folder: Path) -> None:
    """The tokenizer's files with the two configurations that AutoProcessor needs beside them."""
    for name, content in huggingface_files(tokenizer, model_type).items():
        (folder / name).write_bytes(content)
    image_processor, processor = PROCESSORS[model_type]
    text = {"model_type": f"{model_type}_text_model", "vocab_size": tokenizer.vocab_size}
    text |= {"pad_token_id": tokenizer.pad_id, "eos_token_id": 1, "bos_token_id": 2}
    config = {"model_type": model_type, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    config = {"image_processor_type": image_processor, "processor_class": processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(params=["demo", "small_8k"])
def tokenizer(request) -> Tokenizer:
    if request.param == "demo":
        return Tokenizer.load(DEMO)
    shared = request.getfixturevalue("shared")
    return Tokenizer.load(shared / "data" / "tokenizer" / "small_8k.model")


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # transformers' own
@pytest.mark.parametrize("model_type", PROCESSORS)
def test_transformers_opens_the_files(tokenizer, model_type, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    save_for_transformers(tokenizer, model_type, tmp_path)
    expected = tokenizer(TEXTS).ids

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (auto.pad_token_id, auto.eos_token_id, len(auto)) == (0, 1, tokenizer.vocab_size)
    fixed = {"padding": "max_length", "max_length": 64, "truncation": True}
    assert auto(TEXTS, **fixed)["input_ids"] == expected.tolist()
    assert auto("A DOG", **fixed)["input_ids"] == tokenizer("a dog").ids[0].tolist()

    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == PROCESSORS[model_type][1]
    inputs = processor(text=TEXTS, return_tensors="np", **fixed)
    assert list(inputs.keys()) == ["input_ids"]
    np.testing.assert_array_equal(inputs["input_ids"], expected)
    if model_type == "siglip2":  # whose processor pads without being asked
        inputs = processor(text=TEXTS, return_tensors="np")
        np.testing.assert_array_equal(inputs["input_ids"], expected)

    auto.save_pretrained(tmp_path / "again")
    resaved = Tokenizer.load(tmp_path / "again")
    assert resaved.name == tokenizer.name
    np.testing.assert_array_equal(resaved(TEXTS).ids, expected)


def unigram_model() -> bytes:
    """A tiny model of SigLIP 1's kind: unigram, NFKC, a space in front, pad 0, eos 1, unk 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            ["a dog on the grass", "two cats and a dog", "the man rides a wave", "c code 1"] * 20
        ),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # transformers' own
def test_transformers_opens_siglip_1s_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(unigram_model(), text_norm="canonicalize", pad_id=1)
    save_for_transformers(tokenizer, "siglip", tmp_path)
    assert Tokenizer.load(tmp_path).model_proto == tokenizer.model_proto

    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor.tokenizer).__name__ == "SiglipTokenizer"
    texts = ["A dog, on the grass!", "C++ code & #1", "two   cats", "the man " * 60]
    inputs = processor(
        text=texts, padding="max_length", max_length=64, truncation=True, return_tensors="np"
    )
    np.testing.assert_array_equal(inputs["input_ids"], tokenizer(texts).ids)
    assert (tokenizer(texts).ids[0, -10:] == 1).all()
