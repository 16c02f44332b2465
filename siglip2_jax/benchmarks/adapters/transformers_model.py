"""Any SigLIP or SigLIP 2 model of transformers under our evaluators, with torch as its engine.

Weights, towers, image processor and tokenizer are those of transformers. If a number differs from
that of `load(path, preproc="hf")`, the models differ. If the two agree and the published number
differs, the protocol differs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
from jaxtyping import Float, Float32, Int32

from siglip2_jax.benchmarks.adapters.transformers_inputs import (
    TransformersImages,
    read_sizes,
    to_images,
)
from siglip2_jax.fingerprint import fingerprint_arrays
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE, Embedder
from siglip2_jax.inference.programs import Programs
from siglip2_jax.preprocess.text_norm import TextNorm, normalize
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.types import Features, Patches

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_TYPES = ("siglip", "siglip2")


def open_transformers(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    text_norm: TextNorm = "unicode_lower",
    device: str | None = None,
    exif: bool = True,
) -> TransformersModel:
    """Opens a Hugging Face directory or repository with transformers, in float32.

    Args:
      path: of a `SiglipModel` (fixed resolution) or `Siglip2Model` (NaFlex).
      tokenizer: one of ours; None takes the directory's. A model whose directory has no
        tokenizer that knows letters has none.
      text_norm: normalisation of texts before the directory's tokenizer, which may do more itself;
        a tokenizer of ours has its own. Released models were trained on lower case, and older
        tokenizer files do not lower-case.
      device: where to run; None takes a GPU if there is one.
      exif: turn images upright by their EXIF orientation, which transformers' processor does not.

    Raises:
      ValueError: torch or transformers is not installed, the model is of another type, or its
        files do not fit together.
      OSError: it cannot be read.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise ValueError(
            "models of transformers need torch and transformers; pip install torch "
            "'transformers>=5,<6', or use siglip2_jax.load, which needs neither"
        ) from error
    place = os.fspath(path)
    try:
        kind = AutoConfig.from_pretrained(place).model_type
        if kind in MODEL_TYPES:
            model, report = AutoModel.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(place, backend="pil")
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{place} cannot be read ({reason}); give a directory of transformers with its image "
            "processor, or a repository id with the network on"
        ) from error
    if kind not in MODEL_TYPES:
        raise ValueError(f"{place} is a model of the type {kind!r}, expected 'siglip' or 'siglip2'")
    if missing := sorted(report["missing_keys"]):  # transformers would make them up
        raise ValueError(f"{place} lacks {len(missing)} tensors, such as {missing[0]}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizer or _own_tokenizer(place)
    return TransformersModel(
        model.eval().to(device), processor, tokenizer, text_norm=text_norm, exif=exif
    )


def _own_tokenizer(place: str) -> Any:
    """The directory's tokenizer, or None if there is none or it has no vocabulary."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError):
        return None
    # Where there is no file, transformers makes a SigLIP 2 tokenizer of five special ids.
    return None if tokenizer.unk_token_id in tokenizer("a photo").input_ids else tokenizer


class TransformersModel(Embedder):
    """A model of transformers in the form of an `Embedder`: the same methods and attributes.

    `params` holds the temperature and the bias only, so it cannot be saved. Texts are padded to the
    model's length and not masked, as in training; transformers' own pipelines mask padding where
    the tokenizer's files ask for an attention mask.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokenizer: Any = None,
        *,
        text_norm: TextNorm = "unicode_lower",
        exif: bool = True,
    ):
        """Wraps a model that transformers has opened.

        Args:
          model: a `SiglipModel` or `Siglip2Model`, in float32.
          processor: its image processor, of the backend "pil".
          tokenizer: one of transformers, or ours, or None.
          text_norm: as for `open_transformers`.
          exif: likewise.

        Raises:
          ValueError: the model's sizes are not those of a SigLIP model, or differ from the
            processor's.
        """
        config = read_sizes(model.config)
        vision = config.vision
        side = vision.image_size
        if side is not None and dict(processor.size) != {"height": side, "width": side}:
            raise ValueError(
                f"the image processor resizes to {dict(processor.size)}, the model reads {side} x "
                f"{side} pixels; take the preprocessor_config.json of this model"
            )
        images = TransformersImages(vision.patch_size, side, "hf", exif=exif, processor=processor)
        our_tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
        if our_tokenizer is not None:
            our_tokenizer.check(config.text.vocab_size)
        scalars = {"t": model.logit_scale.item(), "b": model.logit_bias.item()}
        super().__init__(config, scalars, images, our_tokenizer, text_norm=text_norm)
        self._model, self._texts = model, cast(Any, None if our_tokenizer else tokenizer)
        self._programs = Programs(
            encode_image=lambda _, image: self._features(image),
            embed_image=self._rows_of_images,
            hidden_states=_refuse_states,
            embed_text=self._rows_of_texts,
        )

    def identity(self) -> dict[str, Any]:
        """All that the model's outputs depend on, by content."""
        weights = {name: x.cpu().numpy() for name, x in self._model.state_dict().items()}
        tokenizer = self._texts and [repr(self._texts), sorted(self._texts.get_vocab().items())]
        return {
            **super().identity(),
            "weights": fingerprint_arrays(weights),
            "transformers": [repr(self._model.config), tokenizer],
        }

    def embed_texts(
        self, texts: str | Sequence[str], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[np.ndarray, "n E"]:
        """Embeds texts as `Embedder.embed_texts` does, by transformers' tokenizer if any."""
        if self._texts is None:
            return super().embed_texts(texts, batch_size=batch_size)
        length = self.config.text.length
        texts = [texts] if isinstance(texts, str) else texts
        normal = [normalize(text, self.text_norm) for text in texts]
        options = {"padding": "max_length", "truncation": True, "max_length": length}
        ids = self._texts(normal, **options)["input_ids"] if normal else ()  # it needs one text
        return self.embed_tokens(
            np.reshape(ids, (-1, length)).astype(np.int32), batch_size=batch_size
        )

    def _features(self, image: Patches) -> Features:
        import torch

        pixels, valid = np.asarray(image.pixels), np.asarray(image.valid)
        grid = np.where(valid[..., None], image.yx, 0).max(axis=1) + 1
        inputs = {"pixel_values": pixels}
        if self.config.native_resolution:
            mask = valid.astype(np.int64)
            inputs |= {"pixel_attention_mask": mask, "spatial_shapes": grid.astype(np.int64)}
        else:
            inputs["pixel_values"] = to_images(pixels, self.config.vision.patch_size)
        with torch.inference_mode():
            outputs = self._model.vision_model(
                **{name: torch.tensor(x).to(self._model.device) for name, x in inputs.items()}
            )
            pooled = outputs.pooler_output
            rows = torch.nn.functional.normalize(pooled, dim=-1)
            tokens, pooled, rows = (
                x.cpu().numpy() for x in (outputs.last_hidden_state, pooled, rows)
            )
        return Features(tokens=tokens, pooled=pooled, image=rows, valid=valid, grid=grid)

    def _rows_of_images(
        self, _: Any, image: Patches, *, normalize: bool
    ) -> Float32[np.ndarray, "n E"]:
        features = self._features(image)
        return np.asarray(features.image if normalize else features.pooled)

    def _rows_of_texts(self, _: Any, ids: Int32[np.ndarray, "n T"]) -> Float32[np.ndarray, "n E"]:
        import torch

        with torch.inference_mode():
            outputs = self._model.text_model(input_ids=torch.tensor(ids).to(self._model.device))
            return torch.nn.functional.normalize(outputs.pooler_output, dim=-1).cpu().numpy()


def _refuse_states(*_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        "a model of transformers gives no tokens of chosen blocks here; open it with "
        "siglip2_jax.load, or ask transformers for output_hidden_states"
    )
