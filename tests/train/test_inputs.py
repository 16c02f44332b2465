"""Inputs of a stage: lengths, seeds, shapes of batches."""

import dataclasses
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.samples import example

from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.prepare import Views
from siglip2_jax.data.sources import Memory
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import VisionConfig
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.train.inputs import (
    abstract_batch,
    check_batches,
    open_tokenizer,
    stage_pipeline,
    stage_reading,
)
from siglip2_jax.types import Patches


@dataclasses.dataclass(frozen=True)
class Extras:
    """Adds a number and two crops; takes examples without fields of their source too."""

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        image = example["image"]
        crops = [image.crop((0, 0, side, side)) for side in (16, 12)]
        images = tuple(
            ImagePreprocessor(16, None).to_patches(ImagePreprocessor(16, None).open(crop), 9)
            for crop in crops
        )
        example["fields"]["local"] = Views(images, 9)
        example["fields"]["id"] = np.float32(example.get("id", 0))
        return example


SIGMOID = Sigmoid()
SOURCE = Memory(tuple(example(i) for i in range(12)))


@dataclasses.dataclass(frozen=True)
class Reading(Sigmoid):
    """Looks at the patches themselves."""

    reads_pixels: bool = True


def config(
    fixed: bool = False,
    transforms: tuple = (),
    batch_size: int = 4,
    dtype: str = "float32",
    objective: Objective = SIGMOID,
) -> TrainConfig:
    model = tiny_config()
    if fixed:
        sizes = dataclasses.asdict(model.vision) | {"grid": 4, "image_size": 64}
        model = dataclasses.replace(model, vision=VisionConfig(**sizes))
    stages = tuple(
        Stage(
            name=name,
            steps=20,
            batch_size=batch_size,
            data=Data(source=SOURCE, transforms=transforms),
            lengths=Lengths(budgets=(6, 12), batch_scale=((12, 0.5),)),
            objectives={"sigmoid": objective},
        )
        for name in ("one", "two")
    )
    compute = Compute(dtype=dtype)
    return TrainConfig(model=model, stages=stages, tokenizer=str(TOKENIZER), compute=compute)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("transforms", [(), (Extras(),)])
@pytest.mark.parametrize(
    ("dtype", "objective", "expected"),
    [
        ("float32", SIGMOID, "float32"),
        ("bfloat16", SIGMOID, "bfloat16"),
        ("bfloat16", Reading(), "float32"),
    ],
)
def test_abstract_batches_are_what_the_pipeline_gives(
    fixed, transforms, dtype, objective, expected
):
    """Programs compiled before any data is read fit the data."""
    found = config(fixed, transforms, dtype=dtype, objective=objective)
    pixels = jnp.dtype(expected)
    stage = found.resolved[0]
    tokenizer = open_tokenizer(found)
    seen = set()
    with closing(stage_pipeline(stage, tokenizer).batches(stage_reading(stage))) as batches:
        for loaded in batches:
            size = loaded.batch.text.shape[0]
            abstract = abstract_batch(stage, loaded.budget, size)
            got, expected = jax.tree.leaves(loaded.batch), jax.tree.leaves(abstract)
            assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in expected]
            assert jax.tree.structure(loaded.batch) == jax.tree.structure(abstract)
            images = [loaded.batch.image, *loaded.batch.fields.values()]
            images = [image for image in images if isinstance(image, Patches)]
            assert {image.pixels.dtype for image in images} == {pixels}
            assert len(images) == 1 + len(transforms)
            seen.add(loaded.budget)
    assert seen == ({16} if fixed else {6, 12})


def test_fixed_resolution_has_one_length_and_whole_batches():
    stage = config(fixed=True).resolved[0]
    assert stage.lengths.budgets == (16,)
    assert {size for *_, size, _ in stage_reading(stage)} == {4}


def test_readings_continue_and_stages_differ():
    found = config()
    one, two = found.resolved
    whole, rest = stage_reading(one), stage_reading(one, step=7, position=99)
    assert [row[:3] for row in whole][7:] == [row[:3] for row in rest]
    assert rest.position == 99 and rest.step == 7
    assert [row[1] for row in whole] != [row[1] for row in stage_reading(two)]
    tokenizer = open_tokenizer(found)
    assert stage_pipeline(one, tokenizer).seed != stage_pipeline(two, tokenizer).seed


def test_batches_must_be_dealt_evenly():
    check_batches(config(batch_size=8), 4)
    with pytest.raises(ValueError, match="batch of 4 at 12 patches cannot be dealt to 8 devices"):
        check_batches(config(batch_size=8), 8)
