"""Open-vocabulary segmentation without training: each patch against the names of the classes.

A smoke test of how well patches match texts, not a published number: SigLIP 2's table 3 (arXiv
2502.14786, section 3.3.2) trains Cat-Seg on top.

Patch tokens are not in the space of texts: between the two lies the pooling head, which only pooled
vectors go through in training. As MaskCLIP does with CLIP (Zhou et al., arXiv 2112.01071, section
3.2), every patch goes through it on its own: the head's value and output projections, then its MLP.
That is the head's answer for an image of this one patch, as attention over one token is its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float

from siglip2_jax.benchmarks.dense.data import read_class_map
from siglip2_jax.benchmarks.dense.features import ImageModel, read_features
from siglip2_jax.benchmarks.dense.figures import class_colours, write_figure
from siglip2_jax.benchmarks.dense.heads import ClassHead
from siglip2_jax.benchmarks.dense.layer import Linear, Weights
from siglip2_jax.benchmarks.dense.metrics import confusion, mean_iou
from siglip2_jax.benchmarks.dense.rows import run_rows
from siglip2_jax.benchmarks.dense.train import draw_maps
from siglip2_jax.evals.base import OpenModel
from siglip2_jax.evals.class_embeddings import ClassCache, class_embeddings
from siglip2_jax.evals.prompts import fill_prompts
from siglip2_jax.models.config import VisionConfig
from siglip2_jax.models.kernels.int8 import multiply_out
from siglip2_jax.models.pool import AttentionPool
from siglip2_jax.models.siglip2 import Params, normalize
from siglip2_jax.sharding import gather, replicate
from siglip2_jax.types import Features

IMAGES_AT_ONCE = 128
ROWS_AT_ONCE = 4096


@runtime_checkable
class OpenImageModel(OpenModel, ImageModel, Protocol):
    """A model that shows its parameters and how it prepares images."""


def patch_embeddings(model: OpenModel, features: Features) -> Float[np.ndarray, "n N E"]:
    """Unit-norm embedding of each patch, pooled on its own (0 for padding).

    Args:
      model: has the head, and has computed the features.
      features: of any images.

    Raises:
      ValueError: the model does not expose its parameters.
    """
    if "vision" not in model.params:
        raise ValueError(
            "open-vocabulary segmentation needs the pooling head's parameters, which this model "
            "does not expose; load it without --transformers"
        )
    valid = np.asarray(features.valid)
    result = np.zeros((*valid.shape, model.config.vision.width), np.float32)
    if not valid.any():
        return result
    rows = np.asarray(features.tokens, np.float32)[valid][:, None]
    program = partial(_pool_program(model.config.vision), model.params["vision"]["pool"])
    result[valid] = run_rows(model.mesh, program, rows, ROWS_AT_ONCE)
    return result


@lru_cache(maxsize=8)
def _pool_program(config: VisionConfig) -> Callable[[Params, np.ndarray], Array]:
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: AttentionPool(config, rngs=nnx.Rngs(0))))

    @jax.jit
    def program(params: Params, tokens: Float[Array, "B 1 D"]) -> Float[Array, "B D"]:
        with jax.default_matmul_precision("highest"):
            head = multiply_out(gather(nnx.merge(graphdef, params), jnp.float32))
            return replicate(normalize(head(tokens, jnp.ones_like(tokens[..., 0], bool))))

    return program


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVocabulary:
    """Mean intersection over union of the class whose text is closest to each pixel.

    Cosines of patches and classes are enlarged bilinearly to the label's size; the greatest wins.
    Of an image that cannot be read, which is listed, all labelled pixels count as wrong.

    Attributes:
      pairs: paths of images and of their class maps, such as `data.read_index(...).test`.
      classes: their names; labels hold 0 up to `len(classes) - 1`.
      templates: prompts with one `{}` for the name.
      canonical: as for `prompts.fill_prompts`.
      cache: where class embeddings are kept; not for use in training.
      void: the label of pixels that do not count.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      figures: folder for PNG files of image, truth and prediction side by side; None draws none.
      num_figures: how many, from the first image.
    """

    pairs: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}",)
    canonical: bool = False
    cache: ClassCache | None = None
    void: int = 255
    name: str = "open_vocabulary"
    every: int = 10_000
    max_num_patches: int = 256
    figures: str | None = None
    num_figures: int = 8

    def __post_init__(self) -> None:
        fill_prompts(self.classes, self.templates, canonical=self.canonical)
        if not self.pairs:
            raise ValueError("OpenVocabulary.pairs is empty; give at least one image and label")

    def __call__(self, model: OpenImageModel) -> dict[str, float]:
        """`miou` and `pixel_accuracy`, from 0 to 1, over all pixels together.

        Raises:
          ValueError: a label cannot be used, or no pixel has one.
        """
        rows = class_embeddings(
            model, self.classes, self.templates, canonical=self.canonical, cache=self.cache
        )
        # A linear probe whose weights are the texts.
        zeros = jnp.zeros_like(rows.T)
        weights = {"tokens": jnp.asarray(rows.T), "pooled": zeros, "bias": zeros[0]}
        count = len(self.classes)
        total = np.zeros((count, count + 1), np.int64)
        for predicted, truth in self._maps(model, weights):
            total += confusion(predicted, truth, count)
        return {"miou": mean_iou(total), "pixel_accuracy": float(np.trace(total) / total.sum())}

    def _maps(
        self, model: OpenImageModel, weights: Weights
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The predicted and the true classes of each image; writes images of them."""
        head = ClassHead(len(self.classes))
        for start in range(0, len(self.pairs), IMAGES_AT_ONCE):
            pairs = self.pairs[start : start + IMAGES_AT_ONCE]
            images = read_features(
                model,
                [image for image, _ in pairs],
                max_num_patches=self.max_num_patches,
                blocks=0,
                label=f"{self.name}, images from {start}",
            )
            (features,) = images.features
            features = dataclasses.replace(features, tokens=patch_embeddings(model, features))
            images = images._replace(features=(features,))
            labels = [read_class_map(path, len(self.classes), self.void) for _, path in pairs]
            # One at a time: with many classes the map of an image is large.
            maps = draw_maps(Linear(), head, weights, images, labels, 1)
            for i, (predicted, truth) in enumerate(zip(maps, labels, strict=True)):
                if i in images.read:
                    self._write(start + i, truth, predicted)
                yield predicted, truth

    def _write(self, place: int, truth: np.ndarray, predicted: np.ndarray) -> None:
        if self.figures and place < self.num_figures and jax.process_index() == 0:
            image = self.pairs[place][0]
            path = epath.Path(self.figures) / f"{place:03d}_{Path(image).stem}.png"
            write_figure(path, image, class_colours(truth), class_colours(predicted))
