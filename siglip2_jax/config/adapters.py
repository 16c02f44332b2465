"""Low-rank adapters of a stage."""

from __future__ import annotations

import dataclasses

from siglip2_jax.config.checks import above, at_least, is_regex


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Low-rank changes of kernels that a stage learns in place of the kernels (LoRA).

    A kernel becomes `kernel + alpha / rank * a @ b`, as in "LoRA" (arXiv 2106.09685).

    Attributes:
      pattern: regular expression that matches whole paths of kernels, such as
        `(vision|text)/encoder/.*`. A kernel belongs to the first entry that matches.
      rank: size between `a` and `b`.
      alpha: numerator of the factor; None is `rank`, a factor of 1.
    """

    pattern: str
    rank: int = 16
    alpha: float | None = None

    def __post_init__(self) -> None:
        is_regex(self, "pattern", self.pattern)
        at_least(self, 1, "rank")
        above(self, 0, "alpha")

    @property
    def scale(self) -> float:
        """The factor of `a @ b`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
