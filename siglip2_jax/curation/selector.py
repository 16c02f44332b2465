"""Selects a training batch from a super-batch by learner and teacher scores (JEST, ACID)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from siglip2_jax.curation.redistribution import deal
from siglip2_jax.curation.selection import REFERENCE, Embedded, select
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import forward_flops
from siglip2_jax.models.siglip2 import Params, SigLIP2, abstract_model, flatten
from siglip2_jax.sharding import reshape_rows
from siglip2_jax.types import Batch, Patches


class BatchSelector:
    """The teacher of a stage that curates, with the settings of the selection.

    Attributes:
      model: the teacher's sizes.
      shapes: `jax.ShapeDtypeStruct` of its parameters, by path.
    """

    def __init__(
        self,
        student: ModelConfig,
        teacher: ModelConfig,
        compute: Compute,
        *,
        stage: str,
        batch_size: Callable[[int], int],
        chunks: int,
        pass_reference: bool,
    ):
        """Makes a selector for one stage.

        Args:
          student: sizes of the model in training.
          teacher: sizes of the model that curates.
          compute: precision and kernels of the teacher.
          stage: name of the stage, for errors.
          batch_size: examples to select, from the number of examples read.
          chunks: rounds of the selection.
          pass_reference: adds the teacher's embeddings to the batch.

        Raises:
          ValueError: the teacher cannot read what the student reads.
        """
        self._student, self._batch_size, self._chunks = student, batch_size, chunks
        self._pass_reference = pass_reference
        self.model = teacher
        _check_inputs(stage, student, teacher)
        self._graphdef, shapes = abstract_model(teacher, compute)
        self.shapes = flatten(shapes)

    def choose(
        self, student: SigLIP2, reference: Params, batch: Batch, key: Array
    ) -> tuple[Batch, dict[str, Array]]:
        """The part of a super-batch to train on.

        Args:
          student: the model being trained.
          reference: the teacher's parameters.
          batch: the super-batch.
          key: randomness of this step.

        Returns:
          The chosen examples, with what the teacher says of them in `fields["reference"]` (unless
          gradients are accumulated); and scalars worth logging.
        """
        teacher = nnx.merge(self._graphdef, reference)
        image = recut(batch.image, self._student, self.model)
        learner = _embed(student, batch.image, batch.text)
        target = _embed(teacher, image, batch.text)
        count = self._batch_size(batch.text.shape[0])
        indices, report = select(learner, target, key, count=count, chunks=self._chunks)
        batch, image, text = deal((batch, target.image, target.text), indices)
        if self._pass_reference:
            chosen = dataclasses.replace(target, image=image, text=text)
            batch = dataclasses.replace(batch, fields=batch.fields | {REFERENCE: chosen})
        return batch, report

    def flops(self, budget: int, read: int) -> int:
        """Analytic FLOPs of choosing: both models' forward pass over what is read, and scores.

        Every chosen example meets all that were read, as an image and as a text.
        """
        models = (self._student, self.model)
        count = self._batch_size(read)
        scores = 2 * 2 * read * count * sum(model.text.embed_dim for model in models)
        return scores + read * sum(forward_flops(x, x.vision.num_patches or budget) for x in models)


def _embed(model: SigLIP2, image: Patches, text: Any) -> Embedded:
    features = model.encode(image, text)
    return Embedded(features.image, jnp.asarray(features.text), model.t[...], model.b[...])


def recut(image: Patches, old: ModelConfig, new: ModelConfig) -> Patches:
    """Square images cut into patches of another size; the pixels are the same."""
    if old.vision.patch_size == new.vision.patch_size:
        return image
    batch, side = image.pixels.shape[0], old.vision.image_size
    assert side is not None  # at native resolution patches have one size
    p, q = old.vision.patch_size, new.vision.patch_size
    rows, columns = side // p, side // q
    pixels = reshape_rows(jnp.asarray(image.pixels), (batch, rows, rows, p, p, 3))
    pixels = reshape_rows(pixels.transpose(0, 1, 3, 2, 4, 5), (batch, columns, q, columns, q, 3))
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
    grid = jnp.stack(jnp.divmod(jnp.arange(columns**2), columns), axis=-1)
    like = image.yx[:, :1] * 0  # zeros that are split over the mesh as the images are
    return Patches(
        pixels=reshape_rows(pixels, (batch, columns**2, q * q * 3)),
        yx=like + grid,
        valid=(like[..., 0] + jnp.ones(columns**2, jnp.int32)).astype(bool),
    )


def _check_inputs(stage: str, student: ModelConfig, teacher: ModelConfig) -> None:
    """Checks that both models read the same pixels and token ids."""
    pairs = {
        "image size": (student.vision.image_size, teacher.vision.image_size),
        "vocabulary": (student.text.vocab_size, teacher.text.vocab_size),
        "text length": (student.text.length, teacher.text.length),
    }
    if student.native_resolution:
        pairs["patch size"] = (student.vision.patch_size, teacher.vision.patch_size)
    for name, (value, teacher_value) in pairs.items():
        if value != teacher_value:
            raise ValueError(
                f"stage {stage!r}: the teacher that curates has {name} {teacher_value} and the "
                f"model {value}; choose a teacher with the same {name}"
            )
    for model in (student, teacher):
        side, patch = model.vision.image_size, model.vision.patch_size
        if side is not None and side % patch and student.vision != teacher.vision:
            raise ValueError(
                f"stage {stage!r}: patches of {patch} do not fill images of {side} pixels, so the "
                "teacher's cannot be cut from them; choose a teacher of the same patch size"
            )
