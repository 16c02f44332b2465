"""Loading models: embedders of any checkpoint, captioners of runs that trained a decoder."""

from __future__ import annotations

import os
from os import PathLike
from typing import Literal

from siglip2_jax import checkpoints
from siglip2_jax.checkpoints import run_layout
from siglip2_jax.checkpoints.source import resolve
from siglip2_jax.data.boxes import BoxText
from siglip2_jax.inference.captioner import Captioner
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.pretrained import read_params
from siglip2_jax.inference.weights import Weights, check_weights
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.text_norm import TextNorm
from siglip2_jax.preprocess.tokenizer import Tokenizer


def load(
    source: str | PathLike[str] | checkpoints.Checkpoint,
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    *,
    stage: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    weights: Weights = "float32",
    preproc: Literal["reference", "hf"] | None = None,
    text_norm: TextNorm | None = None,
    exif: bool = True,
) -> Embedder:
    """Loads a checkpoint of any supported format.

    Args:
      source: an official `.npz` file, a Hugging Face directory or repository id, or a checkpoint
        of ours; paths may be local or `gs://`. Or one that `checkpoints.read` has opened.
      tokenizer: a SentencePiece `tokenizer.model`, a Gemma `tokenizer.json`, a directory that
        holds one, or a `Tokenizer`. None takes the one beside the checkpoint, if there is one.
      stage: of a run's workdir, the stage whose newest checkpoint is loaded; None is the last.
      adapter: a LoRA adapter in peft's layout, a directory or repository, which is merged.
      dtype: of the towers' matrix products; sensitive parts stay float32.
      weights: what kernels and the token table are kept in, nearly all of the memory: "float32",
        "bfloat16" (a half) or "int8" (a quarter, and products of the towers in 8 bits).
      preproc: "reference" (as the official code) or "hf" (as transformers). None takes what the
        checkpoint records, "reference" where it records nothing.
      text_norm: how texts are normalised before tokenisation; None as for `preproc`.
      exif: turn images upright by their EXIF orientation.

    Returns:
      The model, ready to embed.

    Raises:
      OSError: there is no such source, or it cannot be reached.
      ValueError: the source or tokenizer is not what it should be; one sentence says what to do.
    """
    if not isinstance(source, checkpoints.Checkpoint):
        checkpoint = checkpoints.read(source, stage, adapter=adapter)
    elif stage is None and adapter is None:
        checkpoint = source
    else:
        name, value = ("adapter", adapter) if stage is None else ("stage", stage)
        raise ValueError(
            f"the checkpoint is open already; give {name} {value!r} to checkpoints.read instead"
        )
    check_weights(weights)
    names, config = checkpoint.preprocessing, checkpoint.config
    text_norm = text_norm or names.text_norm
    if isinstance(tokenizer, Tokenizer):
        tokenizer.check(config.text.vocab_size)
    else:
        tokenizer = checkpoint.open_tokenizer(tokenizer, text_norm)
    preprocess = ImagePreprocessor(
        patch_size=config.vision.patch_size,
        image_size=config.vision.image_size,
        mode=preproc or names.mode,
        resample=names.resample,
        exif=exif,
    )
    params = read_params(checkpoint.params, weights)
    return Embedder(config, params, preprocess, tokenizer, text_norm=text_norm, dtype=dtype)


def load_captioner(
    source: str | PathLike[str],
    tokenizer: str | PathLike[str] | Tokenizer | None = None,
    *,
    stage: str | None = None,
    head: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    weights: Weights = "float32",
    preproc: Literal["reference", "hf"] | None = None,
    text_norm: TextNorm | None = None,
    exif: bool = True,
    boxes: BoxText | None = None,
) -> Captioner:
    """Loads a model with the decoder that its run has trained; released checkpoints have none.

    Args:
      source: a run's workdir, of which the newest checkpoint with the decoder is taken; one of its
        checkpoints; or the tree `params` or `average` in that.
      tokenizer: as for `siglip2_jax.load`; None takes the one in the workdir.
      stage: as for `siglip2_jax.load`.
      head: which decoder, by the name of its objective; needed where there are several.
      dtype: of the matrix products.
      weights: those of the towers, as for `siglip2_jax.load`; the decoder's stay float32.
      preproc: as for `siglip2_jax.load`.
      text_norm: as for `siglip2_jax.load`.
      exif: as for `siglip2_jax.load`.
      boxes: how the decoder has learned to write boxes, which runs do not record; None is
        `BoxText()`.

    Raises:
      OSError: there is no such source, or it cannot be reached.
      ValueError: it has no such decoder or no tokenizer, or is damaged; one sentence says what to
        do.
    """
    saved, config, tensors = _find(source, stage, head)
    embedder = load(
        saved.step / saved.tree,
        tokenizer,
        dtype=dtype,
        weights=weights,
        preproc=preproc,
        text_norm=text_norm,
        exif=exif,
    )
    return Captioner(embedder, config, read_params(tensors), boxes=boxes)


def _find(
    source: str | PathLike[str], stage: str | None, head: str | None
) -> tuple[run_layout.Saved, DecoderConfig, dict[str, checkpoints.Lazy]]:
    """The newest checkpoint with the decoder that is meant, and its sizes and parameters."""
    subject, heads = os.fspath(source), []
    models = run_layout.find_all(resolve(source), stage)
    if not models:
        checkpoints.read(source)  # says what is wrong with what is no checkpoint at all
    for saved in models:
        decoders = run_layout.read_decoders(saved)
        if head is None and len(decoders) > 1:
            problem = f"it holds several decoders; name one of {', '.join(decoders)}"
            raise checkpoints.ConversionError([problem], subject)
        for name in decoders if head is None else decoders.keys() & {head}:
            return saved, *decoders[name]
        heads += decoders
    if heads:
        names = ", ".join(dict.fromkeys(heads))
        raise checkpoints.ConversionError([f"it holds no decoder {head!r}, but {names}"], subject)
    problem = (
        f"{'it' if stage is None else f'its stage {stage!r}'} holds no decoder, as no released "
        "checkpoint does; train one on it, with `siglip2 train decoder_on_frozen`, and "
        "give the workdir"
    )
    raise checkpoints.ConversionError([problem], subject)
