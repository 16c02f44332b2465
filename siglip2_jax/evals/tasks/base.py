"""What a task of `siglip2 eval` is: its files, where they come from, and its evaluator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.class_embeddings import ClassCache
from siglip2_jax.evals.report.result import Task as Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a task is made of.

    Attributes:
      root: the task's directory.
      budget: token budget at native resolution; fixed resolution does not read it.
      pictures: where dense tasks put pictures.
      cache: where class embeddings are kept.
    """

    root: Path
    budget: int
    pictures: Path | None = None
    cache: ClassCache | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and the data set's in reports.
      kind: what is measured.
      folder: its directory within the data directory; several tasks may share one.
      needs: files and directories that must be in it.
      how: a sentence on how to get them.
      make: the evaluator.
      metric: the number to show first.
      dataset: the data set's name in reports, where it is not the task's.
      language: code of the data's language.
      writes: whether it needs a decoder.
    """

    name: str
    kind: Kind
    folder: str
    needs: tuple[str, ...]
    how: str
    make: Callable[[Setting], Evaluator]
    metric: str
    dataset: str = ""
    language: str = "en"
    writes: bool = False

    def find(self, data: Path) -> Path | None:
        """The task's directory: within the data directory, or that itself; None if not there."""
        for root in (data / self.folder, data):
            if all((root / need).exists() for need in self.needs):
                return root
        return None

    def missing(self, data: Path) -> str:
        """A sentence on what is not there and how to get it."""
        root = data / self.folder
        gone = [need for need in self.needs if not (root / need).exists()]
        return f"{', '.join(str(root / need) for need in gone)}: not there; {self.how}"
