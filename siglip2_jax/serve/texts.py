"""Texts to token ids, and the embeddings of texts that came before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.serve.errors import bad
from siglip2_jax.serve.forms import Text, Tokens


class TextCache:
    """Embeddings of the texts used last, by their token ids."""

    def __init__(self, size: int):
        self._size = size
        self._rows: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def get(self, ids: np.ndarray) -> np.ndarray | None:
        """The embedding of a text; None if it is not there."""
        key = ids.tobytes()
        if (row := self._rows.get(key)) is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, ids: np.ndarray, row: np.ndarray) -> None:
        """Keeps an embedding, in place of the one that was not used for longest."""
        self._rows[ids.tobytes()] = row.copy()  # not the batch that it is a part of
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)


def token_ids(model: Embedder, items: Sequence[Text | Tokens], param: str) -> np.ndarray:
    """Ids of texts as the text tower reads them, `[n, T]`.

    Ids that a request brings are those of `Tokenizer.encode`, or padded ones with the end mark:
    what follows the first end mark is dropped, and both are added as `Tokenizer` does.

    Args:
      model: whose tokenizer.
      items: texts or ids.
      param: part of the request, for errors.

    Raises:
      ApiError: ids are not of the vocabulary, or texts come without a tokenizer.
    """
    length, vocab_size = model.config.text.length, model.config.text.vocab_size
    tokenizer = model.tokenizer
    ids = np.full((len(items), length), model.config.text.pad_id, np.int32)
    texts = [i for i, item in enumerate(items) if isinstance(item, Text)]
    if texts:
        if tokenizer is None:
            raise bad(
                "this model was loaded without a tokenizer; give token ids instead of texts", param
            )
        ids[texts] = tokenizer([item.text for item in items if isinstance(item, Text)]).ids
    for row, item in zip(ids, items, strict=True):
        if isinstance(item, Tokens):
            if not all(0 <= x < vocab_size for x in item.ids):
                raise bad(
                    f"token ids run from {min(item.ids)} to {max(item.ids)}; the model's are 0 to "
                    f"{vocab_size - 1}, of its own tokenizer",
                    param,
                )
            row[:] = _padded(item.ids, model, length)
    return ids


def _padded(ids: list[int], model: Embedder, length: int) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        if len(ids) != length:
            raise bad(
                f"token ids have length {len(ids)}; this model, which has no tokenizer, needs "
                f"exactly {length}",
                "input",
            )
        return ids
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    ids = [*ids[: length - 1], tokenizer.eos_id]
    return ids + [tokenizer.pad_id] * (length - len(ids))


def used_tokens(model: Embedder, ids: np.ndarray) -> int:
    """Number of ids of texts up to their end marks."""
    if model.tokenizer is None:
        return ids.size
    ends = ids == model.tokenizer.eos_id
    return int(np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, ids.shape[1]).sum())
