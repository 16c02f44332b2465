"""Hugging Face's `tokenizer.json` to and from SentencePiece models, for Gemma's kind of BPE.

Both formats hold the same byte-pair encoding. SentencePiece gives each piece a score and merges
the neighbours whose union scores highest; the `tokenizers` library lists the merges by rank. The
formats: huggingface.co/docs/tokenizers and `sentencepiece_model.proto` of google/sentencepiece.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from siglip2_jax.preprocess.tokenizer import MODEL_FILES, Tokenizer, TokenizerError

proto = cast(Any, sentencepiece_model_pb2)  # protobuf makes its classes when it is imported
Piece = proto.ModelProto.SentencePiece
SPACE = "▁"
SPACE_TO_PIECE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PIECE_TO_SPACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
LOWERCASE = {"type": "Lowercase"}
MARKS = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>"}
MAX_UNORDERED = 0.01  # of all pieces; Gemma has 30, its runs of tabs


def to_sentencepiece(source: bytes | str | dict[str, Any]) -> bytes:
    """The serialised SentencePiece model of a Gemma-like `tokenizer.json`.

    It gives the JSON's ids, with two differences that are the reference's way: the text "<eos>"
    is text, not the mark, and the case rule is left to `text_norm`.

    Args:
      source: the JSON, as bytes, as a string or parsed.

    Raises:
      TokenizerError: it is not a tokenizer.json, or not a BPE with byte fallback like Gemma's.
    """
    tokenizer = _parse(source)
    _check_kind(tokenizer)
    bpe = tokenizer["model"]
    added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or []}
    pieces = _in_id_order(bpe["vocab"], added)
    ids = {piece: index for index, piece in enumerate(pieces)}
    unk = bpe.get("unk_token") or "<unk>"
    if not {unk, MARKS["eos"]} <= ids.keys():
        raise TokenizerError(f"the tokenizer.json lacks {unk} or {MARKS['eos']}, which Gemma's has")

    kinds = dict.fromkeys(range(len(pieces)), Piece.USER_DEFINED)
    kinds |= dict.fromkeys(_mergeable(pieces, bpe.get("merges") or [], added), Piece.NORMAL)
    kinds |= dict.fromkeys(range(ids["<0x00>"], ids["<0x00>"] + 256), Piece.BYTE)
    kinds |= {ids[piece]: Piece.CONTROL for piece in MARKS.values() if piece in ids}
    kinds[ids[unk]] = Piece.UNKNOWN

    model = proto.ModelProto()
    first = min(index for index, kind in kinds.items() if kind == Piece.NORMAL)
    for index, piece in enumerate(pieces):
        score = float(first - index) if kinds[index] == Piece.NORMAL else 0.0
        model.pieces.add(piece=piece, score=score, type=kinds[index])
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size = proto.TrainerSpec.BPE, len(pieces)
    spec.byte_fallback, spec.unk_id, spec.unk_piece = True, ids[unk], unk
    for mark, piece in MARKS.items():
        setattr(spec, f"{mark}_id", ids.get(piece, -1))
        setattr(spec, f"{mark}_piece", piece)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def from_sentencepiece(
    model_proto: bytes, *, length: int = 64, pad_id: int = 0, lowercase: bool = True
) -> dict[str, Any]:
    """The `tokenizer.json` of a Gemma-like SentencePiece model, ready for `json.dumps`.

    It appends the end mark, cuts to `length` and pads on the right: for lower-case text its ids
    are those of `Tokenizer`. As in the released repositories, the text "<eos>" is read as the mark
    itself, and lower-casing covers all of Unicode.

    Args:
      model_proto: the serialised SentencePiece model.
      length: T, what texts are cut and padded to.
      pad_id: what fills up a short text.
      lowercase: whether the normaliser lower-cases.

    Raises:
      TokenizerError: the model is not a BPE with byte fallback and Gemma's treatment of spaces.
    """
    model = _gemma_like(model_proto)
    pieces = [piece.piece for piece in model.pieces]
    steps = [LOWERCASE, SPACE_TO_PIECE] if lowercase else [SPACE_TO_PIECE]
    return {
        "version": "1.0",
        **_sticky_eos(length, pad_id, model.trainer_spec.eos_id, pieces),
        "added_tokens": list(_added_tokens(model.pieces)),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [PIECE_TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE",
            "unk_token": pieces[model.trainer_spec.unk_id],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": list(_merges(model.pieces)),
        },
    }


def huggingface_files(
    tokenizer: Tokenizer, model_type: Literal["siglip", "siglip2"]
) -> dict[str, bytes]:
    """Files with which transformers opens the tokenizer from a Hugging Face model directory.

    Gemma's kind, for both model types, becomes a `tokenizer.json` under the class name that means
    "use the file as it is", so that it lower-cases unless `text_norm` is "none". Where the model
    type is `siglip2`, transformers 5 takes its own `Siglip2Tokenizer` instead, which reads the same
    file and always lower-cases. SigLIP 1's unigram model becomes a
    `spiece.model` for `SiglipTokenizer`, which canonicalises its text itself. As in the released
    repositories, no attention mask is returned, and `padding="max_length"` must be asked for.

    Raises:
      TokenizerError: transformers has no class for this kind of SentencePiece model.
    """
    model = proto.ModelProto.FromString(tokenizer.model_proto)
    marks = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": model.trainer_spec.unk_id}
    if tokenizer.bos_id >= 0:
        marks["bos"] = tokenizer.bos_id
    names = {f"{mark}_token": model.pieces[index].piece for mark, index in marks.items()}
    config = names | {
        "model_max_length": tokenizer.length,
        "padding_side": "right",
        "model_input_names": ["input_ids"],
        "processor_class": "Siglip2Processor" if model_type == "siglip2" else "SiglipProcessor",
    }
    if model.trainer_spec.model_type == proto.TrainerSpec.UNIGRAM and model_type == "siglip":
        files = {MODEL_FILES[1]: tokenizer.model_proto}
        config |= {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
    else:
        # Siglip2Tokenizer would add a <mask> of its own, past the token table's end.
        mask = "<mask>" if any(piece.piece == "<mask>" for piece in model.pieces) else None
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": mask}
        fixed = {"length": tokenizer.length, "pad_id": tokenizer.pad_id}
        lowercase = tokenizer.text_norm != "none"
        content = from_sentencepiece(tokenizer.model_proto, lowercase=lowercase, **fixed)
        files = {"tokenizer.json": _dump(content), MODEL_FILES[0]: tokenizer.model_proto}
    return files | {"tokenizer_config.json": _dump(config), "special_tokens_map.json": _dump(names)}


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _parse(source: bytes | str | dict[str, Any]) -> dict[str, Any]:
    """The JSON as a dict that has a `model` of some type."""
    try:
        tokenizer = source if isinstance(source, dict) else json.loads(source)
    except ValueError as error:
        raise TokenizerError(f"not a tokenizer.json: it is not JSON ({error})") from error
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
        raise TokenizerError("not a tokenizer.json: it has no `model`")
    return tokenizer


def _check_kind(tokenizer: dict[str, Any]) -> None:
    """Refuse everything whose ids a SentencePiece BPE without normalisation would not give."""
    bpe = tokenizer["model"]
    kind, fallback = bpe.get("type") or "unknown", bool(bpe.get("byte_fallback"))
    if kind != "BPE" or not fallback or "<0x00>" not in bpe.get("vocab", ()):
        raise TokenizerError(
            f"the tokenizer.json is a {kind} model{' without byte fallback' * (not fallback)}, "
            "expected Gemma's BPE with byte fallback: give the model's own tokenizer.model"
        )
    normalizer, split = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer])
    is_gemma_like = SPACE_TO_PIECE in steps and all(s in (SPACE_TO_PIECE, LOWERCASE) for s in steps)
    # Once spaces became pieces, Gemma's split on " " finds nothing. Any other split matters.
    if not is_gemma_like or (split and split.get("pattern") != SPACE_TO_PIECE["pattern"]):
        kinds = ", ".join(step.get("type", "?") for step in (*steps, split) if step) or "nothing"
        raise TokenizerError(
            f"the tokenizer.json prepares text with {kinds}, expected what Gemma's does, spaces to "
            f"{SPACE} and at most lower-casing beside it: give the model's own tokenizer.model"
        )


def _in_id_order(vocab: dict[str, int], added: dict[int, str]) -> list[str]:
    """The pieces by id, each once, the 256 byte pieces under their SentencePiece names."""
    by_id = {index: piece for piece, index in vocab.items()} | added
    # Some conversions of Gemma name byte 9 "\t", beside or instead of its own name.
    by_id |= {vocab["<0x00>"] + byte: f"<0x{byte:02X}>" for byte in range(256)}
    if sorted(by_id) != list(range(len(by_id))) or len(set(by_id.values())) != len(by_id):
        raise TokenizerError(
            f"the tokenizer.json's {len(by_id)} ids up to {max(by_id)} have gaps or repeat a piece"
        )
    return [by_id[index] for index in range(len(by_id))]


def _mergeable(
    pieces: list[str], merges: Sequence[str | Sequence[str]], added: dict[int, str]
) -> list[int]:
    """The ids that byte-pair encoding may produce: single characters, and unions in merge order.

    SentencePiece lists such pieces in the order of their merges. What stands outside that order,
    or what no merge makes, was user-defined: the runs of tabs in Gemma.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        # "a b" in files of before 2024, ["a", "b"] since; pieces hold no spaces.
        union = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
        ranks.setdefault(union, rank)
    mergeable, unordered, last = [], 0, -1
    for index, piece in enumerate(pieces):
        if index in added:
            continue
        rank = ranks.get(piece, -1)
        if len(piece) == 1 or rank > last:
            mergeable.append(index)
            last = max(last, rank)
        else:
            unordered += rank >= 0
    if not mergeable or unordered > MAX_UNORDERED * len(pieces):  # scores by id would be wrong
        raise TokenizerError(
            f"{unordered} of the tokenizer.json's {len(pieces)} pieces are out of merge order, so "
            "it was not made from a SentencePiece model: give the model's own tokenizer.model"
        )
    return mergeable


def _gemma_like(model_proto: bytes) -> Any:
    """The parsed model, if the `tokenizers` library can give its ids without tables of its own."""
    try:
        model = proto.ModelProto.FromString(model_proto)
    except DecodeError as error:
        raise TokenizerError("not a SentencePiece model: its bytes cannot be parsed") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    differences = {
        "is not a BPE model": trainer.model_type != proto.TrainerSpec.BPE,
        "has no byte fallback": not trainer.byte_fallback,
        "has a normalisation table": bool(normalizer.precompiled_charsmap),
        "adds a space in front": normalizer.add_dummy_prefix,
        "removes extra spaces": normalizer.remove_extra_whitespaces,
    }
    problems = " and ".join(difference for difference, holds in differences.items() if holds)
    if problems:
        raise TokenizerError(
            f"the SentencePiece model {problems}, so it has no tokenizer.json of Gemma's kind: "
            "keep its .model file"
        )
    return model


def _merges(pieces: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Every way to make each piece of two others, best score first."""
    normal = {piece.piece: piece.score for piece in pieces if piece.type == Piece.NORMAL}
    for piece in sorted(normal, key=normal.__getitem__, reverse=True):
        # SentencePiece merges the leftmost of two overlapping pairs with one union; in a run of one
        # character that is the pair whose left part is the longer, so it goes first here.
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in normal and piece[cut:] in normal:
                yield piece[:cut], piece[cut:]


def _added_tokens(pieces: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The pieces that are found in the text before byte-pair encoding."""
    for index, piece in enumerate(pieces):
        if piece.type in (Piece.CONTROL, Piece.UNKNOWN, Piece.USER_DEFINED):
            special = piece.type != Piece.USER_DEFINED
            yield {
                "id": index,
                "content": piece.piece,
                **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
                # Runs of spaces are pieces too: they are found once spaces were replaced.
                "normalized": not special and piece.piece == piece.piece.lower(),
                "special": special,
            }


def _sticky_eos(length: int, pad_id: int, eos_id: int, pieces: list[str]) -> dict[str, Any]:
    """The settings that append the end mark, and cut and pad on the right to `length`."""
    eos = pieces[eos_id]
    cut = {"direction": "Right", "strategy": "LongestFirst", "stride": 0, "max_length": length}
    fill = {"direction": "Right", "strategy": {"Fixed": length}, "pad_to_multiple_of": None}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    mark = {"SpecialToken": {"id": eos, "type_id": 0}}
    return {
        "truncation": cut,
        "padding": fill | {"pad_id": pad_id, "pad_type_id": 0, "pad_token": pieces[pad_id]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, mark],
            "pair": [first, mark, second, mark],
            "special_tokens": {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}},
        },
    }
