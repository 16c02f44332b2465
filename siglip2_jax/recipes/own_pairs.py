"""Fine-tuning on a few hundred image-caption pairs of your own, on one CPU machine or one chip.

    siglip2 train own_pairs --workdir tuned --set data=my_pairs --set base=MODEL

`my_pairs` is a folder with `captions.jsonl` and `images`, a table (.csv, .tsv, .jsonl) or Parquet
files. MODEL is what `siglip2_jax.load` takes; sizes, preprocessing and tokenizer are its own. Part
of the images is held out, and recall on them is logged before the first step and during the run.
docs/fine_tuning.md is the tutorial.
"""

import math
from dataclasses import replace

from siglip2_jax import checkpoints
from siglip2_jax.config import Checkpoints, Data, Group, Logging, Pretrained, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.pairs import Pairs
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.models.compute import Compute
from siglip2_jax.recipes import finetune, finetune_lora

RELEASE = "google/siglip2-base-patch16-naflex"
LR = finetune.config().stages[0].optim.peak_lr
LEARNING = ("all", "adapters", "image", "text")


def config(
    data: str = "my_pairs",
    base: str = RELEASE,
    tokenizer: str = "",
    learn: str = "all",
    lr: float = LR,
    batch: int = 64,
    base_batch: int = finetune.RELEASED_BATCH,
    patches: int = 256,
    held_out: float = 0.15,
    augment: bool = True,
) -> TrainConfig:
    """One stage of 300 steps, measured every 50.

    Args:
      data: images with captions, see `data.pairs.Pairs`.
      base: the model to start from.
      tokenizer: the base's tokenizer; empty takes the file beside it.
      learn: what learns: "all", "adapters" (LoRA), or the tower "image" or "text" alone.
      lr: peak learning rate of the towers; adapters learn faster, as in `finetune_lora`.
      batch: pairs of a step.
      base_batch: batch size that the base was trained with, to which its bias `b` belongs.
      patches: of an image, at most, where the base has native resolution.
      held_out: share of the images to measure on, where rows have no column `split`.
      augment: whether images are cropped and mirrored at random.
    """
    if learn not in LEARNING:
        raise ValueError(f"learn is {learn!r}; it must be one of {', '.join(LEARNING)}")
    run = (finetune_lora if learn == "adapters" else finetune).config()
    if base != RELEASE:
        checkpoint = checkpoints.read(base)
        tokenizer = tokenizer or str(checkpoint.tokenizer or "")
        run = replace(run, model=checkpoint.config, preprocessing=checkpoint.preprocessing)
    (stage,) = run.stages
    frozen = {"image": "text/.*", "text": "vision/.*"}.get(learn)
    groups = (Group(pattern=frozen, frozen=True),) if frozen else ()
    recall = (
        Retrieval(source=Pairs(data, part, held_out), name=part, every=50, max_num_patches=patches)
        for part in ("held_out", "train")
    )
    stage = replace(
        stage,
        steps=300,
        batch_size=batch,
        start=Pretrained(source=base, bias_shift=math.log(base_batch / batch)),
        data=Data(
            source=Pairs(data, "train", held_out),
            transforms=(RandomResizedCrop((0.5, 1.0)), HorizontalFlip()) if augment else (),
        ),
        lengths=Lengths(budgets=(patches,), batch_scale=()),
        optim=replace(
            stage.optim,
            peak_lr=stage.optim.peak_lr * lr / LR,
            groups=(*groups, *stage.optim.groups),
        ),
        evals=tuple(recall),
    )
    return replace(
        run,
        stages=(stage,),
        tokenizer=tokenizer or run.tokenizer,
        compute=Compute(),
        checkpoints=Checkpoints(every=50, keep_last=10),
        logging=Logging(every=10),
    )
