"""Origins of the parameters of a stage."""

from __future__ import annotations

import dataclasses

from siglip2_jax.config.checks import at_least, is_regex


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratch:
    """Starts from fresh parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Starts from a model that is stored somewhere, with a fresh optimizer.

    Attributes:
      source: what `siglip2_jax.load` takes: a directory, a file, a Hugging Face repository.
      parts: regular expressions that match the whole paths of the parameters to take, such as
        `vision/.*`; the rest is fresh.
      bias_shift: added to the model's `b`, which has learned how rare a match is: log of the batch
        size it was trained with over this stage's (SigLIP 2's is 32,768).
      adapter: a LoRA adapter in peft's layout, which is merged first; a directory or repository.
    """

    source: str
    parts: tuple[str, ...] = (".*",)
    bias_shift: float = 0.0
    adapter: str | None = None

    def __post_init__(self) -> None:
        for pattern in self.parts:
            is_regex(self, "parts", pattern)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continue:
    """Starts from a checkpoint of another stage; changed sizes of images or patches are resized.

    Attributes:
      stage: the stage to continue; None is the one before, or the last one of another run.
      fraction: which checkpoint of that stage, as a fraction of its steps; None is its end.
      step: the same as a number of steps of that stage.
      workdir: the run that the stage belongs to; None is this run.
      optimizer: keep the optimizer's moments of the parameters that both stages train.
      average: keep the moving average, where both stages have one; otherwise it starts anew, from
        the parameters.
    """

    stage: str | None = None
    fraction: float | None = None
    step: int | None = None
    workdir: str | None = None
    optimizer: bool = True
    average: bool = True

    def __post_init__(self) -> None:
        at_least(self, 0, "step", "fraction")
        if self.fraction is not None and self.fraction > 1:
            raise ValueError(f"Continue.fraction is {self.fraction}; it is a fraction, 0 to 1")
        if self.fraction is not None and self.step is not None:
            raise ValueError("Continue names both a fraction and a step; give one of them")
