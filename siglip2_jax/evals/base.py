"""What an evaluator is: it sees a model as a user does, and gives numbers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from siglip2_jax.inference import Embedder


@runtime_checkable
class Evaluator(Protocol):
    """A measurement made during or after training: a frozen dataclass.

    Attributes:
      name: its numbers are logged as `eval/<name>/<metric>`.
      every: steps between two measurements in training; it is also made at the end of a stage.
    """

    name: str
    every: int

    def __call__(self, model: Embedder) -> dict[str, float]:
        """Measures; on several hosts every process calls it with the same model."""
        ...
