"""The whole of SigLIP 2 (arXiv 2502.14786), B/16: five stages, every number in this file.

    siglip2 train siglip2_b16 --workdir /tmp/siglip2 --set scale=1e-7
    siglip2 plan siglip2_b16 --topology v5e:16x16 --stage distill
    siglip2 train siglip2_b16 --workdir gs://BUCKET/siglip2_b16 \
        --set data='/data/english/*.arrayrecord' \
        --set other_languages='/data/others/*.arrayrecord' \
        --set tokenizer=/data/tokenizer.model

The first command runs all stages on two CPU cores, on the images that ship with the package:
`siglip2_jax.config.scale` says how everything shrinks together. At scale 1, records need captions
and, for the two box tasks, `regions` (see `siglip2 data regions`).

    share of 40 billion examples  0 %                        80 %      90 %   95 %  100 %
    1 main      section 2.2       sigmoid, captioning        |
    2 distill   section 2.3       + self-distillation,       +----------------+------> B/16 256
                                    masked prediction                         |
    3 p16_384   section 2.4.1     the same, at other sizes                    +------> one each
    4 trunk                       main goes on               +---------+
      naflex    section 2.4.2     many lengths, tail x 3.75            +-------------> NaFlex
    5 acid_...  section 2.5       sigmoid on curated batches, after 2 or 3: + 4 billion examples
"""

from dataclasses import replace
from typing import Any

from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Curation,
    Data,
    Logging,
    Optim,
    Pretrained,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.config.scale import ScaledRecipe
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.prepare import Transform
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Mixture
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import HERE, TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, two_towers
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid

BATCH = 32_768
STEPS = 40_000_000_000 / BATCH  # 100 %: 1,220,703
WARMUP = 20_000
PIXELS = 256  # of stages 1 and 2
NAFLEX = (128, 256, 576, 784, 1024)  # one length a step, the same number of examples of each
STRETCH = 3.75 / (5 / 6)  # 3.75 in examples; 1024 has half a batch and twice the steps
ACID_STEPS = 4_000_000_000 / BATCH
LANGUAGES = (0.9, 0.1)  # section 2.1: the shares of pairs from pages in English and in others

# Section 2.3: the weight of both self-supervised losses.
WEIGHT = {"B": 0.25, "L": 0.5, "So400m": 1.0, "g-opt": 0.5}
# What was released at fixed resolution beside patch 16 at 256 pixels: patch size, pixels.
ADAPTED = {
    "B": ((16, 224), (16, 384), (16, 512), (32, 256)),
    "L": ((16, 384), (16, 512)),
    "So400m": ((14, 224), (14, 384), (16, 384), (16, 512)),
    "g-opt": ((16, 384),),
}
NATIVE = ("B", "So400m")  # released at native resolution
# Section 2.5: the share of examples left out, by patch size; only B was curated. The teacher is a
# So400m that `curating_teacher` fine-tunes. Which variant is unpublished: here the one that reads
# images of the same size.
LEFT_OUT = {16: 0.5, 32: 0.75}
TEACHERS = {224: 14, 256: 16, 384: 16, 512: 16}  # patch size by pixels
# Stages whose blocks are unrolled, and what of them is computed again, by plans of B and L on
# v5e:16x16, of So400m and g-opt on eight of those (docs/performance.md, "Settings of the recipe").
UNROLLED: dict[str, dict[str, dict[str, Any]]] = {
    "B": {
        "main": {"remat": "none"},
        "distill": {"remat": 0.17},
        "naflex": {  # 64: of texts
            "remat_up_to": ((64, "none"), (128, "none"), (256, 0.1), (576, 0.75), (784, 0.8)),
            "remat": 0.6,  # half a batch at 1024
        },
        "p16_224": {"remat": 0.1},
        "p16_384": {"remat": 0.75},
        "p16_512": {"remat": 0.75},
        "p32_256": {"remat": "none"},
        "acid_p16_224": {"remat": "none"},
        "acid_p16_256": {"remat": "none"},
        "acid_p16_384": {"remat": 0.42},
        "acid_p16_512": {"remat": 0.67},
        "acid_p32_256": {"remat": "none"},
    },
    "L": {
        "main": {"remat": 0.75},
        "distill": {"remat": 0.8},
        "p16_384": {"remat": 0.88},
        "p16_512": {"remat": 0.96},
    },
    "So400m": {
        "main": {"remat": "none"},
        "distill": {"remat": 0.1},
        "naflex": {
            "remat_up_to": ((256, "none"), (576, 0.18), (784, 0.66)),  # and of texts
            "remat": 0.08,
        },
        "p14_224": {"remat": 0.1},
        "p14_384": {"remat": 0.45},
        "p16_384": {"remat": 0.35},
        "p16_512": {"remat": 0.58},
    },
    "g-opt": {
        "main": {"remat": 0.25},
        "distill": {"remat": 0.5},
        "p16_384": {"remat": 0.75},
    },
}


class Recipe:
    """The stages of one size at one scale."""

    def __init__(self, scale: float, size: str, data: str, other_languages: str, tokenizer: str):
        self.scale, self.size = ScaledRecipe(scale), size
        self.full = scale == 1
        shipped = Folder(str(HERE), captions="examples.jsonl", images="photos")
        photos = Retrieval(source=shipped, name="photos", every=100_000)
        self.evals = () if self.full or data else (photos,)
        if self.full and not data:
            data = "/data/english/*.arrayrecord"
            other_languages = other_languages or "/data/others/*.arrayrecord"
        self.source = Records(data) if data else shipped
        if other_languages:
            parts = self.source, Records(other_languages)
            self.source = Mixture(tuple(zip(parts, LANGUAGES, strict=True)))
        self.tokenizer = tokenizer or ("/data/tokenizer.model" if self.full else str(TOKENIZER))
        self.vocab_size = 256_000 if self.full or tokenizer else 1024
        self.compute = Compute(dtype="bfloat16", remat="full") if self.full else Compute()

    def model(self, patch_size: int = 16, pixels: int | None = PIXELS) -> ModelConfig:
        """Towers that read square images, or any (None)."""
        published = two_towers(self.size, patch_size=patch_size, image_size=pixels)
        return self.scale.model(published, self.vocab_size)

    def steps(self, share: float) -> int:
        """Steps of a share of the 40 billion examples."""
        return self.scale.steps(share * STEPS)

    def data(self, *transforms: Transform) -> Data:
        """All stages but the fifth write captions and boxes of the original image."""
        data = Data(source=self.source, transforms=transforms)
        return replace(data, workers="auto", threads=1) if self.full else data

    @property
    def targets(self) -> DecoderTargets:
        """One caption and two regions; boxes as integers from 0 to 500, detections from 0.3 up."""
        return DecoderTargets(self.tokenizer, length=64, min_score=0.3)

    def views(self, model: ModelConfig) -> SelfSupervisedViews:
        """One global view as large as the model's images, and 8 local ones of 96 pixels."""
        patch, pixels = model.vision.patch_size, model.vision.image_size
        assert pixels is not None  # these views are square, as the model's images are
        local = round(self.scale.side(96, 16) / patch) or 1
        return SelfSupervisedViews(
            patch_size=patch,
            global_size=pixels // patch * patch,
            local_size=local * patch,
            local_views=8,
        )

    def losses(self, supervised_only: bool) -> dict[str, Objective]:
        """Sections 2.2 and 2.3: equal weights of sigmoid and captioning; 1 and 0.25 of the rest."""
        supervised: dict[str, Objective] = {
            "sigmoid": Sigmoid(weight=1.0),
            "caption": Captioning(weight=1.0, parallel=0.5, chunk=1024),
        }
        if supervised_only:
            return supervised
        head: dict[str, Any] = {
            "prototypes": self.scale.tokens(65_536),
            "hidden": self.scale.width(2048),
            "bottleneck": self.scale.width(256),
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
            "center_momentum": 0.9,
        }
        weight = WEIGHT[self.size]
        return supervised | {
            "self_distill": SelfDistill(weight=1.0 * weight, **head),
            "masked": MaskedPrediction(weight=0.25 * weight, ratio=0.5, **head),
        }

    def optim(self, begin: float, **changes: Any) -> Optim:
        """Section 2.1, with the clock of the schedule at a share of the run."""
        schedule = Schedule(
            warmup=self.scale.steps(WARMUP),
            total_steps=self.steps(1.0),
            begin=self.steps(begin),
        )
        optim = Optim(peak_lr=1e-3, weight_decay=1e-4, b1=0.9, b2=0.95, clip_norm=1.0)
        return replace(optim, **({"schedule": schedule} | changes))

    def stage(self, name: str, steps: int, **fields: Any) -> Stage:
        """A stage with what all have in common."""
        batch, kept = self.scale.batch(BATCH), UNROLLED.get(self.size, {}).get(name)
        if self.full and kept is not None:
            fields["compute"] = replace(self.compute, scan=False, **kept)
        return Stage(name=name, steps=steps, batch_size=batch, evals=self.evals, **fields)

    def main(self) -> Stage:
        """Stage 1: sigmoid and captioning, to 80 %."""
        return self.stage(
            "main",
            self.steps(0.8),
            data=self.data(self.targets),
            objectives=self.losses(supervised_only=True),
            optim=self.optim(0.0),
        )

    def distill(self) -> Stage:
        """Stage 2: all losses, 80 % to 100 %; the teacher starts as the student."""
        return self.stage(
            "distill",
            self.steps(0.2),
            start=Continue(stage="main"),
            data=self.data(self.targets, self.views(self.model())),
            objectives=self.losses(supervised_only=False),
            optim=self.optim(0.8, ema=0.966),
        )

    def adapted(self, patch_size: int, pixels: int) -> Stage:
        """Stage 3: all losses at another size, 95 % to 100 %."""
        model = self.model(patch_size, pixels)
        return self.stage(
            f"p{patch_size}_{pixels}",
            self.steps(0.05),
            start=Continue(stage="distill", fraction=0.75),
            model=model,
            data=self.data(self.targets, self.views(model)),
            objectives=self.losses(supervised_only=False),
            optim=self.optim(0.95, ema=0.966),
        )

    def trunk(self) -> Stage:
        """80 % to 90 % without the losses of stage 2, for NaFlex to branch off."""
        return replace(
            self.main(),
            name="trunk",
            steps=self.steps(0.1),
            start=Continue(stage="main"),
            optim=self.optim(0.8),
        )

    def naflex(self) -> Stage:
        """Stage 4: native aspect ratio, from 90 %; the rest of the schedule takes longer."""
        budgets = tuple(self.scale.tokens(n) for n in NAFLEX)
        optim = self.optim(0.9)
        return self.stage(
            "naflex",
            round(self.steps(0.1) * STRETCH),
            start=Continue(stage="trunk"),
            model=self.model(pixels=None),
            lengths=Lengths(budgets=budgets, batch_scale=((budgets[-1], 0.5),)),
            data=self.data(self.targets),
            objectives=self.losses(supervised_only=True),
            optim=replace(optim, schedule=replace(optim.schedule, tail_stretch=STRETCH)),
        )

    def acid(self, start: str, patch_size: int, pixels: int, teacher: str) -> Stage:
        """Stage 5: sigmoid on what a larger model finds learnable, 4 billion examples."""
        if teacher:
            patch = TEACHERS[pixels]
            source = teacher.format(patch_size=patch, pixels=pixels)
            knows = two_towers("So400m", patch_size=patch, image_size=pixels)
            curation = Curation(teacher=Pretrained(source=source), model=knows)
        elif patch_size == 32:  # the same pixels in finer patches
            curation = Curation(teacher=Continue(stage="distill"), model=self.model())
        else:
            curation = Curation(teacher=Continue(stage=start))
        return self.stage(
            f"acid_p{patch_size}_{pixels}",
            self.scale.steps(ACID_STEPS),
            start=Continue(stage=start),
            model=self.model(patch_size, pixels),
            data=self.data(),
            objectives={"sigmoid": Sigmoid(weight=1.0)},
            curation=replace(curation, filter_ratio=LEFT_OUT[patch_size], chunks=16),
            optim=self.optim(
                0.0, peak_lr=1e-5, weight_decay=0.0, schedule=Schedule(kind="constant")
            ),
        )


def config(
    scale: float = 1.0,
    size: str = "B",
    data: str = "",
    other_languages: str = "",
    tokenizer: str = "",
    naflex: bool | None = None,
    teacher: str = "google/siglip2-so400m-patch{patch_size}-{pixels}",
) -> TrainConfig:
    """All five stages; the fifth is B's alone.

    Args:
      scale: the share of the examples to see; see `siglip2_jax.config.scale`.
      size: of the towers: B, L, So400m or g-opt.
      data: a glob of ArrayRecord files; below scale 1, nothing means the images shipped.
      other_languages: another glob, of pairs from pages that are not in English, of which a tenth
        of all examples are drawn; nothing draws all from `data`.
      tokenizer: Gemma's; below scale 1, nothing means the one shipped, with 1,024 pieces.
      naflex: train stage 4; None trains it where it was released, for B and So400m.
      teacher: So400m that curates, `{patch_size}` and `{pixels}` filled in: a release, or workdirs
        of `curating_teacher`. Below scale 1 models are smaller than any that was released, and it
        is the model itself that curates.
    """
    recipe = Recipe(scale, size, data, other_languages, tokenizer)
    adapted = ADAPTED[size]
    stages = [recipe.main(), recipe.distill(), *(recipe.adapted(*x) for x in adapted)]
    if size in NATIVE if naflex is None else naflex:
        stages += [recipe.trunk(), recipe.naflex()]
    if size == "B":
        curator = teacher if recipe.full else ""
        stages.append(recipe.acid("distill", 16, PIXELS, curator))
        stages += [recipe.acid(f"p{patch}_{n}", patch, n, curator) for patch, n in adapted]
    return TrainConfig(
        model=recipe.model(),
        stages=tuple(stages),
        tokenizer=recipe.tokenizer,
        compute=recipe.compute,
        checkpoints=Checkpoints(every=max(200, recipe.scale.steps(1000)), keep_last=3),
        logging=Logging(every=50, tensorboard=recipe.full),
    )
