"""Loading a model and embedding images and texts with it: what users and evaluators see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from siglip2_jax import __version__, checkpoints
from siglip2_jax.fingerprint import fingerprint_arrays, fingerprint_bytes
from siglip2_jax.inference.image_batches import ImageBatch, Images, image_batches
from siglip2_jax.inference.images import OnError, collect
from siglip2_jax.inference.towers import Towers
from siglip2_jax.inference.vlm_tokens import ImageTokens, block_counts, split_images
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import Params, flatten
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.text_norm import TextNorm
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.types import Features

DEFAULT_MAX_NUM_PATCHES = 256
DEFAULT_BATCH_SIZE = 32


class Embedder(Towers):
    """A model with its preprocessing and tokenizer, as one bundle.

    Attributes:
      config, params, weights, dtype, mesh: those of `Towers`.
      preprocess: images to patches.
      tokenizer: texts to ids, or None.
      text_norm: how texts are normalised before tokenisation.
      data_wait: seconds that the device has waited for decoded images so far.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        preprocess: ImagePreprocessor,
        tokenizer: Tokenizer | None = None,
        *,
        text_norm: TextNorm = "reference",
        dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: Mesh | None = None,
    ):
        super().__init__(config, params, dtype, mesh)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.text_norm: TextNorm = tokenizer.text_norm if tokenizer else text_norm
        self.data_wait = 0.0

    def identity(self) -> dict[str, Any]:
        """Identity of the model: everything that its outputs depend on, by content.

        It reads all parameters.
        """
        words, images = self.tokenizer, dict(vars(self.preprocess))
        return {
            "version": __version__,
            "weights_dtype": self.weights,
            "weights": fingerprint_arrays(flatten(self.params)),
            "config": repr(self.config),
            "tokenizer": words
            and [words.length, words.pad_id, fingerprint_bytes(words.model_proto)],
            "text_norm": self.text_norm,
            "dtype": self.dtype,
            "preproc": images.pop("mode"),
            **images,
        }

    def embed_images(
        self,
        images: Images,
        *,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        normalize: bool = True,
        on_error: OnError = "warn",
    ) -> Float[np.ndarray, "n E"]:
        """Embeds images.

        Args:
          images: paths, encoded bytes, PIL images or uint8 arrays `[H, W, 3]`; or `Patches`.
          max_num_patches: the token budget of native-resolution models; ignored at fixed
            resolution.
          batch_size: images per program call.
          normalize: False gives the pooling head's outputs as they are, which probes are trained
            on (big_vision's `pre_logits`).
          on_error: what an unreadable image does. "warn" gives it a row of NaN and a warning that
            names it; "raise" stops.

        Returns:
          float32 rows, of unit length unless `normalize` is False.

        Raises:
          ImageError: an image is unreadable and `on_error` is "raise".
        """
        rows = self.stream_images(images, max_num_patches, batch_size, normalize)
        unreadable = np.full(self.config.vision.width, np.nan, np.float32)
        rows = collect(rows, on_error, "its embedding is NaN")
        parts = (unreadable[None] if row is None else row[None] for row in rows)
        return _rows(parts, len(unreadable))

    def stream_images(
        self,
        images: Images,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
        normalize: bool = True,
    ) -> Iterator[Float[np.ndarray, " E"] | ImageError]:
        """Embeds any number of images in bounded memory: yields a row or an error for each.

        Images are decoded on threads ahead of the device.
        """
        program = functools.partial(self._programs.embed_image, normalize=normalize)
        for batch in self._read(images, max_num_patches, batch_size):
            parts = self._run(program, batch.patches, batch_size) if batch.patches else ()
            rows = (row for part in parts for row in part)
            for error in batch.errors:
                yield next(rows) if error is None else error

    def image_features(
        self,
        images: Images,
        *,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Features:
        """Patch tokens, pooled vectors and embeddings: for dense tasks and language models.

        `features.tokens[i][features.valid[i]].reshape(*features.grid[i], -1)` is the feature map
        of image i.

        Args:
          images: as for `embed_images`.
          max_num_patches: as for `embed_images`.
          batch_size: as for `embed_images`.

        Returns:
          NumPy arrays for all images; `text` is None.

        Raises:
          ImageError: an image is unreadable.
        """
        parts = list(self._encode(self._programs.encode_image, images, max_num_patches, batch_size))
        if not parts:
            raise ValueError("image_features got no images; pass at least one")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def tokens_for_vlm(
        self,
        images: Images,
        layers: Sequence[int] = (-2,),
        *,
        merge: int = 2,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        norm: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> list[ImageTokens]:
        """Image tokens for a language model: `tokens` [K, n, C] of K layers, and their `grid`.

        Args:
          images: as for `embed_images`.
          layers: which states of the tower, counted as `hidden_states` of transformers: 0 is what
            the first block reads, 1 what it gives, and -1 what the last one gives.
          merge: side of the blocks of patches that become one token, whose C is `merge**2` widths.
            At native resolution images are resized to whole blocks; of other grids that it does
            not divide, the last row or column is repeated.
          max_num_patches: as for `embed_images`; counts patches, not blocks.
          norm: apply the tower's last LayerNorm to all layers, which makes -1 the tokens of
            `image_features`.
          batch_size: as for `embed_images`.

        Raises:
          ImageError: an image is unreadable.
          ValueError: an argument is out of its range.
        """
        if merge < 1:
            raise ValueError(f"merge is {merge}; it must be at least 1")
        counts = block_counts(layers, self.config.vision.depth)
        program = functools.partial(self._programs.hidden_states, counts=counts, norm=norm)
        parts = self._encode(program, images, max_num_patches, batch_size, merge)
        return [image for part in parts for image in split_images(part, merge)]

    def embed_texts(
        self, texts: str | Sequence[str], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[np.ndarray, "n E"]:
        """Embeds texts: normalised as `tokenizer.text_norm` says, cut to the model's length.

        Returns:
          float32 rows of unit length.

        Raises:
          TokenizerError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise TokenizerError(
                "this model was loaded without a tokenizer; pass tokenizer= a SentencePiece "
                "tokenizer.model (Gemma's, for SigLIP 2) or a directory that holds one"
            )
        return self.embed_tokens(self.tokenizer(texts).ids, batch_size=batch_size)

    def embed_tokens(
        self, ids: Int[np.ndarray, "n T"], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[np.ndarray, "n E"]:
        """Embeds token ids, which must have exactly the model's text length.

        Returns:
          float32 rows of unit length.

        Raises:
          ValueError: wrong length, or ids outside the token table.
        """
        length, vocab_size = self.config.text.length, self.config.text.vocab_size
        if ids.ndim != 2 or ids.shape[1] != length:
            raise ValueError(
                f"token ids have shape {ids.shape}, the text tower reads [n, {length}]; pad with "
                f"{self.config.text.pad_id} on the right, or use embed_texts"
            )
        if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
            raise ValueError(
                f"token ids run from {ids.min()} to {ids.max()}, the token table has {vocab_size} "
                "rows; use the tokenizer that belongs to this model"
            )
        parts = self._run(self._programs.embed_text, ids.astype(np.int32), batch_size)
        return _rows(parts, self.config.text.embed_dim)

    def save(
        self,
        path: str | PathLike[str],
        format: Literal["orbax", "hf", "npz"] = "orbax",
        *,
        overwrite: bool = False,
    ) -> None:
        """Writes the model, with its tokenizer where the format holds one, in one step.

        Raises:
          FileExistsError: the destination exists and `overwrite` is False.
          ValueError: the weights are not float32.
        """
        if self.weights != "float32":
            raise ValueError(
                f"the model's weights are rounded to {self.weights}, checkpoints hold float32; "
                "load it with weights='float32' to save it"
            )
        checkpoint = checkpoints.Checkpoint(
            config=self.config,
            params={path: checkpoints.Lazy.of(x) for path, x in flatten(self.params).items()},
            tokenizer=None,
            preprocessing=checkpoints.Preprocessing(
                mode=self.preprocess.mode,
                resample=self.preprocess.resample,
                text_norm=self.text_norm,
            ),
            format="orbax",
            source="memory",
        )
        checkpoints.write(checkpoint, path, format, tokenizer=self.tokenizer, overwrite=overwrite)

    def _encode(
        self,
        program: Callable[..., Any],
        images: Images,
        max_num_patches: int,
        batch_size: int,
        merge: int = 1,
    ) -> Iterator[Any]:
        """Outputs of a program, batch by batch, for images that must all be readable."""
        for batch in self._read(images, max_num_patches, batch_size, merge):
            for error in batch.errors:
                if error is not None:
                    raise error
            yield from self._run(program, batch.patches, batch_size)

    def _read(
        self, images: Images, max_num_patches: int, batch_size: int, merge: int = 1
    ) -> Iterator[ImageBatch]:
        for batch in image_batches(images, self.preprocess, max_num_patches, batch_size, merge):
            self.data_wait += batch.data_wait
            yield batch


def _rows(parts: Iterable[np.ndarray], width: int) -> Float[np.ndarray, "n E"]:
    """All parts in one array; `[0, width]` when there are none."""
    return np.concatenate([np.zeros((0, width), np.float32), *parts])
