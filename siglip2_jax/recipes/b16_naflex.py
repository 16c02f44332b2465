"""SigLIP 2 B/16 NaFlex: native aspect ratio and five sequence lengths, from a run at 90 %.

    siglip2 train b16_naflex --workdir gs://BUCKET/b16_naflex
    siglip2 plan b16_naflex --topology v5e:16x16 --budget 256

Stage 4 of the paper (arXiv 2502.14786, section 2.4.2) with the sigmoid loss: the run of
`b16_256` is left at 90 % and the rest of its schedule stretched 3.75 times. Every batch has
one of the lengths 128, 256, 576, 784 and 1024, with as many examples of each; at 1024 batches are
halved. The position table has 16 x 16 entries in both, so nothing is resized.

On v5e:16x16, unrolled, a length of at most 256 keeps everything for the backward pass; of a longer
one the first blocks are computed again, as many as must be:

    patches    computed again    step      peak         MFU
    128        none               98 ms     6.34 GiB    0.667
    256        none              167 ms     9.85 GiB    0.670
    576        3 of 12           434 ms    14.75 GiB    0.547
    784        6 of 12           678 ms    14.48 GiB    0.483
    1024       1 of 12           396 ms    14.46 GiB    0.553
"""

from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Data,
    Logging,
    Optim,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.records import Records
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.objectives.sigmoid import Sigmoid

BATCH = 32_768
EXAMPLES = 40_000_000_000  # of the run that is continued
MEAN_SCALE = 5 / 6  # of a step's batch: 1024 has half a batch and twice the steps
TAIL = 0.1 * 3.75  # the tail, stretched, as a share of them


def config() -> TrainConfig:
    """One stage of 15 billion examples, 549,317 steps."""
    total = EXAMPLES // BATCH
    stage = Stage(
        name="naflex",
        examples=int(TAIL * EXAMPLES),
        batch_size=BATCH,
        start=Continue(workdir="gs://BUCKET/b16_256", stage="main", fraction=0.9),
        data=Data(source=Records("/data/train/*.arrayrecord"), workers="auto", threads=1),
        lengths=Lengths(),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(
            peak_lr=1e-3,
            weight_decay=1e-4,
            schedule=Schedule(
                warmup=20_000,
                total_steps=total,
                begin=round(0.9 * total),
                # 3.75 in examples; the half batches at 1024 make 4.5 of it in steps.
                tail_stretch=3.75 / MEAN_SCALE,
            ),
        ),
    )
    return TrainConfig(
        model=two_towers("B", patch_size=16, image_size=None),
        stages=(stage,),
        tokenizer="/data/tokenizer.model",
        compute=Compute(
            dtype="bfloat16",
            scan=False,
            remat_up_to=((256, "none"), (576, 0.25), (784, 0.5)),
            remat=0.1,  # half a batch at 1024
        ),
        checkpoints=Checkpoints(every=1000, keep_last=3, keep_every=50_000),
        logging=Logging(every=50, tensorboard=True),
    )
