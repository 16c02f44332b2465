"""A model that writes about images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.prefetch import batched, prefetch_batches
from siglip2_jax.fingerprint import fingerprint_arrays
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE, DEFAULT_MAX_NUM_PATCHES, Embedder
from siglip2_jax.inference.generation import GenerationConfig, Method, Writer
from siglip2_jax.inference.images import Images, OnError, collect, pairs, several
from siglip2_jax.inference.queries import Answer, Group, PixelBox, Query, first_ids, read_answer
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.models.generate import Prompts, Vocabulary
from siglip2_jax.models.siglip2 import Params, flatten
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.types import Features


class Captioner:
    """A model that writes about images.

    Attributes:
      embedder: the model without its decoder.
      config: sizes of the decoder.
      params: its parameters, a nested dict of float32 arrays.
      tokenizer: makes its ids texts. Phrases are normalised as the embedder's texts are, but keep
        their punctuation.
      boxes: how it writes boxes; by default ymin, xmin, ymax and xmax, as integers from 0 to 500.
      data_wait: seconds that the device has waited for decoded images so far.
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
        self.data_wait = 0.0
        # "canonicalize" deletes the colons between phrases and boxes: decoders never learn it.
        text_norm = embedder.tokenizer.text_norm
        self.tokenizer = Tokenizer(
            embedder.tokenizer.model_proto,
            text_norm="reference" if text_norm == "canonicalize" else text_norm,
        )
        vocabulary = Vocabulary(self.tokenizer.eos_id, self.tokenizer.vocab_size)
        self._write = Writer(config, vocabulary, embedder.dtype)

    def identity(self) -> dict[str, Any]:
        """Everything that its answers depend on, by content; it reads all parameters."""
        decoder = repr(self.config), fingerprint_arrays(flatten(self.params)), repr(self.boxes)
        return {**self.embedder.identity(), "decoder": decoder}

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
          method: how the decoder writes; see `GenerationConfig`, for the next four too.
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
        generation = GenerationConfig(method, beams, temperature, top_p, seed)
        answers = self.stream(map(Query, several(images)), generation, max_num_patches, batch_size)
        return [answer.text if answer else "" for answer in collect(answers, on_error)]

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
        """Localizes phrases: one box for each image and its phrase.

        There is no box, None, where the decoder wrote none. Other arguments are as for `caption`.

        Raises:
          ImageError: an image is unreadable and `on_error` is "raise".
          ValueError: there are not as many phrases as images, or one is blank or too long.
        """
        queries = [
            Query(x, phrase=phrase) for x, phrase in pairs(images, several(phrases), "phrases")
        ]
        generation = GenerationConfig(method, beams, temperature, top_p, seed)
        answers = self.stream(queries, generation, max_num_patches, batch_size)
        return [answer.box if answer else None for answer in collect(answers, on_error)]

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
        queries = [Query(x, box=box) for x, box in pairs(images, boxes, "boxes")]
        generation = GenerationConfig(method, beams, temperature, top_p, seed)
        answers = self.stream(queries, generation, max_num_patches, batch_size)
        return [answer.text if answer else "" for answer in collect(answers, on_error)]

    def stream(
        self,
        queries: Iterable[Query],
        generation: GenerationConfig,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[Answer | ImageError]:
        """Answers any number of queries in bounded memory: yields an answer or an error for each.

        Images are decoded on threads ahead of the device.

        Raises:
          ValueError: a phrase, a box or an argument cannot be used.
        """
        groups = ([numbered] for numbered in enumerate(queries))
        for answers in self.stream_groups(groups, generation, max_num_patches, batch_size):
            yield answers if isinstance(answers, ImageError) else answers[0]

    def stream_groups(
        self,
        groups: Iterable[Group],
        generation: GenerationConfig,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[list[Answer] | ImageError]:
        """Answers as `stream` does; an image that several queries are about is encoded once.

        Args:
          groups: the queries of each image; the image of the first is the one that is read.
          generation: how the decoder writes.
          max_num_patches: as for `caption`.
          batch_size: images per call of the encoder, queries per call of the decoder.
        """
        prepare = partial(self._prepare, max_num_patches=max_num_patches)
        for batch, data_wait in prefetch_batches(prepare, groups, batch_size):
            self.data_wait += data_wait
            good = [item for item in batch if not isinstance(item, ImageError)]
            answers = iter(self._answer(good, generation, max_num_patches, batch_size))
            for item in batch:
                yield item if isinstance(item, ImageError) else next(answers)

    def answer(
        self, groups: Iterable[Group], generation: GenerationConfig, max_num_patches: int
    ) -> list[list[Answer] | None]:
        """Answers as `stream_groups` does, all at once; None and a warning for bad images."""
        return collect(self.stream_groups(groups, generation, max_num_patches), "warn")

    def _prepare(self, group: Group, max_num_patches: int) -> _Ready | ImageError:
        (first, query), preprocess = group[0], self.embedder.preprocess
        try:
            image = preprocess.open(query.image)
        except ImageError as error:
            return error
        rules = (image.size, self.tokenizer, self.boxes, self.config.length)
        try:
            ids = [first_ids(query, *rules) for _, query in group]
        except ValueError as error:
            name = query.image if isinstance(query.image, (str, PathLike)) else f"image {first}"
            raise ValueError(f"{name}: {error}") from error
        return _Ready(group, image.size, preprocess.to_patches(image, max_num_patches), ids)

    def _answer(
        self,
        images: list[_Ready],
        generation: GenerationConfig,
        max_num_patches: int,
        batch_size: int,
    ) -> list[list[Answer]]:
        """Encodes images in one go, then writes about them, batch after batch."""
        if not images:
            return []
        num_tokens = self.embedder.preprocess.num_tokens(max_num_patches)
        patches = pad_and_stack([x.patches for x in images], num_tokens)
        features = self.embedder.image_features(patches, batch_size=batch_size)
        prompts = [
            _Prompt(row, place, query, ids)
            for row, x in enumerate(images)
            for (place, query), ids in zip(x.group, x.ids, strict=True)
        ]
        answers: list[list[Answer]] = [[] for _ in images]
        for batch in batched(prompts, batch_size):
            texts, scores = self._write_batch(batch, features, generation, batch_size)
            for x, text, score in zip(batch, texts, scores, strict=True):
                size = images[x.row].size
                answers[x.row].append(read_answer(text, score, x.query, size, self.boxes))
        return answers

    def _write_batch(
        self,
        batch: list[_Prompt],
        features: Features,
        generation: GenerationConfig,
        batch_size: int,
    ) -> tuple[list[str], list[float]]:
        """Texts and their scores."""
        # Few sizes bound the programs compiled; what fills up ends when the last query does.
        size = min(batch_size, 1 << (len(batch) - 1).bit_length())
        filled = batch + batch[-1:] * (size - len(batch))
        prefix = np.zeros((size, self.config.length), np.int32)
        for row, x in zip(prefix, filled, strict=True):
            row[: len(x.ids)] = x.ids
        lengths = np.array([len(x.ids) for x in filled], np.int32)
        places = np.array([x.place for x in filled], np.int32)
        rows = [x.row for x in filled]
        tokens, valid = np.asarray(features.tokens), np.asarray(features.valid)
        prompts = Prompts(tokens[rows], valid[rows], prefix, lengths)
        output = self._write(self.params, prompts, places, generation)
        texts = self.tokenizer.decode(np.asarray(output.ids)[: len(batch)])
        return texts, np.asarray(output.score)[: len(batch)].tolist()


class _Ready(NamedTuple):
    """Group of queries, with the size and patches of their image, and the prompt ids of each."""

    group: Group
    size: tuple[int, int]
    patches: tuple[Float32[np.ndarray, "N P"], tuple[int, int]]
    ids: list[list[int]]


class _Prompt(NamedTuple):
    """A query, its place in the call, the row of its image in a batch, and its prompt ids."""

    row: int
    place: int
    query: Query
    ids: list[int]
