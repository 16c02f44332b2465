"""Configuration of curation: which examples of a larger batch a step trains on."""

from __future__ import annotations

import dataclasses

from siglip2_jax.config.checks import at_least
from siglip2_jax.config.start import Continue, Pretrained
from siglip2_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curation:
    """Distillation by active curation (ACID, arXiv 2411.18674; SigLIP 2, section 2.5).

    Each step reads a super-batch, scores it with the model being trained and a frozen teacher, and
    trains on the part that is most learnable as a whole.

    Attributes:
      teacher: where the teacher's parameters are. It reads the same pixels and token ids as the
        stage's model, so its image size and vocabulary are the same; its patches may differ.
      model: the teacher's sizes; None means those of the stage's model.
      filter_ratio: the share of the super-batch that is left out, 0 to below 1. SigLIP 2 takes 0.5
        for B/16 (65,536 read, 32,768 trained on) and 0.75 for B/32.
      chunks: draws that make up a batch, each given those before (16 in JEST, arXiv 2406.17711).
    """

    teacher: Pretrained | Continue
    model: ModelConfig | None = None
    filter_ratio: float = 0.5
    chunks: int = 16

    def __post_init__(self) -> None:
        at_least(self, 0, "filter_ratio")
        at_least(self, 1, "chunks")
        if self.filter_ratio >= 1:
            raise ValueError(
                f"Curation.filter_ratio is {self.filter_ratio}; it is the share that is left out, "
                "from 0 to below 1"
            )

    def read_size(self, batch_size: int) -> int:
        """Examples of the super-batch of which `batch_size` are chosen."""
        return round(batch_size / (1 - self.filter_ratio))

    def batch_size(self, read_size: int) -> int:
        """Examples chosen of a super-batch."""
        return round(read_size * (1 - self.filter_ratio))
