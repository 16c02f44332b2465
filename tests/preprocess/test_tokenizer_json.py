"""tokenizer.json and back: same pieces, same ids; other kinds of tokenizer are refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

import siglip2_jax
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.preprocess.tokenizer_json import (
    from_sentencepiece,
    huggingface_files,
    to_sentencepiece,
)

DEMO = Path(siglip2_jax.__path__[0]) / "demo" / "tokenizer.model"
WORDS = "the dog a man on <b> 日本 МОСКВА naïve 🏃‍♂️ e\u0301 0123 ==== ---- aaaa abab ▁ q".split()
WORDS += [" ", "  ", "     ", "\n", "\n\n\n", "\t\t", "\r\n", "\x00", "<mask>", "<", ">", ".,;"]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Words, runs of spaces and of single characters, other scripts, emoji, controls."""
    rng = random.Random(seed)
    return [
        "".join(rng.choice(WORDS) * rng.randrange(1, 5) for _ in range(rng.randrange(15)))
        for _ in range(count)
    ]


def pieces(model_proto: bytes) -> list[tuple[str, float, int]]:
    model = proto.ModelProto.FromString(model_proto)
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces]


@pytest.fixture
def demo() -> dict[str, Any]:
    return from_sentencepiece(DEMO.read_bytes())


def test_round_trip_gives_the_same_pieces_and_ids(demo):
    back = to_sentencepiece(json.dumps(demo).encode())
    assert pieces(back) == pieces(DEMO.read_bytes())
    old, new = Tokenizer.load(DEMO), Tokenizer(back)
    assert (new.pad_id, new.eos_id, new.bos_id, new.name) == (0, 1, 2, old.name)
    for text in random_texts(2000):
        assert new.encode(text) == old.encode(text), repr(text)


def test_accepts_bytes_string_and_dict(demo):
    model = to_sentencepiece(demo)
    assert (
        to_sentencepiece(json.dumps(demo)) == to_sentencepiece(json.dumps(demo).encode()) == model
    )


def test_merges_as_strings(demo):
    model = to_sentencepiece(demo)
    demo["model"]["merges"] = [" ".join(merge) for merge in demo["model"]["merges"]]
    assert to_sentencepiece(demo) == model


def test_gemmas_split_on_spaces_changes_nothing(demo):
    model = to_sentencepiece(demo)
    demo["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    demo["normalizer"] = demo["normalizer"]["normalizers"][-1]
    assert to_sentencepiece(demo) == model


@pytest.mark.parametrize("rename", [False, True])
def test_byte_nine_may_be_called_tab(demo, rename):
    model, vocab = to_sentencepiece(demo), demo["model"]["vocab"]
    vocab["\t"] = vocab.pop("<0x09>") if rename else vocab["<0x09>"]
    assert to_sentencepiece(demo) == model


def test_runs_outside_the_merge_order_are_user_defined(demo):
    """Gemma's tabs: pieces at the end of the vocabulary, merges at the head of the list."""
    vocab = demo["model"]["vocab"]
    vocab |= {"\t": vocab["<0x09>"], "\t\t": 1024, "\t\t\t": 1025, "<unused99>": 1026}
    demo["model"]["merges"][:0] = [("\t", "\t"), ("\t", "\t\t"), ("\t\t", "\t")]
    model = to_sentencepiece(demo)
    user_defined = proto.ModelProto.SentencePiece.USER_DEFINED
    assert [kind for _, _, kind in pieces(model)[1024:]] == [user_defined] * 3
    assert Tokenizer(model).encode("\t\t\t\t<unused99>") == [1025, vocab["\t"], 1026]


def test_a_directory_with_only_the_json_loads(demo, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(demo))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("a dog") == [995, 535]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path / "tokenizer.model").encode("a dog") == [995, 535]


def wordpiece(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["type"] = "WordPiece"


def clip(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["byte_fallback"] = False


def llama(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})


def byte_level(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel"}


def words(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}


def gap(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["late"] = 2000


def shuffled(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].reverse()


def endless(tokenizer: dict[str, Any]) -> None:
    del tokenizer["model"]["vocab"]["<eos>"]
    tokenizer["model"]["vocab"]["</s>"] = 1
    tokenizer["added_tokens"][1]["content"] = "</s>"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (wordpiece, "is a WordPiece model, expected Gemma's BPE with byte fallback"),
        (clip, "is a BPE model without byte fallback, expected Gemma's"),
        (llama, "prepares text with Prepend, Lowercase, Replace, expected what Gemma's does"),
        (byte_level, "prepares text with ByteLevel, expected"),
        (words, "prepares text with Lowercase, Replace, Whitespace, expected"),
        (gap, "1025 ids up to 2000 have gaps"),
        (shuffled, "of the tokenizer.json's 1024 pieces are out of merge order"),
        (endless, "lacks <unk> or <eos>"),
    ],
)
def test_other_kinds_are_refused(demo, tmp_path, change, sentence):
    change(demo)
    (tmp_path / "tokenizer.json").write_text(json.dumps(demo))
    with pytest.raises(TokenizerError, match=sentence) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_models_the_json_cannot_hold_are_refused():
    model = proto.ModelProto.FromString(DEMO.read_bytes())
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.normalizer_spec.add_dummy_prefix = True
    with pytest.raises(TokenizerError, match="is not a BPE model and adds a space in front"):
        from_sentencepiece(model.SerializeToString())
    with pytest.raises(TokenizerError, match="bytes cannot be parsed"):
        from_sentencepiece(b"\xff\xff")


@pytest.mark.parametrize("model_type", ["siglip", "siglip2"])
def test_huggingface_files(model_type):
    files = huggingface_files(Tokenizer.load(DEMO), model_type)
    assert files["tokenizer.model"] == DEMO.read_bytes()
    assert set(files) == {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    config = json.loads(files["tokenizer_config.json"])
    assert config["model_max_length"] == 64 and config["padding_side"] == "right"
    content = json.loads(files["tokenizer.json"])
    assert content["truncation"]["max_length"] == 64
    assert content["padding"] | {"pad_id": 0, "strategy": {"Fixed": 64}} == content["padding"]


def test_huggingface_files_lower_case_unless_the_tokenizer_does_not():
    def steps(text_norm):
        tokenizer = Tokenizer.load(DEMO, text_norm=text_norm)
        content = json.loads(huggingface_files(tokenizer, "siglip")["tokenizer.json"])
        return [step["type"] for step in content["normalizer"]["normalizers"]]

    assert steps("reference") == ["Lowercase", "Replace"]
    assert steps("none") == ["Replace"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "merges"), [[1.5]]),
        (("model", "vocab"), {"<0x00>": "a"}),
        (("added_tokens",), 3),
        (("added_tokens",), [{"id": {}}]),
        (("normalizer",), "Replace"),
        (("pre_tokenizer",), 1.0),
    ],
)
def test_json_of_other_types_is_refused_in_a_sentence(demo, tmp_path, path, value):
    *parents, last = path
    place = demo
    for key in parents:
        place = place[key]
    place[last] = value
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(demo))
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.load(file)
    assert str(raised.value).startswith(f"{file}: ") and len(str(raised.value)) < 600
