"""Optimizer configuration: schedule, groups of parameters, optimizer."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from siglip2_jax.config.checks import above, at_least, below, is_regex, one_of

ScheduleKind = Literal["cosine", "rsqrt", "constant"]
OptimKind = Literal["adam", "adafactor"]
MomentumDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor from 0 to 1 that multiplies a whole update, as a function of a clock.

    The clock shows `begin` at the stage's first step and advances by 1 each step; past
    `tail_start` of the schedule it advances by 1 / `tail_stretch`. Formulas are in
    `siglip2_jax.train.schedule`.

    Attributes:
      kind: "cosine" to 0, "rsqrt" (1 / sqrt, without an end of its own) or "constant".
      warmup: the first steps, over which the factor rises linearly from 0: their number, or as a
        float below 1 their share of T, which a shorter stage shortens too.
      total_steps: T, where the schedule ends on its clock; None ends it with the stage.
      begin: the clock at the stage's first step. A stage that continues another one within the
        same schedule says here how far that schedule has come; its optimizer's own count of steps
        in the stage starts at 0.
      tail_start: where the tail begins, as a fraction of T.
      tail_stretch: how many times longer than planned the tail takes, which multiplies the steps
        from `tail_start * T` to the end (SigLIP 2, arXiv 2502.14786, section 2.4.2: 3.75 in the
        NaFlex branch). It needs `total_steps`.
      timescale: of "rsqrt", in steps.
      cooldown: the last steps before T, over which the factor falls linearly to 0; as `warmup`.
    """

    kind: ScheduleKind = "cosine"
    warmup: int | float = 0
    total_steps: int | None = None
    begin: int = 0
    tail_start: float = 0.9
    tail_stretch: float = 1.0
    timescale: int = 10_000
    cooldown: int | float = 0

    def __post_init__(self) -> None:
        one_of(self, "kind", get_args(ScheduleKind))
        at_least(self, 0, "warmup", "begin", "cooldown", "tail_start")
        at_least(self, 1, "total_steps", "timescale")
        above(self, 0, "tail_stretch")
        for name in ("warmup", "cooldown"):
            length = getattr(self, name)
            if isinstance(length, float) and length >= 1:
                raise ValueError(
                    f"Schedule.{name} is {length}; it must be a share below 1, or a number of "
                    f"steps without a decimal point: {round(length)}"
                )
        if self.tail_start > 1:
            raise ValueError(f"Schedule.tail_start is {self.tail_start}; it is a fraction, 0 to 1")
        if self.total_steps is None and self.tail_stretch != 1:
            raise ValueError(
                f"Schedule.tail_stretch is {self.tail_stretch} without total_steps; set "
                "total_steps to the length of the schedule before it is stretched"
            )

    def end(self, steps: int) -> int:
        """T, the clock at which the schedule ends, for a stage of `steps` steps.

        Raises:
          ValueError: the warm-up is not over by then.
        """
        end = self.begin + steps if self.total_steps is None else self.total_steps
        if self.warmup >= end:
            raise ValueError(
                f"Schedule.warmup is {self.warmup} steps, but the schedule ends at step {end}; "
                "warm up for fewer steps, give a share such as 0.1, or set total_steps"
            )
        return end


def in_steps(length: int | float, end: int) -> int:
    """A length of a schedule that ends at `end` as a number of steps; a float is a share of it."""
    return round(length * end) if isinstance(length, float) else length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are treated differently.

    Attributes:
      pattern: regular expression that matches whole paths, such as `vision/.*`, `text/embed/table`,
        `t|b` or `heads/sd/.*`. A parameter belongs to the first group that matches.
      lr_scale: multiplies the peak learning rate; to stop learning, use `frozen`.
      weight_decay: in place of `Optim.weight_decay`; which parameters decay is still up to
        `Optim.decay`.
      frozen: never updated, without gradient and optimizer state.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        is_regex(self, "pattern", self.pattern)
        above(self, 0, "lr_scale")
        at_least(self, 0, "weight_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer of a stage, with the semantics of big_vision's `optax.py`.

    The update is `-factor * (peak_lr * lr_scale * direction + weight_decay * parameter)`, where
    `direction` comes from the clipped gradient. Weight decay is multiplied by the schedule's factor
    but not by the learning rate: 1e-4 at a learning rate of 1e-3 is PyTorch AdamW's 0.1. Defaults
    are SigLIP 2's (arXiv 2502.14786, section 2.1); its betas are unpublished, and `b2` is that of
    SigLIP (arXiv 2303.15343, section 4).

    Attributes:
      kind: "adam", or "adafactor" as in "Scaling Vision Transformers" (arXiv 2106.04560), which
        needs about a quarter of the memory.
      peak_lr: learning rate where the schedule's factor is 1.
      weight_decay: of the parameters that `decay` matches.
      decay: regular expression that matches the whole paths of parameters that decay.
      b1: decay of the mean of gradients; adafactor's momentum.
      b2: decay of the mean of squared gradients; for adafactor, its upper bound.
      momentum_dtype: dtype that the mean of gradients is kept in, "float32" or "bfloat16"; None is
        float32 for adam and bfloat16 for adafactor, as in big_vision.
      eps: added to Adam's square root; adafactor does not read it.
      clip_norm: largest norm of all gradients together; None does not clip.
      schedule: factor over time.
      groups: exceptions, the first match wins.
      accumulate: number of microbatches that a batch is split into.
      ema: decay per step of a moving average of the parameters; None keeps none. It holds what
        objectives learn from, the vision tower and their own heads; the whole model where no
        objective has a teacher.
      ema_all: average the whole model in any case, so that `average/` of a checkpoint can be loaded
        and evaluated.
      ema_heads: average the heads of objectives with a teacher alone. The teacher's tower is then
        the student's own, without gradient, and no second one is held (TIPSv2, arXiv 2604.12012,
        section 3.4: a loss on images and texts keeps the tower from collapse, so that one belongs
        in the stage).
    """

    kind: OptimKind = "adam"
    peak_lr: float = 1e-3
    weight_decay: float = 1e-4
    decay: str = r".*/kernel"
    b1: float = 0.9
    b2: float = 0.95
    momentum_dtype: MomentumDtype | None = None
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    schedule: Schedule = Schedule()
    groups: tuple[Group, ...] = ()
    accumulate: int = 1
    ema: float | None = None
    ema_all: bool = False
    ema_heads: bool = False

    def __post_init__(self) -> None:
        one_of(self, "kind", get_args(OptimKind))
        one_of(self, "momentum_dtype", (None, *get_args(MomentumDtype)))
        is_regex(self, "decay", self.decay)
        at_least(self, 0, "peak_lr", "weight_decay", "b1", "b2", "ema")
        below(self, 1, "b1", "b2", "ema")
        above(self, 0, "eps", "clip_norm")
        at_least(self, 1, "accumulate")
        if self.ema_heads and (self.ema is None or self.ema_all):
            problem = "ema is None" if self.ema is None else "ema_all averages the whole model"
            raise ValueError(
                f"Optim.ema_heads averages heads alone, but {problem}; set ema to a decay such as "
                "0.966 and leave ema_all off, or turn ema_heads off"
            )
