"""The tokenizer that ships with the package, and every way to hand in a wrong one."""

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import siglip2_jax
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

DEMO = Path(siglip2_jax.__path__[0]) / "demo" / "tokenizer.model"
PAD, EOS = 0, 1

SCRIPTS = {
    "latin": "ein großer hund",
    "cyrillic": "собака на траве",
    "greek": "ένας σκύλος",
    "hebrew": "כלב על הדשא",
    "arabic": "كلب على العشب",
    "devanagari": "घास पर एक कुत्ता",
    "bengali": "ঘাসের উপর একটি কুকুর",
    "tamil": "புல்லில் ஒரு நாய்",
    "thai": "สุนัขบนหญ้า",
    "han": "草地上的狗",
    "kana": "芝生の上の犬ー",
    "hangul": "잔디 위의 개",
    "georgian": "ძაღლი ბალახზე",
    "ethiopic": "ውሻ በሳር ላይ",
    "emoji": "🏃‍♂️ 👩🏽‍🚀 🇨🇭",
    "combining": "e\u0301 a\u0308 ज़\u093c",
    "controls": "\x00 \x07 \u200b \ufeff \U0010ffff",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEMO)


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of exactly so many tokens."""
    text = ("a " * tokens)[: 2 * tokens - 1] if tokens else ""
    assert len(tokenizer.encode(text)) == tokens
    return text


def test_layout_is_gemmas(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 1024
    assert DEMO.stat().st_size < 60_000


def test_known_ids(tokenizer):
    assert tokenizer.encode("a dog on the grass") == [995, 535, 284, 293, 460]


def test_ids_are_those_of_the_official_pipeline(tokenizer, golden):
    tokens = tokenizer(golden.config("texts")["texts"])
    np.testing.assert_array_equal(tokens.ids, golden.expected("naflex")["text_tokens"])
    assert tokens.truncated.tolist() == [False] * 7 + [True] * 2


@pytest.mark.parametrize("tokens", [0, 1, 62, 63, 64, 65, 200])
def test_end_mark_sticks_at_every_length(tokenizer, tokens):
    text = text_of(tokenizer, tokens)
    ids, truncated = tokenizer([text])
    kept = min(tokens, 63)
    assert ids.dtype == np.int32 and ids.shape == (1, 64)
    assert ids[0, :kept].tolist() == tokenizer.encode(text)[:kept]
    assert ids[0, kept] == EOS
    assert (ids[0, kept + 1 :] == PAD).all()
    assert truncated.tolist() == [tokens > 63]


def test_one_text_no_text_and_a_generator(tokenizer):
    assert tokenizer("a dog").ids.tolist() == tokenizer(["a dog"]).ids.tolist()
    empty = tokenizer([])
    assert empty.ids.shape == (0, 64) and empty.truncated.shape == (0,)
    assert tokenizer(text for text in ("a", "b", "")).ids.shape == (3, 64)


def test_other_length_and_padding():
    ids, truncated = Tokenizer.load(DEMO, length=4, pad_id=1)(["a dog", "a dog on the grass"])
    assert ids.tolist() == [[995, 535, EOS, EOS], [995, 535, 284, EOS]]
    assert truncated.tolist() == [False, True]


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_every_script_comes_back(tokenizer, text):
    assert tokenizer.decode([tokenizer.encode(text)]) == [text]
    assert tokenizer([text * 20]).ids.shape == (1, 64)


def test_decode_stops_at_the_end_mark(tokenizer):
    texts = ["a man  riding\n\na wave", "", "two dogs"]
    assert tokenizer.decode(tokenizer(texts).ids) == texts
    assert tokenizer.decode([[995, 535, EOS, 284]]) == ["a dog"]


@pytest.mark.parametrize("text", ["МОСКВА", "ÉCOLE", "A Dog"])
def test_case_rules_reach_the_ids(text):
    def encode(text_norm, text):
        return Tokenizer.load(DEMO, text_norm=text_norm).encode(text)

    ascii_lower = "".join(c.lower() if c.isascii() else c for c in text)
    assert encode("none", text) != encode("none", text.lower())
    assert encode("reference", text) == encode("none", ascii_lower)
    assert encode("unicode_lower", text) == encode("none", text.lower())
    assert encode("canonicalize", text + "!") == encode("none", text.lower())


def test_marks_in_a_text_are_text(tokenizer):
    assert not {0, 1, 2, 3} & set(tokenizer.encode("<pad><eos><bos><unk>"))


def test_pickle_and_threads(tokenizer):
    texts = [text * n for text in SCRIPTS.values() for n in range(1, 20)]
    expected = tokenizer(texts).ids
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.text_norm == "reference" and twin.name == tokenizer.name
    assert (twin(texts).ids == expected).all()
    with ThreadPoolExecutor(4) as pool:
        assert all((ids == expected).all() for ids, _ in pool.map(tokenizer, [texts] * 16))


def test_save_and_load_a_directory(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "model")
    assert [file.name for file in (tmp_path / "new" / "model").iterdir()] == ["tokenizer.model"]
    again = Tokenizer.load(tmp_path / "new" / "model")
    assert again.model_proto == tokenizer.model_proto == DEMO.read_bytes()
    assert again.name == tokenizer.name == "sentencepiece-1024-40fc04fd"


def test_directory_with_one_model_of_another_name(tokenizer, tmp_path):
    (tmp_path / "mine.model").write_bytes(tokenizer.model_proto)
    assert Tokenizer.load(tmp_path).name == tokenizer.name
    (tmp_path / "other.model").write_bytes(b"junk")
    with pytest.raises(TokenizerError, match=r"expected tokenizer.model.*found mine.model, other"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_proto)
    assert Tokenizer.load(tmp_path).name == tokenizer.name


def test_check_compares_with_the_token_table(tokenizer):
    tokenizer.check(1024)
    tokenizer.check(1152)  # a table rounded up
    for rows in (1000, 32_000, 256_000):
        sentence = f"has 1024 ids, the checkpoint's token table has {rows}"
        with pytest.raises(TokenizerError, match=sentence):
            tokenizer.check(rows)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", r"not a SentencePiece model \(0 bytes\)"),
        (b"PK\x03\x04 an npz", "not a SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"{ not json", "not a tokenizer.json: it is not JSON"),
        (b'{"architectures": []}', "not a tokenizer.json: it has no `model`"),
    ],
)
def test_wrong_files(tmp_path, content, sentence):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=sentence) as caught:
        Tokenizer.load(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_model_cut_short(tmp_path, tokenizer):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_proto[:-100])
    with pytest.raises(TokenizerError, match="cut short"):
        Tokenizer.load(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: no such tokenizer file or directory"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="or tokenizer.json in it, found none"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "texts, sentence",
    [
        (iter([3]), "expected a text .*found int 3"),
        (iter(["a", b"b"]), "found bytes b'b': decode it first"),
        ("a\ud800b", "lone surrogate at character 1"),
    ],
)
def test_wrong_texts(tokenizer, texts, sentence):
    with pytest.raises(TokenizerError, match=sentence):
        tokenizer(texts)


def test_wrong_arguments(tokenizer):
    with pytest.raises(TokenizerError, match="leaves no room"):
        Tokenizer.load(DEMO, length=0)
    with pytest.raises(TokenizerError, match="pad_id 1024 is not one of the tokenizer's 1024 ids"):
        Tokenizer.load(DEMO, pad_id=1024)
    with pytest.raises(TokenizerError, match="id 5000 is not one of"):
        tokenizer.decode([[5000]])
    unchecked = inspect.unwrap(Tokenizer.__init__)
    with pytest.raises(TokenizerError, match="text_norm 'lower' is unknown: choose one of ref"):
        unchecked(Tokenizer.__new__(Tokenizer), DEMO.read_bytes(), text_norm="lower")
