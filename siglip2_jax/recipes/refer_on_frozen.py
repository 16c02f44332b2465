"""Referring expressions: a six-layer decoder that finds phrases, on a frozen image tower.

    siglip2 train refer_on_frozen --workdir gs://BUCKET/refer --set tokenizer=/data/tokenizer.model
    siglip2 eval gs://BUCKET/refer --task refcoco_val --data /data
    siglip2 plan refer_on_frozen --topology v5e:4x4

Table 5 of the paper (arXiv 2502.14786): a decoder of six layers reads the patch tokens of a frozen
tower and is trained from scratch on RefCOCO, RefCOCO+ and RefCOCOg together, without the images
that any of them validates or tests on. The phrase is given and its box learned. `rows` has one line
for each expression: an image and a region whose phrase is the expression; docs/recipe.md makes it
of the published files. Batch, steps and learning rate are unpublished: the ones here pass about 20
times over the expressions.
"""

from dataclasses import replace

from siglip2_jax.config import Schedule, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.recipes import decoder_on_frozen


def config(
    source: str = "google/siglip2-base-patch16-256",
    data: str = "/data/refer",
    rows: str = "expressions.jsonl",
    images: str = "train2014",
    tokenizer: str = "/data/tokenizer.model",
) -> TrainConfig:
    """One stage of 20,000 steps of 256 expressions.

    Args:
      source: a released checkpoint; the paper's have 256 and 576 patches, or 729.
      data: a directory.
      rows: a file of JSON lines in it, with `captions` and `regions`.
      images: the directory's folder of images.
      tokenizer: Gemma's.
    """
    base = decoder_on_frozen.config(source, tokenizer=tokenizer)
    (stage,) = base.stages
    targets = DecoderTargets(tokenizer, tasks=("refer",), refer_loss="box")
    folder = Folder(data, captions=rows, images=images)
    schedule = Schedule(warmup=0.05)
    stage = replace(
        stage,
        examples=None,
        steps=20_000,
        batch_size=256,
        data=replace(stage.data, source=folder, transforms=(targets,)),
        objectives={"refer": Captioning(parallel=0.0, depth=6)},
        optim=replace(stage.optim, peak_lr=3e-4, schedule=schedule),
    )
    return replace(base, stages=(stage,))
