"""A model of about a million parameters on the images that ship with the package: minutes on a CPU.

    siglip2 train tiny --workdir /tmp/tiny

It learns its 62 images by heart; it is there to see a run, a checkpoint and a resume.
"""

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE, TOKENIZER, tiny_config
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.objectives.sigmoid import Sigmoid


def config() -> TrainConfig:
    """One stage of 300 steps at native resolution, with two sequence lengths."""
    images = Folder(str(HERE), captions="examples.jsonl", images="photos")
    stage = Stage(
        name="main",
        steps=300,
        batch_size=32,
        data=Data(source=images),
        lengths=Lengths(budgets=(32, 64), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, schedule=Schedule(warmup=0.1)),
        evals=(Retrieval(source=images, name="photos", every=100, max_num_patches=64),),
    )
    return TrainConfig(
        model=tiny_config(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        checkpoints=Checkpoints(every=100),
        logging=Logging(every=10),
    )
