"""A model that writes about images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from os import PathLike
from typing import Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float32
from PIL.Image import Image

from siglip2_jax.captioning.asks import Answer, Ask, PixelBox, first_ids, read_answer
from siglip2_jax.captioning.writing import Method, Writer, Writing
from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.prefetch import ahead, batched
from siglip2_jax.inference import DEFAULT_BATCH_SIZE, DEFAULT_MAX_NUM_PATCHES, Embedder
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.models.generate import Prompts, Vocabulary
from siglip2_jax.models.siglip2 import Params
from siglip2_jax.preprocess.decode import ImageError, ImageSource, decode
from siglip2_jax.preprocess.image import collate
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.types import Patches

T = TypeVar("T")
Images = ImageSource | Iterable[ImageSource]
OnError = Literal["warn", "raise"]

_ONE = (str, bytes, Image, PathLike, np.ndarray)


class Captioner:
    """A model that writes about images.

    Attributes:
      embedder: the model without its decoder.
      config: sizes of the decoder.
      params: its parameters, a nested dict of float32 arrays.
      tokenizer: makes its ids texts. Phrases are normalised as the embedder's texts are, but keep
        their punctuation.
      boxes: how it writes boxes; by default ymin, xmin, ymax and xmax, as integers from 0 to 500.
    """

    def __init__(
        self,
        embedder: Embedder,
        config: DecoderConfig,
        params: Params,
        *,
        boxes: BoxText | None = None,
    ):
        if embedder.tokenizer is None:
            raise TokenizerError(
                "this model was loaded without a tokenizer, and a decoder writes ids; pass "
                "tokenizer= the SentencePiece tokenizer.model that it was trained with"
            )
        embedder.tokenizer.check(config.vocab_size)
        self.embedder = embedder
        self.config = config
        self.params = params
        self.boxes = boxes or BoxText()
        # "canonicalize" deletes the colons between phrases and boxes: decoders never learn it.
        text_norm = embedder.tokenizer.text_norm
        self.tokenizer = Tokenizer(
            embedder.tokenizer.model_proto,
            text_norm="reference" if text_norm == "canonicalize" else text_norm,
        )
        vocabulary = Vocabulary(self.tokenizer.eos_id, self.tokenizer.vocab_size)
        self._write = Writer(config, vocabulary, embedder.dtype)

    def caption(
        self,
        images: Images,
        *,
        method: Method = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_error: OnError = "warn",
    ) -> list[str]:
        """Captions images.

        Args:
          images: paths, encoded bytes, PIL images or uint8 arrays `[H, W, 3]`.
          method: how the decoder writes; see `Writing`, for the next four too.
          beams: of "beam".
          temperature: of "sample".
          top_p: of "sample".
          seed: of "sample".
          max_num_patches: the token budget of native-resolution models; ignored at fixed
            resolution.
          batch_size: images per program call.
          on_error: what an unreadable image does. "warn" gives it an empty text, or no box, and a
            warning that names it; "raise" stops.

        Raises:
          ImageError: an image is unreadable and `on_error` is "raise".
          ValueError: an argument is out of its range.
        """
        writing = Writing(method, beams, temperature, top_p, seed)
        found = self.stream(map(Ask, _several(images)), writing, max_num_patches, batch_size)
        return [answer.text if answer else "" for answer in _collect(found, on_error)]

    def locate(
        self,
        images: Images,
        phrases: str | Iterable[str],
        *,
        method: Method = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_error: OnError = "warn",
    ) -> list[PixelBox | None]:
        """Finds what phrases say: a box for each image and its phrase.

        There is no box, None, where the decoder wrote none. Other arguments are as for `caption`.

        Raises:
          ImageError: an image is unreadable and `on_error` is "raise".
          ValueError: there are not as many phrases as images, or one is blank or too long.
        """
        asks = [Ask(x, phrase=phrase) for x, phrase in _pairs(images, _several(phrases), "phrases")]
        writing = Writing(method, beams, temperature, top_p, seed)
        found = self.stream(asks, writing, max_num_patches, batch_size)
        return [answer.box if answer else None for answer in _collect(found, on_error)]

    def describe(
        self,
        images: Images,
        boxes: Iterable[PixelBox],
        *,
        method: Method = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_error: OnError = "warn",
    ) -> list[str]:
        """Says what boxes show: a phrase for each image and its box.

        Other arguments are as for `caption`.

        Raises:
          ImageError: an image is unreadable and `on_error` is "raise".
          ValueError: there are not as many boxes as images, or one has no area in its image.
        """
        asks = [Ask(x, box=box) for x, box in _pairs(images, boxes, "boxes")]
        writing = Writing(method, beams, temperature, top_p, seed)
        found = self.stream(asks, writing, max_num_patches, batch_size)
        return [answer.text if answer else "" for answer in _collect(found, on_error)]

    def stream(
        self,
        asks: Iterable[Ask],
        writing: Writing,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[Answer | ImageError]:
        """Answers any number of asks in bounded memory: yields an answer or an error for each.

        Images are decoded on threads ahead of the device.

        Raises:
          ValueError: a phrase, a box or an argument cannot be used.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        prepare = partial(self._prepare, max_num_patches=max_num_patches)
        for batch in batched(ahead(prepare, enumerate(asks), 2 * batch_size), batch_size):
            good = [item for item in batch if not isinstance(item, ImageError)]
            answers = iter(self._answer(good, writing, max_num_patches, batch_size))
            for item in batch:
                yield item if isinstance(item, ImageError) else next(answers)

    def _prepare(self, numbered: tuple[int, Ask], max_num_patches: int) -> _Ready | ImageError:
        place, ask = numbered
        preprocess = self.embedder.preprocess
        try:
            image = decode(ask.image, exif=preprocess.exif, max_pixels=preprocess.max_pixels)
        except ImageError as error:
            return error
        try:
            ids = first_ids(ask, image.size, self.tokenizer, self.boxes, self.config.length)
        except ValueError as error:
            name = ask.image if isinstance(ask.image, (str, PathLike)) else f"image {place}"
            raise ValueError(f"{name}: {error}") from error
        return _Ready(place, ask, image.size, preprocess(image, max_num_patches), ids)

    def _answer(
        self, batch: list[_Ready], writing: Writing, max_num_patches: int, batch_size: int
    ) -> list[Answer]:
        if not batch:
            return []
        num_tokens = self.embedder.preprocess.num_tokens(max_num_patches)
        patches = Patches(*collate([x.patches for x in batch], num_tokens))
        features = self.embedder.image_features(patches, batch_size=batch_size)
        prefix = np.zeros((len(batch), self.config.length), np.int32)
        for row, x in zip(prefix, batch, strict=True):
            row[: len(x.ids)] = x.ids
        lengths = np.array([len(x.ids) for x in batch], np.int32)
        prompts = Prompts(features.tokens, features.valid, prefix, lengths)
        places = np.array([x.place for x in batch], np.int32)
        # Few sizes bound the programs compiled; what fills up ends when the last image does.
        size = min(batch_size, 1 << (len(batch) - 1).bit_length())
        rows = np.minimum(np.arange(size), len(batch) - 1)
        prompts, places = jax.tree.map(lambda x: x[rows], (prompts, places))
        found = self._write(self.params, prompts, places, writing)
        texts = self.tokenizer.decode(np.asarray(found.ids)[: len(batch)])
        scores = np.asarray(found.score)[: len(batch)].tolist()
        return [
            read_answer(text, score, x.ask, x.size, self.boxes)
            for x, text, score in zip(batch, texts, scores, strict=True)
        ]


class _Ready(NamedTuple):
    """An ask of this place in the call, with its image's width and height, patches, given ids."""

    place: int
    ask: Ask
    size: tuple[int, int]
    patches: tuple[Float32[np.ndarray, "N P"], tuple[int, int]]
    ids: list[int]


def _several(items: T | Iterable[T]) -> Iterable[T]:
    """One image or text needs no list."""
    return [items] if isinstance(items, _ONE) else items


def _pairs(images: Images, others: Iterable[T], name: str) -> list[tuple[ImageSource, T]]:
    images, others = list(_several(images)), list(others)
    if len(images) != len(others):
        raise ValueError(
            f"there are {len(images)} images and {len(others)} {name}; give one for each image"
        )
    return list(zip(images, others, strict=True))


def _collect(found: Iterable[Answer | ImageError], on_error: OnError) -> list[Answer | None]:
    """Answers, or None for unreadable images."""
    answers = []
    for answer in found:
        if isinstance(answer, ImageError):
            if on_error == "raise":
                raise answer
            warnings.warn(f"{answer}; nothing is written about it", stacklevel=3)
            answer = None
        answers.append(answer)
    return answers
