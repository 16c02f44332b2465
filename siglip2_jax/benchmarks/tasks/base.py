"""Task of `siglip2 eval`: its files, where they come from, and its evaluator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from siglip2_jax.benchmarks.report.result import Task as Kind
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.class_embeddings import ClassCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Inputs from which a task makes its evaluator.

    Attributes:
      root: the task's directory.
      budget: token budget at native resolution; fixed resolution does not read it.
      pictures: where dense tasks put pictures, local or `gs://`.
      cache: where class embeddings are kept.
    """

    root: Path
    budget: int
    pictures: os.PathLike[str] | None = None
    cache: ClassCache | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and the data set's in reports.
      kind: what is measured.
      folder: its directory within the data directory; several tasks may share one.
      needs: glob patterns of required files and directories; a tuple lists alternatives, of which
        errors name the first.
      how: a sentence on how to get them.
      make: the evaluator.
      metric: the number to show first.
      dataset: the data set's name in reports, where it is not the task's.
      language: code of the data's language.
      writes: whether it needs a decoder.
      reads: glob patterns of the files and directories that its numbers depend on.
    """

    name: str
    kind: Kind
    folder: str
    needs: tuple[str | tuple[str, ...], ...]
    how: str
    make: Callable[[Setting], Evaluator]
    metric: str
    dataset: str = ""
    language: str = "en"
    writes: bool = False
    reads: tuple[str, ...] = ("*",)

    def find(self, data: Path) -> Path | None:
        """The task's directory: within the data directory, or that itself; None if not there."""
        return next((root for root in self._roots(data) if not self._gone(root)), None)

    def missing(self, data: Path) -> str:
        """A sentence on what is not there, where most of it is, and how to get it."""
        root = min(self._roots(data), key=lambda root: len(self._gone(root)))
        return f"{', '.join(str(root / need) for need in self._gone(root))}: not there; {self.how}"

    def _roots(self, data: Path) -> tuple[Path, Path]:
        return data / self.folder, data

    def _gone(self, root: Path) -> list[str]:
        """The needs that nothing in a directory meets."""
        needs = [need if isinstance(need, tuple) else (need,) for need in self.needs]
        return [either[0] for either in needs if not any(any(root.glob(x)) for x in either)]
