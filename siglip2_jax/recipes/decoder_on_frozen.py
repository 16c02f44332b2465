"""A captioning decoder for a released SigLIP 2 encoder, whose own was never released.

    siglip2 train decoder_on_frozen --workdir gs://BUCKET/decoder \
        --set data='/data/train/*.arrayrecord' --set tokenizer=/data/tokenizer.model
    siglip2 caption gs://BUCKET/decoder image.jpg
    siglip2 plan decoder_on_frozen --topology v5e:4x4 --budget 256

The decoder of section 2.2 (arXiv 2502.14786) on the patch tokens of a frozen image tower: captions,
half of them in parallel, and, where records have `regions`, boxes for phrases and phrases for
boxes. It is not Google's, and what it writes depends on your data. Neither tower is trained, and
the text tower does not even run, so that the workdir's model embeds exactly as the release does.

The schedule is LocCa's where it fits (arXiv 2403.19596, section 4.1: learning rate 1e-3, 10,000
steps of warm-up, batches of 8,192); an encoder that is trained already needs a tenth of its 9
billion examples or less.
"""

from siglip2_jax.config import (
    Checkpoints,
    Data,
    Group,
    Logging,
    Optim,
    Pretrained,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.records import Records
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import RELEASES
from siglip2_jax.objectives.caption import Captioning


def config(
    source: str = "google/siglip2-base-patch16-naflex",
    data: str = "/data/train/*.arrayrecord",
    tokenizer: str = "/data/tokenizer.model",
) -> TrainConfig:
    """One stage of 500 million examples.

    Args:
      source: a released checkpoint, by its repository's name or a path that ends with it.
      data: a glob of ArrayRecord files.
      tokenizer: Gemma's.
    """
    name = source.rstrip("/").rsplit("/", 1)[-1]
    variants = {variant.hf.rsplit("/", 1)[-1]: variant for variant in RELEASES}
    if name not in variants:
        raise ValueError(
            f"source is {source!r}, no release of SigLIP 2; it should end with one of "
            + ", ".join(variants)
        )
    compute = Compute(dtype="bfloat16", scan=False, remat=0.84)  # of six blocks, one keeps all
    stage = Stage(
        name="main",
        examples=500_000_000,
        batch_size=8192,
        start=Pretrained(source=source, parts=("vision/.*", "text/.*", "t", "b")),
        data=Data(
            source=Records(data), transforms=(DecoderTargets(tokenizer),), workers="auto", threads=1
        ),
        lengths=Lengths(budgets=(256, 576), batch_scale=()),  # of native resolution
        objectives={"caption": Captioning(parallel=0.5)},
        optim=Optim(
            peak_lr=1e-3,
            weight_decay=1e-4,
            schedule=Schedule(warmup=10_000 / 61_036),
            groups=(Group(pattern="vision/.*|text/.*|t|b", frozen=True),),
        ),
    )
    return TrainConfig(
        model=variants[name].config,
        stages=(stage,),
        tokenizer=tokenizer,
        compute=compute,
        checkpoints=Checkpoints(every=1000),
        logging=Logging(every=50),
    )
