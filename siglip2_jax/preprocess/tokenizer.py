"""Captions to token ids: a SentencePiece model, the case rule, the end mark, a fixed length.

Public sources: the pipeline of big_vision's `SigLIP2_demo.ipynb` and the "sticky" end mark of its
`pp/proj/paligemma/ops.py`. The text tower pools the last position and has no padding mask, so ids
always have the model's full text length.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, get_args

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, Int32
from sentencepiece import SentencePieceProcessor

from siglip2_jax import git_lfs
from siglip2_jax.errors import reason_of
from siglip2_jax.outputs import write_whole
from siglip2_jax.preprocess.text_norm import TextNorm, normalize

# What a directory may call its model, the preferred name first. `spiece.model` is SigLIP 1's.
MODEL_FILES = ("tokenizer.model", "spiece.model")


class TokenizerError(ValueError):
    """A tokenizer file, or a text, that cannot be used; the message is one sentence."""


class Tokens(NamedTuple):
    """Token ids of a batch of texts.

    Attributes:
      ids: the ids of each text, then the end mark, then pads.
      truncated: true where the text was too long and its end was dropped.
    """

    ids: Int32[np.ndarray, "B T"]
    truncated: Bool[np.ndarray, " B"]


class Tokenizer:
    """A SentencePiece model with the way SigLIP 2 uses it. May be pickled and shared by threads.

    Attributes:
      model_proto: the serialised SentencePiece model.
      text_norm: what is done to a text first; see `text_norm.normalize`.
      length: T, the number of ids of every text.
      pad_id, eos_id, bos_id: ids of the padding, the end mark and the begin mark (-1: none).
      vocab_size: how many ids there are.
    """

    def __init__(
        self,
        model_proto: bytes,
        *,
        text_norm: TextNorm = "reference",
        length: int = 64,
        pad_id: int | None = None,
    ) -> None:
        """Open a serialised SentencePiece model.

        Args:
          model_proto: the bytes of a `tokenizer.model`.
          text_norm: what is done to a text first.
          length: T, the model's text length.
          pad_id: what fills up a short text. 0 unless given, as in SigLIP 2; SigLIP 1 pads with its
            end mark, 1.

        Raises:
          TokenizerError: the bytes are no SentencePiece model, or an argument does not fit it.
        """
        if text_norm not in get_args(TextNorm):
            raise TokenizerError(
                f"text_norm {text_norm!r} is unknown: choose one of {', '.join(get_args(TextNorm))}"
            )
        if length < 1:
            raise TokenizerError(f"a text length of {length} leaves no room for the end mark")
        self._processor = _open(model_proto)
        self.model_proto = model_proto
        self.text_norm: TextNorm = text_norm
        self.length = length
        self.vocab_size: int = self._processor.get_piece_size()
        self.eos_id: int = self._processor.eos_id()
        self.bos_id: int = self._processor.bos_id()
        self.pad_id = 0 if pad_id is None else pad_id
        if self.eos_id < 0:
            raise TokenizerError(
                "the SentencePiece model has no end mark (eos), which SigLIP needs"
            )
        if not 0 <= self.pad_id < self.vocab_size:
            raise TokenizerError(
                f"pad_id {self.pad_id} is not one of the tokenizer's {self.vocab_size} ids"
            )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        text_norm: TextNorm = "reference",
        length: int = 64,
        pad_id: int | None = None,
    ) -> Tokenizer:
        """Open a tokenizer from a file or a directory, local or `gs://`.

        Args:
          path: a SentencePiece `tokenizer.model`, a Hugging Face `tokenizer.json` of Gemma's kind,
            or a directory that holds one of them; a SentencePiece model goes first.
          text_norm: what is done to a text first.
          length: T, the model's text length.
          pad_id: what fills up a short text; 0 unless given.

        Raises:
          TokenizerError: there is no such file, or it is not a tokenizer of these kinds.
        """
        file = _find(epath.Path(path))
        data = file.read_bytes()
        try:
            if data.lstrip()[:1] == b"{":
                # Here, not above: tokenizer_json needs this module's classes.
                from siglip2_jax.preprocess.tokenizer_json import to_sentencepiece

                data = to_sentencepiece(data)
            return cls(data, text_norm=text_norm, length=length, pad_id=pad_id)
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {reason_of(error)}") from error
        except (AttributeError, LookupError, RecursionError, TypeError) as error:
            raise TokenizerError(
                f"{file}: its JSON has not the form of Gemma's tokenizer.json ({error!r:.200}); "
                "give the model's own tokenizer.model"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The ids of one text after `text_norm`: no end mark, no padding, any length.

        Raises:
          TokenizerError: `text` is not a string, or holds half of a surrogate pair.
        """
        return self._encode(text)

    def __call__(self, texts: str | Iterable[str]) -> Tokens:
        """Tokenize texts, or one text, to exactly `length` ids each.

        There is no begin mark. The end mark is sticky: a text that is too long keeps its first
        `length - 1` ids and still ends with it. Short texts are padded on the right.

        Raises:
          TokenizerError: one of the texts is not a string that UTF-8 can hold.
        """
        texts = [texts] if isinstance(texts, str | bytes) else texts
        rows = [self._encode(text) for text in texts]
        ids = np.full((len(rows), self.length), self.pad_id, np.int32)
        for target, row in zip(ids, rows, strict=True):
            sequence = [*row[: self.length - 1], self.eos_id]
            target[: len(sequence)] = sequence
        truncated = np.array([len(row) >= self.length for row in rows], bool)
        return Tokens(ids, truncated)

    def decode(self, ids: Int[np.ndarray, "B T"] | Sequence[Sequence[int]]) -> list[str]:
        """The texts of rows of ids, each up to its first end mark; marks and pads leave no trace.

        Raises:
          TokenizerError: an id is not of this vocabulary.
        """
        texts = []
        for row in ids:
            row = [int(token) for token in row]
            if self.eos_id in row:
                row = row[: row.index(self.eos_id)]
            strange = [token for token in row if not 0 <= token < self.vocab_size]
            if strange:
                raise TokenizerError(
                    f"id {strange[0]} is not one of the tokenizer's {self.vocab_size} ids"
                )
            texts.append(self._processor.decode(row))
        return texts

    def check(self, table_size: int) -> None:
        """Make sure that the ids belong to a token table of `table_size` rows.

        A table may have a few more rows than there are ids (1 %, or 256), as some are rounded up.

        Raises:
          TokenizerError: there are more ids than rows, or far fewer; the tokenizer belongs to
            another model.
        """
        spare = table_size - self.vocab_size
        if not 0 <= spare <= max(256, table_size // 100):
            raise TokenizerError(
                f"this tokenizer has {self.vocab_size} ids, the checkpoint's token table has "
                f"{table_size} rows: give the tokenizer that the model was trained with"
            )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `tokenizer.model` into a directory, which is made if need be."""
        write_whole(epath.Path(directory) / MODEL_FILES[0], self.model_proto)

    @cached_property
    def name(self) -> str:
        """Name of the vocabulary, whatever file it came from: its size and a digest of its pieces.

        The same for a `tokenizer.model` and the `tokenizer.json` made of it.
        """
        pieces = map(self._processor.id_to_piece, range(self.vocab_size))
        digest = hashlib.sha256("\0".join(pieces).encode()).hexdigest()
        return f"sentencepiece-{self.vocab_size}-{digest[:8]}"

    def _encode(self, text: object) -> list[int]:
        """`encode` of what may not be a text: elements of a list are only known here."""
        if not isinstance(text, str):
            raise TokenizerError(
                f"expected a text (str), found {type(text).__name__} {text!r:.60}: decode it first"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text {text!r:.60} holds a lone surrogate at character {error.start}, which "
                "UTF-8 cannot: read its source with the right encoding"
            ) from error
        return self._processor.encode(normalize(text, self.text_norm))

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, text_norm={self.text_norm!r}, length={self.length})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_processor": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._processor = _open(self.model_proto)


def _open(model_proto: bytes) -> SentencePieceProcessor:
    """A processor of a serialised model, or a sentence about what the bytes are instead."""
    if git_lfs.is_pointer(model_proto):
        raise TokenizerError(f"it is {git_lfs.POINTER}")
    try:
        processor = SentencePieceProcessor(model_proto=model_proto) if model_proto else None
    except (RuntimeError, UnicodeDecodeError):  # the latter of its own message
        processor = None
    if processor is None or processor.get_piece_size() == 0:
        raise TokenizerError(
            f"not a SentencePiece model ({len(model_proto)} bytes): expected a tokenizer.model, or "
            "Gemma's tokenizer.json; the file may be of another kind or cut short"
        )
    return processor


def _find(path: epath.Path) -> epath.Path:
    """The tokenizer file at `path`, which may be a directory that holds one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such tokenizer file or directory")
    models = sorted(path.glob("*.model"))
    candidates = [
        path / name for name in (*MODEL_FILES, "tokenizer.json") if (path / name).is_file()
    ]
    if len(models) == 1:
        return models[0]
    if candidates:
        return candidates[0]
    names = ", ".join(model.name for model in models) or "none"
    raise TokenizerError(
        f"{path}: expected tokenizer.model, one *.model or tokenizer.json in it, found {names}"
    )
