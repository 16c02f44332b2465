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
      figures: where dense tasks draw their figures, local or `gs://`.
      cache: where class embeddings are kept.
    """

    root: Path
    budget: int
    figures: os.PathLike[str] | None = None
    cache: ClassCache | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line, and the data set's in reports.
      kind: what is measured.
      folder: its directory within the data directory; several tasks may share one.
      required_files: glob patterns of files and directories; a tuple lists alternatives, of which
        errors name the first.
      setup_hint: a sentence on how to get them.
      make: the evaluator.
      metric: the number to show first.
      dataset: the data set's name in reports, where it is not the task's.
      language: code of the data's language.
      needs_decoder: whether it needs a decoder.
      reads: glob patterns of the files and directories that its numbers depend on.
    """

    name: str
    kind: Kind
    folder: str
    required_files: tuple[str | tuple[str, ...], ...]
    setup_hint: str
    make: Callable[[Setting], Evaluator]
    metric: str
    dataset: str = ""
    language: str = "en"
    needs_decoder: bool = False
    reads: tuple[str, ...] = ("*",)

    def find(self, data: Path) -> Path | None:
        """The task's directory: within the data directory or itself; None if files are missing."""
        return next((root for root in self._roots(data) if not self._gone(root)), None)

    def missing(self, data: Path) -> str:
        """A sentence that lists the missing files and says how to get them."""
        root = min(self._roots(data), key=lambda root: len(self._gone(root)))
        missing = ", ".join(str(root / name) for name in self._gone(root))
        return f"{missing}: not there; {self.setup_hint}"

    def _roots(self, data: Path) -> tuple[Path, Path]:
        return data / self.folder, data

    def _gone(self, root: Path) -> list[str]:
        """Required files that a directory does not have."""
        files = [x if isinstance(x, tuple) else (x,) for x in self.required_files]
        return [either[0] for either in files if not any(any(root.glob(x)) for x in either)]
